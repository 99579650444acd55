"""A program that executes work over HTTP, on a real port, with faults that can be switched on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.graph.serving import served


class Double:
    """Its state. ``fault``: None, ``html``, ``redirect``, ``endless``, ``lying``, ``nul``, ``slow`` (till ``release``),
    ``dead`` (hangs up), ``echo`` (says back what it was sent), or a status such as ``503``.
    """

    def __init__(self) -> None:
        self.url = ""
        self.fault: str | None = None
        self.token: str | None = None
        self.health: Any = {"status": "ok", "capabilities": {"gpu": 1}}
        #: Works by id: its status, and what was posted.
        self.works: dict[str, dict[str, Any]] = {}
        self.posts = 0
        #: ``True``: the answer to the POST is the result.
        self.at_once = False
        self.files: dict[str, bytes] = {}
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    def finish(self, id: str, result: Any, files: list[dict[str, Any]] | None = None) -> None:
        """The work is done."""
        self.works[id] |= {"status": "completed", "result": result, "files": files or []}

    def fail(self, id: str, error: Any) -> None:
        """The work failed."""
        self.works[id] |= {"status": "failed", "error": error}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.fault == "dead" and scope["type"] == "http":
            # no answer at all: uvicorn closes the connection
            scope["extensions"] = {}
            transport = send.__self__.transport  # type: ignore[attr-defined]
            transport.abort()
            return
        await self._app(scope, receive, send)

    @property
    def _app(self) -> Starlette:
        routes = [
            Route("/health", self._guarded(self._health)),
            Route("/execute", self._guarded(self._execute), methods=["POST"]),
            Route("/execute/{id}", self._guarded(self._work), methods=["GET", "DELETE"]),
            Route("/files/{name:path}", self._guarded(self._file)),
            Route("/{path:path}", self._guarded(self._nothing), methods=["GET", "POST", "DELETE"]),
        ]
        return Starlette(routes=routes)

    def _guarded(self, answer: Any) -> Any:
        async def respond(request: Request) -> Response:
            self.asked.set()
            if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
                return JSONResponse({"message": "who are you?"}, 401)
            match self.fault:
                case None:
                    return await answer(request)  # type: ignore[no-any-return]
                case "html":
                    return HTMLResponse("<!doctype html><title>Welcome to nginx!</title>")
                case "redirect":
                    return RedirectResponse("http://127.0.0.1:1/elsewhere")
                case "endless":
                    return StreamingResponse(_endless(), media_type="application/json")
                case "lying":
                    return JSONResponse({"status": "weird", "data": {"health": {"status": 7}}}, 206)
                case "nul":
                    return JSONResponse({"status": "ok", "text": "a\0b"})
                case "echo":
                    return JSONResponse({"status": request.headers.get("authorization", "")})
                case "slow":
                    await self.release.wait()
                    return await answer(request)  # type: ignore[no-any-return]
                case status:
                    return JSONResponse({"message": "not now"}, int(status), headers={"Retry-After": "7"})

        return respond

    async def _nothing(self, request: Request) -> Response:
        return PlainTextResponse("not here", 404)

    async def _health(self, request: Request) -> Response:
        return JSONResponse(self.health)

    async def _execute(self, request: Request) -> Response:
        self.posts += 1
        body = await request.json()
        work = self.works.setdefault(
            body["id"], {"status": "running", "progress": 0.5, "message": "half", "posted": body}
        )
        if self.at_once:
            return JSONResponse({"made": body["input"]})
        return JSONResponse({"status": work["status"]}, 202)

    async def _work(self, request: Request) -> Response:
        work = self.works.get(request.path_params["id"])
        if work is None:
            return JSONResponse({"message": "unknown"}, 404)
        if request.method == "DELETE":
            work["status"] = "canceled"
            return Response(status_code=204)
        return JSONResponse({key: value for key, value in work.items() if key != "posted"})

    async def _file(self, request: Request) -> Response:
        content = self.files.get(request.path_params["name"])
        return PlainTextResponse("gone", 404) if content is None else Response(content, media_type="image/png")


async def _endless() -> AsyncIterator[bytes]:
    yield b'{"status": "ok", "more": "'
    while True:
        yield b"x" * 65_536
        await asyncio.sleep(0)


@asynccontextmanager
async def doubled(double: Double | None = None) -> AsyncIterator[Double]:
    """A double that listens; gone when the block ends."""
    double = double or Double()
    async with served(double) as url:
        double.url = url
        try:
            yield double
        finally:
            double.release.set()
