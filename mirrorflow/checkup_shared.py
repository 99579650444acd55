"""What ``mirrorflow doctor`` looks at where many processes share a PostgreSQL and a Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from mirrorflow.checkup import Finding, Level
from mirrorflow.settings import Settings

if TYPE_CHECKING:
    from db.session import Database

T = TypeVar("T")

#: Two clocks that differ by more make times in lists and logs hard to compare, and due times come late or early.
CLOCKS_DIFFER_S = 2.0
#: Of all connections that the server takes; beyond it the next process may get none.
CROWDED = 0.9


def postgresql(settings: Settings) -> Iterator[Finding]:
    """The server, its clock beside ours, its connections."""
    from db.store import checkup
    from engine import clock

    async def asked(database: Database) -> tuple[checkup.Server, float]:
        await database.read(checkup.server)  # connects, which takes its time
        before = clock.now()
        server = await database.read(checkup.server)
        return server, (server.now - before - (clock.now() - before) / 2).total_seconds()

    server, apart = _ask(settings, asked)
    yield Finding(
        Level.FINE, "postgresql", f"version {server.version}, {server.used} of {server.most} connections used"
    )
    if abs(apart) > CLOCKS_DIFFER_S:
        message = f"ours is {abs(apart):.1f} s {'behind' if apart > 0 else 'ahead of'} the database's. Run NTP on both."
        yield Finding(Level.WRONG, "clocks", message)
    else:
        yield Finding(Level.FINE, "clocks", f"ours and the database's differ by {abs(apart) * 1000:.0f} ms")
    room = server.most * CROWDED - server.used
    if room < settings.database_pool:
        message = (
            f"only {server.most - server.used} are left and a process may take {settings.database_pool}: raise "
            "max_connections in PostgreSQL, or lower MIRRORFLOW_DATABASE_POOL."
        )
        yield Finding(Level.WRONG, "connections", message)


def redis(settings: Settings) -> Iterator[Finding]:
    """Whether it answers and can be used."""
    from flow.errors import RedisUnavailable

    if settings.redis is None:
        message = "none: one process only. Set MIRRORFLOW_REDIS_URL for `serve --no-worker` and `worker`."
        yield Finding(Level.NOTE, "redis", message)
        return
    try:
        from engine.redis import redis_check

        began = time.perf_counter()
        faults = asyncio.run(redis_check(settings.redis))
    except ImportError:
        yield Finding(Level.WRONG, "redis", "its packages are missing: pip install 'mirrorflow[distributed]'")
    except RedisUnavailable as error:
        yield Finding(Level.WRONG, "redis", error.message)
    else:
        yield Finding(Level.FINE, "redis", f"answers ({(time.perf_counter() - began) * 1000:.0f} ms)")
        for fault in faults:
            yield Finding(Level.NOTE, "redis", fault)


def artifacts(settings: Settings) -> Iterator[Finding]:
    """Whether the folder is the one of all processes."""
    from mirrorflow.artifact_guard import difference

    folder = settings.artifacts
    wrong = _ask(settings, lambda database: difference(database, folder, mark=False))
    if wrong is None:
        yield Finding(Level.FINE, "artifacts", f"{folder}")
    else:
        yield Finding(Level.WRONG, "artifacts", wrong)


def workers(settings: Settings) -> Iterator[Finding]:
    """Whether anybody is there to work, and whether all are the same program."""
    from db.store import workers as store
    from engine.version import VERSION

    live = _ask(settings, lambda database: database.read(store.live))
    takers = [worker for worker in live if not worker.draining]
    if not takers:
        also = f" ({len(live)} drain)" if live else ""
        yield Finding(Level.WRONG, "workers", f"none takes work{also}: start `mirrorflow worker`.")
        return
    labels = ", ".join(sorted(set().union(*(worker.labels for worker in takers)))) or "none"
    yield Finding(Level.FINE, "workers", f"{len(takers)} take work; labels: {labels}")
    if others := sorted({worker.version for worker in live} - {VERSION}):
        message = f"some run version {', '.join(others)}, this is {VERSION}: finish the upgrade."
        yield Finding(Level.NOTE, "workers", message)


def _ask(settings: Settings, question: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    from mirrorflow.processes import connected

    async def answer() -> T:
        database = connected(settings, "doctor")
        try:
            return await question(database)
        finally:
            await database.close()

    return asyncio.run(answer())
