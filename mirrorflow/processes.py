"""What all processes of Mirrorflow do alike: wait for what they need, put the engine together, listen, heed signals.

``embedded.py`` is the server, ``worker.py`` a worker without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
import uvicorn

from db import migrate
from db.session import Database, connect, place
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from engine.seal import Seal
from flow.errors import RedisUnavailable, StorageUnavailable
from mirrorflow.lock import StartRefused
from mirrorflow.metrics import EngineMetrics
from mirrorflow.server import listening_socket
from mirrorflow.settings import Settings

if TYPE_CHECKING:
    from engine.bus import Bus
    from engine.queue import Queue
    from mirrorflow.health import Checks

T = TypeVar("T")

#: How long the interpreter lets one thread run while others wait for its lock. sqlite3 gives the lock up at each step
#: of a statement; at the default of 5 ms a busy event loop made each step wait ten times as long (decision 0001).
SWITCH_INTERVAL_S = 0.0005

#: With fewer bytes left on its disk a process is not ready: small writes may still work, the next large one fails.
LEAST_SPACE = 1024 * 1024

#: How often a start asks again for what isn't there yet.
ASK_EVERY_S = 0.5

log = structlog.get_logger("mirrorflow")


# Before the start


def stores_ready(settings: Settings) -> None:
    """Return when the database is up to date and Redis, where there is one, answers; call it outside an event loop.

    What isn't there yet is waited for, as long as the settings say: with Docker everything starts at once. Raises
    StartRefused when that time is over or when waiting can't help, or what ``db.migrate.upgrade`` raises.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if settings.alone:
        migrate.upgrade(settings.database)
        return
    deadline = monotonic() + settings.wait_seconds
    _awaited(f"PostgreSQL at {place(settings.database)}", deadline, lambda: migrate.upgrade(settings.database))
    if settings.redis is not None:
        _awaited("Redis", deadline, partial(_check_redis, settings.redis))


def _check_redis(url: str) -> None:
    from redis.exceptions import AuthenticationError
    from redis.exceptions import ConnectionError as NotConnected
    from redis.exceptions import TimeoutError as NoAnswer

    from engine.redis import redis_check

    try:
        for fault in asyncio.run(redis_check(url)):
            log.warning(fault)
    except RedisUnavailable as error:
        cause = error.__context__
        if isinstance(cause, AuthenticationError) or not isinstance(cause, OSError | NotConnected | NoAnswer):
            raise StartRefused(error.message) from None  # it is there, and will say the same again
        raise StorageUnavailable(error.message) from error


def _awaited(what: str, deadline: float, attempt: Callable[[], object]) -> None:
    told = ""
    while True:
        try:
            attempt()
            return
        except ImportError as error:
            remedy = "pip install 'mirrorflow[distributed]'"
            raise StartRefused(f"{what} needs the package {error.name}: {remedy}.") from None
        except StorageUnavailable as error:
            if monotonic() >= deadline:
                raise StartRefused(f"{what}: {error.message}") from None
            if error.message != told:
                log.warning(f"waiting for {what}", reason=error.message, seconds=round(deadline - monotonic()))
                told = error.message
        sleep(ASK_EVERY_S)


# The parts


def connected(settings: Settings, role: str) -> Database:
    """The database; ``role`` is what PostgreSQL's own lists call this process. Opens nothing yet."""
    return connect(
        settings.database,
        synchronous=settings.sqlite_synchronous,
        pool=settings.database_pool,
        statement_s=settings.statement_seconds,
        lock_s=settings.lock_seconds,
        name=f"mirrorflow {role}",
    )


def engine_for(settings: Settings, database: Database, metrics: EngineMetrics, *, works: bool = True) -> Engine:
    """The engine as the settings want it, not started yet; with its figures among the metrics."""
    runner = Runner(
        Registry.load(),
        data_dir=settings.data_dir,
        artifacts=settings.artifacts,
        roots=settings.allowed_roots,
        processes=settings.processes,
        threads=settings.threads,
        concurrency=settings.slots,
    )
    queue, bus = _seams(settings, works=works)
    engine = Engine(
        database,
        runner,
        queue=queue,
        bus=bus,
        works=works,
        labels=frozenset(settings.labels),
        gpus=settings.gpus,
        # The lock on the folder keeps other processes off its SQLite file; a PostgreSQL may have other users.
        alone=settings.alone,
        lease_s=settings.lease_seconds,
        max_nodes=settings.max_nodes,
        seal=Seal(settings.secret_key.get_secret_value() or None, settings.data_dir),
        observe_commit=metrics.committed,
        observe_node=metrics.attempted,
    )
    for problem in engine.registry.problems:
        log.warning("a plugin can't be used", plugin=problem.plugin, reason=problem.message)
    metrics.gauge("queue_depth", "Instances that wait to be looked at", lambda: len(engine.queue))
    metrics.gauge("instances_driven", "Instances under way in this process", lambda: engine.executor.driven)
    return engine


def _seams(settings: Settings, *, works: bool) -> tuple[Queue | None, Bus | None]:
    """Queue and bus over Redis; None and None for the engine's own, in this process."""
    if settings.redis is None:
        return None, None
    from engine.arq_queue import ArqQueue
    from engine.redis_bus import RedisBus

    return ArqQueue(settings.redis, labels=frozenset(settings.labels), listen=works), RedisBus(settings.redis)


def checks(settings: Settings, engine: Engine) -> Checks:
    """What must be in order for this process to be ready. Not Redis: without it work goes on, only later."""

    async def disk() -> None:
        left = (await asyncio.to_thread(shutil.disk_usage, settings.data_dir)).free
        if left < LEAST_SPACE:
            raise StorageUnavailable(f"The disk of the data folder is full: {left // 1024:,} KiB are left. Free some.")

    async def works() -> None:
        if engine.executor.draining:
            raise StorageUnavailable("The server is stopping.")

    return {"database": engine.storage_check, "disk": disk, "engine": works}


# Listening


@contextlib.contextmanager
def bound(host: str, port: int, remedy: str) -> Iterator[socket.socket]:
    """A socket that listens. Raises StartRefused with the remedy."""
    try:
        listener = listening_socket(host, port)
    except OSError as error:
        raise StartRefused(f"Port {port} on {host} can't be used ({error.strerror or error}). {remedy}") from None
    with contextlib.closing(listener):
        yield listener


def url_of(listener: socket.socket) -> str:
    """Where to reach it from this machine."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


@contextlib.asynccontextmanager
async def answering(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[None]:
    """HTTP on the listener until the block ends."""
    http = _Http(config)
    task = asyncio.create_task(http.serve(sockets=[listener]), name="http")
    try:
        await http.ready.wait()
        yield
    finally:
        http.should_exit = True
        await task


# Until the end


def heed_signals(stop: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT asks to stop, the second, which may come while we stop, ends the process."""

    def told(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        log.info("stopping: running nodes may finish; once more ends at once", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told, number)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on the fastest event loop there is."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
