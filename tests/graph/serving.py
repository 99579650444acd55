"""An ASGI application on a real port, for tests of the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp

from graph.limits import Limits
from mirrorflow.server import http_server, listening_socket


@asynccontextmanager
async def served(app: ASGIApp, limits: Limits | None = None) -> AsyncIterator[str]:
    """Gives the address, ``http://127.0.0.1:<port>``; the server is gone when the block ends."""
    listener = listening_socket("127.0.0.1", 0)
    ready = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        ready.set()
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    server = http_server(application, limits)
    with listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.wait((asyncio.ensure_future(ready.wait()), task), return_when=asyncio.FIRST_COMPLETED)
            host, port = listener.getsockname()
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await task
