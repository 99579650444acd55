"""A small client of the public GraphQL API, for the command line: queries over HTTP, subscriptions over a websocket.

httpx is imported where a client is made: it brings in a good deal that a server start need not wait for.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from mirrorflow.lock import TOKEN_FILE, running

REFUSALS = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "BAD_REQUEST", "BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED"}
)


class ClientError(Exception):
    """The server can't be reached, or refused; the message is for a person."""

    def __init__(self, message: str, *, code: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


class NoServer(ClientError):
    """No server runs where one was looked for."""


class ConnectionBroke(ClientError):
    """A subscription's connection was lost; it can be taken up again after the last event seen."""


class Refused(ClientError):
    """The server said no to the request itself, by one of the refusals of the schema."""

    def __init__(self, refusal: Mapping[str, Any]) -> None:
        self.problems = [
            f"{problem['pointer'] or '/'}: {problem['message']} [{problem['code']}]"
            for problem in refusal.get("problems") or []
        ]
        super().__init__("\n".join(self.problems) or refusal["message"], code=refusal.get("code", ""), exit_code=2)


class Client:
    """Talks to one server with one token. Use it as an async context manager."""

    def __init__(self, url: str, token: str | None) -> None:
        import httpx

        self.url = url.rstrip("/")
        self._token = token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=90)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def query(self, document: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The ``data`` of one operation. Raises ClientError for top-level errors, NoServer where none answers."""
        answer = await self._post("/graphql", json={"query": document, "variables": dict(variables or {})})
        if answer.get("errors"):
            raise _failed(answer["errors"])
        data: dict[str, Any] = answer["data"]
        return data

    async def mutate(self, document: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The payload of a document with one mutation. Raises Refused if it answered with a refusal.

        The document asks for ``__typename`` and, on ``UserError``, for ``code`` and ``message``.
        """
        [payload] = (await self.query(document, variables)).values()
        if not str(payload["__typename"]).endswith("Payload"):
            raise Refused(payload)
        found: dict[str, Any] = payload
        return found

    async def import_(self, text: str) -> dict[str, Any]:
        """Send a definition of any size to ``/import``. Raises Refused with every problem."""
        return await self._post("/import", content=text.encode())

    async def subscribe(self, document: str, variables: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The ``data`` of each message until the stream is complete. Raises ClientError when the connection breaks."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException
        from websockets.typing import Subprotocol

        address = "ws" + self.url.removeprefix("http") + "/graphql"
        connection = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            async with connect(
                address, subprotocols=[Subprotocol("graphql-transport-ws")], compression=None, max_size=None, proxy=None
            ) as socket:
                await socket.send(_text({"type": "connection_init", "payload": connection}))
                async for raw in socket:
                    message = msgspec.json.decode(raw)
                    match message["type"]:
                        case "connection_ack":
                            asked = {"query": document, "variables": dict(variables)}
                            await socket.send(_text({"id": "1", "type": "subscribe", "payload": asked}))
                        case "next":
                            if message["payload"].get("errors"):
                                raise _failed(message["payload"]["errors"])
                            yield message["payload"]["data"]
                        case "error":
                            raise _failed(message["payload"])
                        case "complete":
                            return
                        case "ping":
                            await socket.send(_text({"type": "pong"}))
        except (WebSocketException, OSError) as error:
            raise ConnectionBroke(f"The connection to {self.url} broke: {error}.") from None
        raise ConnectionBroke(f"The server at {self.url} closed the connection.")

    async def _post(self, path: str, **request: Any) -> dict[str, Any]:
        import httpx

        try:
            response = await self._http.post(path, **request)
        except httpx.TransportError as error:
            raise NoServer(f"No Mirrorflow answers at {self.url} ({error or type(error).__name__}).") from None
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ClientError(f"{self.url} is no Mirrorflow: HTTP {response.status_code} without JSON.")
        if "code" in answer and response.is_error:
            if response.status_code >= 500:
                raise ClientError(answer["message"], code=answer["code"])
            raise Refused(answer)
        return answer


def local(data_dir: Path, url: str | None = None, token: str | None = None) -> Client:
    """A client of the server at ``url``, or of the one that runs over the data folder. Raises NoServer if none runs.

    The token is the one given, MIRRORFLOW_TOKEN, or what the server keeps in the folder for its owner.
    """
    token = token or os.environ.get("MIRRORFLOW_TOKEN")
    if url is None:
        found = running(data_dir)
        if found is None:
            raise NoServer(
                f"No server runs over {data_dir}. Start one with `mirrorflow serve`, or name one with --url.",
                exit_code=1,
            )
        url = found.url
    if not token:
        try:
            token = (data_dir / TOKEN_FILE).read_text().strip()
        except OSError:
            token = None
    return Client(url, token)


def _text(message: Any) -> str:
    return msgspec.json.encode(message).decode()


def _failed(errors: list[dict[str, Any]]) -> ClientError:
    first = errors[0]
    code = (first.get("extensions") or {}).get("code", "")
    return ClientError(first.get("message", "The server failed."), code=code, exit_code=2 if code in REFUSALS else 1)
