"""The server: API and pages, and, unless told otherwise, a worker in the same process.

Start: lock on the data folder, port, migrations, defaults, engine, HTTP. Everything that can refuse does so before the
engine works. Stop, on SIGTERM or SIGINT: the engine claims nothing more and its nodes get the grace period while HTTP
still answers (watchers see the end of what they watch), then HTTP, then the database. A second signal ends the process
at once; nothing that was acknowledged is lost by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from db.store import lists
from engine.access import Actor
from engine.engine import Engine
from flow.errors import NotFound
from graph.access import User
from graph.context import contexts
from graph.limits import Limits
from graph.schema import build_schema
from mirrorflow.artifact_guard import same_artifacts
from mirrorflow.lock import TOKEN_FILE, announced, held
from mirrorflow.metrics import EngineMetrics
from mirrorflow.observability import configure_logging, metrics_registry
from mirrorflow.processes import (
    answering,
    bound,
    checks,
    connected,
    engine_for,
    heed_signals,
    run,
    stores_ready,
    url_of,
)
from mirrorflow.server import Backend, Download, application, http_server
from mirrorflow.settings import Settings
from mirrorflow.worker import refuse_one_process

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mirrorflow.client import Client

T = TypeVar("T")

log = structlog.get_logger("mirrorflow")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready."""

    url: str
    engine: Engine

    @property
    def link(self) -> str:
        """The address of the page, with a code that signs one browser in once."""
        return f"{self.url}/?token={self.engine.access.sign_in_code()}"


def serve(settings: Settings, ready: Callable[[Serving], Awaitable[None]], *, works: bool = True) -> int:
    """Serve until a signal says to stop; the exit code. ``ready`` is awaited beside the server once it answers.

    ``works``: with a worker in it. Raises StartRefused, or what ``db.migrate.upgrade`` raises, each with one line that
    names the remedy.
    """
    if not works:
        refuse_one_process(settings, "A server without a worker", "so that nobody would do its work")
    configure_logging(settings.log_level, settings.log_format)
    if _open_to_others(settings):
        log.warning(
            "other machines can reach this server, and it speaks plain HTTP: put a proxy with TLS before it",
            host=settings.host,
        )

    async def until_told() -> int:
        stop = asyncio.Event()
        async with running(settings, listener, works=works) as server:
            beside = asyncio.create_task(_beside(ready, server), name="after start")
            heed_signals(stop)
            await stop.wait()
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        return 0

    with prepared(settings) as listener:
        return run(until_told())


def borrowed(settings: Settings, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do ``work`` with a server that lives only as long. Raises as ``serve`` does."""
    from mirrorflow.client import Client

    configure_logging(settings.log_level, settings.log_format)

    async def with_server() -> T:
        async with running(settings, listener) as server:
            token = (settings.data_dir / TOKEN_FILE).read_text().strip()
            async with Client(server.url, token) as client:
                return await work(client)

    with prepared(settings) as listener:
        return run(with_server())


@contextlib.contextmanager
def prepared(settings: Settings) -> Iterator[socket.socket]:
    """Most of what can refuse a start: the folder is ours, the port is ours, the database is up to date."""
    remedy = "Stop the other program, or take another with --port."
    with held(settings.data_dir, shared=not settings.alone), bound(settings.host, settings.port, remedy) as listener:
        settings.allowed_roots[0].mkdir(parents=True, exist_ok=True)
        stores_ready(settings)
        yield listener


@contextlib.asynccontextmanager
async def running(settings: Settings, listener: socket.socket, *, works: bool = True) -> AsyncIterator[Serving]:
    """The whole server on ``listener``, from ready until the block ends."""
    registry = metrics_registry()
    async with contextlib.AsyncExitStack() as stack:
        database = connected(settings, "serve")
        stack.push_async_callback(database.close)
        if not settings.alone:
            await same_artifacts(database, settings.artifacts)
        engine = engine_for(settings, database, EngineMetrics(registry), works=works)
        token = settings.token.get_secret_value() or None
        await engine.access.bootstrap(token, token_file=settings.data_dir / TOKEN_FILE, alone=settings.alone)
        await engine.start()
        http = http_server(_application(settings, engine, registry), _limits(settings)).config
        await stack.enter_async_context(answering(http, listener))
        # Pushed last, so it comes first: the engine stops while HTTP still answers.
        stack.push_async_callback(engine.stop, settings.grace_seconds)
        url = url_of(listener)
        stack.enter_context(announced(settings.data_dir, url))
        # What was made so far lives as long as the process; no collection needs to walk it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        yield Serving(url, engine)


def _application(settings: Settings, engine: Engine, registry: Any) -> ASGIApp:
    context = contexts(engine)
    return application(
        build_schema(),
        Backend(
            authenticate=engine.access.authenticate,
            context=lambda user, connection: context(None if user is None else _actor(user), connection),
            sign_in=lambda text: _sign_in(engine, text),
            open_artifact=lambda user, id: _artifact(engine, _actor(user), id),
            import_definition=lambda user, text: _import(engine, _actor(user), text),
            ready=checks(settings, engine),
        ),
        registry=registry,
        limits=_limits(settings),
        import_bytes=settings.import_limit,
        hosts=None if "*" in settings.hosts else settings.hosts,
        allowed_origins=settings.origins,
    )


def _actor(user: User) -> Actor:
    """Whoever ``authenticate`` let in: the wire knows no more of it than its id."""
    assert isinstance(user, Actor)
    return user


def _limits(settings: Settings) -> Limits:
    return Limits(
        body_bytes=settings.body_limit,
        tokens=settings.query_tokens,
        depth=settings.query_depth,
        aliases=settings.query_aliases,
        root_fields=settings.query_root_fields,
        directives=settings.query_directives,
        cost=settings.query_cost,
        execution_seconds=settings.query_seconds,
        errors=settings.query_errors,
        socket_init_seconds=settings.socket_init_seconds,
        socket_frame_bytes=settings.socket_frame,
        sockets_per_user=settings.sockets_per_user,
        subscriptions_per_socket=settings.subscriptions_per_socket,
    )


async def _sign_in(engine: Engine, text: str) -> str | None:
    """The token of a new session, for a one-time code or for any token that is valid."""
    session = await engine.access.redeem(text)
    if session is None:
        actor = await engine.access.authenticate(text)
        if actor is None:
            return None
        session = await engine.access.redeem(engine.access.sign_in_code(actor))
    return None if session is None else session.text


async def _artifact(engine: Engine, actor: Actor, id: str) -> Download:
    row = (await engine.database.read(lists.artifacts, actor.project_id, [id])).get(id)
    path: Path | None = None if row is None else engine.artifacts.path(row.sha256)
    if row is None or path is None or not await asyncio.to_thread(path.is_file):
        raise NotFound("artifact", id)
    return Download(path, row.media_type, id)


async def _import(engine: Engine, actor: Actor, text: str) -> dict[str, Any]:
    """Store a definition as ``workflowImport`` does, where its name exists as a new version."""
    changed = await engine.workflows.import_(actor, text, on_conflict="new_version")
    workflow = await engine.workflows.get(actor, changed.workflow_id)
    version = (await engine.database.read(lists.versions, actor.project_id, [changed.version_id or ""]))[
        changed.version_id or ""
    ]
    return {
        "workflowId": changed.workflow_id,
        "name": workflow.name,
        "versionId": changed.version_id,
        "version": f"{version.major}.{version.minor}.{version.patch}",
        "changed": changed.changed,
        "changeSeq": changed.change_seq,
    }


async def _beside(ready: Callable[[Serving], Awaitable[None]], server: Serving) -> None:
    try:
        await ready(server)
    except Exception:  # the server serves, whatever happens to what is shown about it
        log.exception("after the start")


def _open_to_others(settings: Settings) -> bool:
    return settings.host not in {"localhost", "::1"} and not settings.host.startswith("127.")
