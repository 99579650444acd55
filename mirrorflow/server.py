"""The Starlette application: GraphQL, and the few routes that are not.

``application`` builds it from what it is handed (a schema, a ``Backend``); ``http_server`` and
``listening_socket`` make the uvicorn server that runs it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import strawberry
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from flow.errors import (
    Conflict,
    Denied,
    LeaseLost,
    NotFound,
    QuotaExceeded,
    StorageUnavailable,
    WorkflowError,
)
from graph.access import (
    CSRF_HEADER,
    SESSION_COOKIE,
    Authenticate,
    ContextFactory,
    User,
    origin_allowed,
    signed_in,
    unauthenticated,
)
from graph.errors import RequestError, refusal
from graph.http import body
from graph.limits import Limits
from graph.request import decoded
from graph.view import GraphQLView
from mirrorflow.edge import CONTENT_SECURITY_POLICY, Edge
from mirrorflow.health import Checks, health_routes

STATIC = Path(__file__).parent / "static"
SESSION_SECONDS = 30 * 24 * 3600
GRACE_SECONDS = 10
#: After this many seconds without an acknowledgement the kernel gives a client up, however full its buffer is.
UNREAD_SECONDS = 10

#: GraphiQL's editor sets styles from scripts, and its fonts are written into its style sheet.
PLAYGROUND_POLICY = CONTENT_SECURITY_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "font-src 'self'", "font-src 'self' data:"
)


@dataclass(frozen=True, slots=True)
class Download:
    """A stored file as a client gets it. ``name`` is what a browser calls it."""

    path: Path
    media_type: str
    name: str


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes ask of the rest of the system.

    ``sign_in`` turns a token or a one-time code into the token of a browser session, or None.
    ``open_artifact`` and ``import_definition`` raise WorkflowError; the latter's answer is any JSON.
    A check in ``ready`` raises, or takes more than 5 seconds, when its part is not in order.
    """

    authenticate: Authenticate
    context: ContextFactory
    sign_in: Callable[[str], Awaitable[str | None]]
    open_artifact: Callable[[User, str], Awaitable[Download]]
    import_definition: Callable[[User, str], Awaitable[Any]]
    ready: Checks = field(default_factory=dict)


def application(
    schema: strawberry.Schema,
    backend: Backend,
    *,
    registry: CollectorRegistry,
    limits: Limits | None = None,
    import_bytes: int = 32 * 1024 * 1024,
    hosts: Collection[str] | None = (),
    allowed_origins: Collection[str] = (),
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
    static: Path = STATIC,
) -> ASGIApp:
    """The whole server as one ASGI application.

    ``hosts``: the names it answers to besides localhost and addresses, None for any (behind a proxy that checks).
    ``allowed_origins``: other sites' pages that may use it. ``lifespan`` starts and stops the rest.
    """
    routes = _Routes(backend, static, frozenset(allowed_origins), import_bytes)
    view = GraphQLView(
        schema,
        authenticate=backend.authenticate,
        context=backend.context,
        limits=limits,
        registry=registry,
        allowed_origins=allowed_origins,
        playground=routes.playground,
    )
    app = Starlette(
        routes=[
            Route("/graphql", view),
            WebSocketRoute("/graphql", view),
            Route("/", routes.page, methods=["GET"]),
            Route("/session", routes.session, methods=["GET", "POST", "DELETE"]),
            Route("/import", routes.import_definition, methods=["POST"]),
            Route("/artifacts/{id}", routes.artifact, methods=["GET"]),
            *health_routes(backend.ready, registry),
            Mount("/static", StaticFiles(directory=static, check_dir=False)),
        ],
        exception_handlers={
            HTTPException: _http_error,
            RequestError: _request_error,
            WorkflowError: _workflow_error,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )
    return Edge(app, registry=registry, hosts=hosts)


class _Routes:
    def __init__(
        self,
        backend: Backend,
        static: Path,
        allowed_origins: frozenset[str],
        import_bytes: int,
    ) -> None:
        self._backend = backend
        self._static = static
        self._import_bytes = import_bytes
        self._allowed_origins = allowed_origins

    async def page(self, request: Request) -> Response:
        """The live list of runs; it asks for everything over GraphQL, so the page itself is no secret."""
        return FileResponse(self._static / "index.html", headers={"cache-control": "no-cache"})

    async def playground(self, request: Request) -> Response:
        """GraphiQL for whoever is signed in; a page that says what to do for others, and where it was not bundled."""
        if not (self._static / "graphiql" / "index.html").exists():
            return FileResponse(self._static / "no-graphiql.html", 503)
        if await self._user(request, required=False) is None:
            return FileResponse(self._static / "sign-in.html", 401)
        policy = PLAYGROUND_POLICY
        headers = {"content-security-policy": policy, "cache-control": "no-cache"}
        return FileResponse(self._static / "graphiql" / "index.html", headers=headers)

    async def session(self, request: Request) -> Response:
        """GET: who is signed in. POST {"token": …}: sign this browser in. DELETE: sign it out."""
        if request.method == "GET":
            user = await self._user(request, required=False)
            return _json({"user": None if user is None else user.user_id})
        self._check_origin(request)
        if CSRF_HEADER not in request.headers:
            raise RequestError(403, "CSRF_HEADER_MISSING", f"This needs the header {CSRF_HEADER}.")
        response = Response(status_code=204)
        if request.method == "DELETE":
            response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
            return response
        match decoded(await body(request, 4096)):
            case {"token": str(token)}:
                session = await self._backend.sign_in(token)
            case _:
                raise RequestError(400, "BAD_REQUEST", 'Send {"token": "…"}.')
        if session is None:
            raise unauthenticated()
        secure = request.url.scheme == "https"
        response.set_cookie(
            SESSION_COOKIE, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure
        )
        return response

    async def import_definition(self, request: Request) -> Response:
        """Store the definition in the body (YAML or JSON) as the mutation workflowImport would."""
        self._check_origin(request)
        user = await self._user(request)
        try:
            text = (await body(request, self._import_bytes)).decode()
        except UnicodeDecodeError:
            raise RequestError(400, "BAD_REQUEST", "The definition must be text in UTF-8.") from None
        return _json(await self._backend.import_definition(user, text))

    async def artifact(self, request: Request) -> Response:
        """A stored file, always as a download and never trusted: it may have been made by anybody's workflow."""
        found = await self._backend.open_artifact(await self._user(request), request.path_params["id"])
        headers = {"content-security-policy": "default-src 'none'; sandbox", "cache-control": "private, max-age=3600"}
        return FileResponse(found.path, headers=headers, media_type=found.media_type, filename=found.name)

    async def _user(self, request: Request, *, required: bool = True) -> Any:
        user = await signed_in(request, self._backend.authenticate)
        if user is None and required:
            raise unauthenticated()
        return user

    def _check_origin(self, request: Request) -> None:
        if not origin_allowed(request, self._allowed_origins):
            raise RequestError(403, "ORIGIN_REFUSED", "Pages of other sites may not use this server.")


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    return _json({"code": code, "message": message, **more}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail if error.detail != status.phrase else f"{status.description or status.phrase}."
    return _error(status.value, status.name, message, error.headers)


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, error.code, error.message, error.headers)


async def _workflow_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WorkflowError)
    match error:
        case NotFound():
            status = 404
        case Conflict():
            status = 409
        case Denied():
            status = 403
        case QuotaExceeded():
            status = 429
        case StorageUnavailable() | LeaseLost():
            status = 503
        case _:
            status = 400
    more = refusal(error)
    return _error(status, more.pop("code"), error.message, **more)


async def _unexpected(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("request_id", "-")
    message = f"Something went wrong on the server; its log has more under {request_id}."
    return _error(500, "INTERNAL", message, requestId=request_id)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket whose connections give up readers that never read. Raises OSError (port in use, no such host)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def http_server(app: ASGIApp, limits: Limits | None = None) -> uvicorn.Server:
    """The uvicorn server for ``app``: run it with ``await server.serve(sockets=[listening_socket(…)])``.

    On SIGTERM or SIGINT it stops taking requests, closes sockets with 1012 and is gone within 10 seconds.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=(limits or Limits()).socket_frame_bytes,
        ws_per_message_deflate=False,  # costs 338 ms against 4 ms at p99 with 1,000 subscriptions
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return uvicorn.Server(config)
