"""The embedded mode: database, engine, schema and HTTP in one process, and the order in which they start and stop.

Start: lock on the data folder, port, migrations, defaults, engine, HTTP. Everything that can refuse does so before the
engine works. Stop, on SIGTERM or SIGINT: the engine claims nothing more and its nodes get the grace period while HTTP
still answers (watchers see the end of what they watch), then HTTP, then the database. A second signal ends the process
at once; nothing that was acknowledged is lost by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import uvicorn

from db import migrate
from db.session import Database, connect
from db.store import lists
from engine.access import Actor
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from flow.errors import NotFound, StorageUnavailable
from graph.access import User
from graph.context import contexts
from graph.limits import Limits
from graph.schema import build_schema
from mirrorflow.lock import TOKEN_FILE, StartRefused, announced, held
from mirrorflow.metrics import EngineMetrics
from mirrorflow.observability import configure_logging, metrics_registry
from mirrorflow.server import Backend, Download, application, http_server, listening_socket
from mirrorflow.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mirrorflow.client import Client

T = TypeVar("T")

#: How long the interpreter lets one thread run while others wait for its lock. sqlite3 gives the lock up at each step
#: of a statement; at the default of 5 ms a busy event loop made each step wait ten times as long (decision 0001).
SWITCH_INTERVAL_S = 0.0005

#: With fewer bytes left on its disk a server is not ready: small writes may still work, the next large one fails.
LEAST_SPACE = 1024 * 1024

log = structlog.get_logger("mirrorflow")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready."""

    url: str
    engine: Engine
    stop: asyncio.Event

    @property
    def link(self) -> str:
        """The address of the page, with a code that signs one browser in once."""
        return f"{self.url}/?token={self.engine.access.sign_in_code()}"


def serve(settings: Settings, ready: Callable[[Serving], Awaitable[None]]) -> int:
    """Serve until a signal says to stop; the exit code. ``ready`` is awaited beside the server once it answers.

    Raises StartRefused, or what ``db.migrate.upgrade`` raises, each with one line that names the remedy.
    """
    configure_logging(settings.log_level, settings.log_format)
    if _open_to_others(settings):
        log.warning(
            "other machines can reach this server, and it speaks plain HTTP: put a proxy with TLS before it",
            host=settings.host,
        )

    async def work() -> int:
        async with running(settings, listener) as server:
            beside = asyncio.create_task(_beside(ready, server), name="after start")
            _heed_signals(server)
            await server.stop.wait()
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        return 0

    with prepared(settings) as listener:
        return _run(work())


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
        return _run(with_server())


@contextlib.contextmanager
def prepared(settings: Settings) -> Iterator[socket.socket]:
    """Everything that can refuse a start: the folder is ours, the port is ours, the database is up to date."""
    with held(settings.data_dir):
        try:
            listener = listening_socket(settings.host, settings.port)
        except OSError as error:
            raise StartRefused(
                f"Port {settings.port} on {settings.host} can't be used ({error.strerror or error}). "
                "Stop the other program, or take another with --port."
            ) from None
        with contextlib.closing(listener):
            settings.allowed_roots[0].mkdir(parents=True, exist_ok=True)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            migrate.upgrade(settings.database)
            yield listener


@contextlib.asynccontextmanager
async def running(settings: Settings, listener: socket.socket) -> AsyncIterator[Serving]:
    """The whole server on ``listener``, from ready until the block ends."""
    registry = metrics_registry()
    metrics = EngineMetrics(registry)
    async with contextlib.AsyncExitStack() as stack:
        database = connect(settings.database, synchronous=settings.sqlite_synchronous)
        stack.push_async_callback(database.close)
        engine = _engine(settings, database, metrics)
        token = settings.token.get_secret_value() or None
        await engine.access.bootstrap(token, token_file=settings.data_dir / TOKEN_FILE)
        await engine.start()
        http = _Http(http_server(_application(settings, engine, registry), _limits(settings)).config)
        answering = asyncio.create_task(http.serve(sockets=[listener]), name="http")
        stack.push_async_callback(_end_http, http, answering)
        # Pushed last, so it comes first: the engine stops while HTTP still answers.
        stack.push_async_callback(engine.stop, settings.grace_seconds)
        await http.ready.wait()
        url = _url(listener)
        stack.enter_context(announced(settings.data_dir, url))
        # What was made so far lives as long as the process; no collection needs to walk it again.
        gc.collect()
        gc.freeze()
        yield Serving(url, engine, asyncio.Event())


class _Http(uvicorn.Server):
    """uvicorn, but for signals, which are ours, and for saying when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def _end_http(http: _Http, answering: asyncio.Task[None]) -> None:
    http.should_exit = True
    await answering


def _engine(settings: Settings, database: Database, metrics: EngineMetrics) -> Engine:
    runner = Runner(
        Registry.load(),
        data_dir=settings.data_dir,
        roots=settings.allowed_roots,
        processes=settings.processes,
        threads=settings.threads,
        concurrency=settings.slots,
    )
    engine = Engine(
        database,
        runner,
        # The lock on the folder keeps other processes off its SQLite file; a PostgreSQL may have other users.
        alone=database.dialect == "sqlite",
        lease_s=settings.lease_seconds,
        max_nodes=settings.max_nodes,
        observe_commit=metrics.committed,
        observe_node=metrics.attempted,
    )
    for problem in engine.registry.problems:
        log.warning("a plugin can't be used", plugin=problem.plugin, reason=problem.message)
    metrics.gauge("queue_depth", "Instances that wait to be looked at", lambda: len(engine.queue))
    metrics.gauge("instances_driven", "Instances under way in this process", lambda: engine.executor.driven)
    return engine


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
            ready={
                "database": engine.storage_check,
                "disk": lambda: _disk_has_space(settings.data_dir),
                "engine": lambda: _engine_works(engine),
            },
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


async def _disk_has_space(folder: Path) -> None:
    left = (await asyncio.to_thread(shutil.disk_usage, folder)).free
    if left < LEAST_SPACE:
        raise StorageUnavailable(f"The disk of the data folder is full: {left // 1024:,} KiB are left. Free some.")


async def _engine_works(engine: Engine) -> None:
    if engine.executor.draining:
        raise StorageUnavailable("The server is stopping.")


async def _beside(ready: Callable[[Serving], Awaitable[None]], server: Serving) -> None:
    try:
        await ready(server)
    except Exception:  # the server serves, whatever happens to what is shown about it
        log.exception("after the start")


def _heed_signals(server: Serving) -> None:
    """The first SIGTERM or SIGINT asks to stop, the second, which may come while the server stops, ends the process."""

    def told(number: signal.Signals) -> None:
        if server.stop.is_set():
            os._exit(128 + number)
        log.info("stopping: running nodes may finish; once more ends at once", signal=number.name)
        server.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told, number)


def _run(work: Coroutine[Any, Any, T]) -> T:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _open_to_others(settings: Settings) -> bool:
    return settings.host not in {"localhost", "::1"} and not settings.host.startswith("127.")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
