"""What is measured, set up afresh: one server alone, or a server without workers, workers, PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.client import Client, client
from db import migrate
from tests.live.server import Server
from tests.postgres import Postgres
from tests.redis import RedisServer

QUIET = {"MIRRORFLOW_LOG_LEVEL": "warning"}
#: As in operation: every commit is on the disk before it is answered, and the housekeeping runs.
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "autovacuum": "on"}

#: ``measured(connections, **env)`` gives a quiet server and a client of it with so many connections.
Measured = Callable[..., AbstractAsyncContextManager[tuple[Server, Client]]]


@asynccontextmanager
async def embedded(connections: int = 1, **env: str) -> AsyncGenerator[tuple[Server, Client], None]:
    """One server over an empty folder."""
    with tempfile.TemporaryDirectory(prefix="mirrorflow-bench-") as folder:
        async with Server(Path(folder) / "data", env=QUIET | env) as server:
            async with client(server.port, server.token, connections) as talk:
                yield server, talk
            await server.stop()


@dataclass(frozen=True, slots=True)
class Stand:
    """A distributed Mirrorflow on this machine."""

    server: Server
    workers: tuple[Server, ...]
    postgres: Postgres
    redis: RedisServer
    url: str
    talk: Client


@asynccontextmanager
async def distributed(
    workers: int = 2, *, args: tuple[str, ...] = (), connections: int = 1, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Stand, None]:
    """A server without workers, and so many workers (started with ``args``), over databases of their own."""
    with tempfile.TemporaryDirectory(prefix="mirrorflow-bench-") as folder, _databases() as (postgres, redis):
        url = postgres.create()
        await asyncio.to_thread(migrate.upgrade, url)
        given = QUIET | {"MIRRORFLOW_DATABASE_URL": url, "MIRRORFLOW_REDIS_URL": redis.url} | dict(env or {})
        server = Server(Path(folder) / "data", env=given, args=("--no-worker",))
        hands = tuple(Server(Path(folder) / "data", command="worker", env=given, args=args) for _ in range(workers))
        started: list[Server] = []
        try:
            for each in (server, *hands):
                started.append(each)
                await each.start()
            async with client(server.port, server.token, connections) as talk:
                yield Stand(server, hands, postgres, redis, url, talk)
            for each in reversed(started):
                await each.stop()
        finally:
            for each in started:
                await each.__aexit__(None, None, None)


def measured_by(workers: int) -> Measured:
    """``measured`` for workloads that know nothing of workers."""

    @asynccontextmanager
    async def measured(connections: int = 1, **env: str) -> AsyncGenerator[tuple[Server, Client], None]:
        async with distributed(workers, connections=connections, env=env) as stand:
            yield stand.server, stand.talk

    return measured


@contextmanager
def _databases() -> Iterator[tuple[Postgres, RedisServer]]:
    postgres = Postgres(DURABLE)
    try:
        redis = RedisServer()
        try:
            yield postgres, redis
        finally:
            redis.close()
    finally:
        postgres.close()
