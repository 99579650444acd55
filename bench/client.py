"""A lean HTTP client, so that the client is not what is measured: asyncio, httptools, a few connections kept alive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httptools


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes] | None = None
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        self._parser = httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(body)

    async def request(self, raw: bytes) -> bytes:
        """Send one whole request; the body of the answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """GraphQL over a few connections."""

    def __init__(self, port: int, token: str, path: str = "/graphql") -> None:
        self._port = port
        self._head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._all: list[Connection] = []

    async def open(self, connections: int) -> None:
        """Connect."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
            self._all.append(connection)
            self._free.put_nowait(connection)

    def close(self) -> None:
        """Hang up."""
        for connection in self._all:
            connection.close()

    def encoded(self, query: str, variables: dict[str, Any]) -> bytes:
        """A request, ready to be sent as often as wanted."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        return self._head + str(len(body)).encode() + b"\r\n\r\n" + body

    async def send(self, raw: bytes) -> dict[str, Any]:
        """The data of the answer. Raises RuntimeError with the errors if there are any."""
        connection = await self._free.get()
        try:
            answer = json.loads(await connection.request(raw))
        finally:
            self._free.put_nowait(connection)
        if answer.get("errors"):
            raise RuntimeError(answer["errors"])
        data: dict[str, Any] = answer["data"]
        return data

    async def query(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """Encode and send."""
        return await self.send(self.encoded(query, variables or {}))


@asynccontextmanager
async def client(port: int, token: str, connections: int = 1, path: str = "/graphql") -> AsyncGenerator[Client, None]:
    """A connected client."""
    made = Client(port, token, path)
    await made.open(connections)
    try:
        yield made
    finally:
        made.close()
