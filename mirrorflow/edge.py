"""The outermost layer: which hosts we answer to, request ids, security headers, the access log."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections.abc import Collection
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger("http")

#: Everything comes from ourselves; nothing may frame us, be submitted elsewhere or run inline.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_ALWAYS = [(name.encode(), value.encode()) for name, value in {**SECURITY_HEADERS, "cache-control": "no-store"}.items()]
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,100}")
SLOW_MS = 1000


class Edge:
    """Wraps the whole application. ``hosts`` are the names it answers to besides addresses and localhost; None: any.

    Answering only to known names is what stops a page elsewhere from reaching a local server under its own name
    (DNS rebinding); addresses can't be rebound.
    """

    def __init__(self, app: ASGIApp, *, registry: CollectorRegistry, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts) | {"localhost"}
        self._requests = Counter("mirrorflow_http_requests_total", "HTTP requests", ("status",), registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req-{secrets.token_hex(8)}"
        scope["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            if not self._known(headers.get("host", "")):
                await self._refuse(scope, receive, send)
            elif scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(message, scope["request_id"])
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception:
            # The client has its answer (500, INTERNAL) by now, from the error handler inside.
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if status == 0:
                raise
        finally:
            self._requests.labels(str(status)).inc()
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            # A line costs more than a small query does, so what is neither slow nor refused is for debugging only.
            write = log.info if status >= 400 or milliseconds > SLOW_MS else log.debug
            # Never the query string: it may hold a sign-in token.
            write("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)

    def _known(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_address(name)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403, "reason": "Host refused"})
            return
        message = "This server does not answer to that host name: use localhost, its address, or the host it was given."
        response = JSONResponse({"code": "HOST_REFUSED", "message": message}, 421)
        self._requests.labels("421").inc()
        await response(scope, receive, send)


def _complete(start: Message, request_id: str) -> None:
    headers = start["headers"] = [*start.get("headers", ()), (b"x-request-id", request_id.encode())]
    present = {name for name, _ in headers}
    headers.extend(header for header in _ALWAYS if header[0] not in present)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
