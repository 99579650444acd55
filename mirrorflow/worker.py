"""A worker: an engine that drives runs for the servers on the same database, without GraphQL.

SIGTERM: it claims nothing more, its nodes finish within the grace period or are released for others, and it exits
with 0. A second signal ends it at once; nothing that was committed is lost by it. Asked to drain (``workerDrain``), it
takes the time that its nodes need, and exits with 0 once it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from engine.engine import Engine
from mirrorflow.artifact_guard import same_artifacts
from mirrorflow.health import health_application
from mirrorflow.lock import StartRefused, held
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
from mirrorflow.server import http_server
from mirrorflow.settings import Settings

#: How often a worker that drains looks whether it is idle.
IDLE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Working:
    """A worker that is ready. ``url`` is where it answers for its health; None if it doesn't."""

    engine: Engine
    url: str | None


def work(settings: Settings, ready: Callable[[Working], None]) -> int:
    """Work until a signal says to stop; the exit code. Raises StartRefused, or what ``db.migrate.upgrade`` raises."""
    refuse_one_process(settings, "A worker of its own", "`mirrorflow serve` has one in it")
    configure_logging(settings.log_level, settings.log_format)

    async def until_told() -> int:
        stop = asyncio.Event()
        async with running(settings, listener) as worker:
            heed_signals(stop)
            ready(worker)
            await _over(worker.engine, stop)
        return 0

    with held(settings.data_dir, shared=True), _listener(settings) as listener:
        settings.allowed_roots[0].mkdir(parents=True, exist_ok=True)
        stores_ready(settings)
        return run(until_told())


@contextlib.asynccontextmanager
async def running(settings: Settings, listener: socket.socket | None) -> AsyncIterator[Working]:
    """The whole worker, from ready until the block ends."""
    registry = metrics_registry()
    async with contextlib.AsyncExitStack() as stack:
        database = connected(settings, "worker")
        stack.push_async_callback(database.close)
        await same_artifacts(database, settings.artifacts)
        engine = engine_for(settings, database, EngineMetrics(registry))
        await engine.access.ensure_defaults()
        await engine.start()
        if listener is not None:
            http = http_server(health_application(checks(settings, engine), registry)).config
            await stack.enter_async_context(answering(http, listener))
        # Pushed last, so it comes first: the engine stops while its health can still be asked for.
        stack.push_async_callback(engine.stop, settings.grace_seconds)
        # What was made so far lives as long as the process; no collection needs to walk it again.
        gc.collect()
        gc.freeze()
        gc.enable()
        yield Working(engine, None if listener is None else url_of(listener))


async def _over(engine: Engine, stop: asyncio.Event) -> None:
    """Return when a signal says to stop, or when somebody asked the worker to drain and it has nothing left to do."""

    async def drained() -> None:
        await engine.drain_asked.wait()
        while engine.executor.driven or any(engine.executor.running.values()):  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(IDLE_EVERY_S)
        stop.set()

    draining = asyncio.create_task(drained(), name="drained")
    try:
        await stop.wait()
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)


def refuse_one_process(settings: Settings, who: str, instead: str) -> None:
    """Raise StartRefused unless the settings are for many processes."""
    if settings.alone:
        raise StartRefused(
            f"{who} needs PostgreSQL and Redis: SQLite belongs to one process, and {instead}. "
            "Set MIRRORFLOW_DATABASE_URL and MIRRORFLOW_REDIS_URL for more."
        )
    if settings.redis is None:
        raise StartRefused(f"{who} needs Redis, by which processes wake each other. Set MIRRORFLOW_REDIS_URL.")


@contextlib.contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket | None]:
    if settings.health_port == 0:
        yield None
        return
    with bound(settings.host, settings.health_port, "Take another with --health-port, or none.") as listener:
        yield listener
