"""D1 to D4: what only a distributed Mirrorflow has: idle costs, a second worker, the price of a run by part, locks."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from sqlalchemy import make_url

from bench.client import Client
from bench.report import line
from bench.stands import Stand, distributed
from bench.workflows import chain
from bench.workloads import FAILED, OPEN, START, store
from tests.live.mischief import plugin
from tests.live.server import ROOT, wait_until

IDLE_S = 20.0
WAIT = '''
"""A node that holds its place and does nothing, as one does that waits for another machine."""

import asyncio

from mirrorflow import Placement, node


@node("bench/hold", title="Hold", placement=Placement.ASYNC)
async def hold(ctx):
    """Waits."""
    await asyncio.sleep(float(ctx.parameters["seconds"]))
'''


async def idle() -> None:
    """D1: processor time and memory of each part with nothing to do, and what it asks of PostgreSQL and Redis."""
    async with distributed(2) as stand:
        await asyncio.sleep(10)
        async with _costs(stand) as found:
            await asyncio.sleep(IDLE_S)
        for part, seconds in found.cpu_s.items():
            each = 2 if part == "workers" else 1
            line("D1", f"idle CPU of {part}{', each' if each > 1 else ''}", [seconds / IDLE_S / each * 100], "%")
        line("D1", "idle PostgreSQL transactions", [found.transactions / IDLE_S], "1/s")
        line("D1", "idle Redis commands", [found.redis_commands / IDLE_S], "1/s")
        for name, server in (("server", stand.server), ("worker", stand.workers[0])):
            line("D1", f"idle memory of the {name}", [psutil.Process(server.pid).memory_info().rss / 1e6], "MB")


async def second_worker() -> None:
    """D2: runs a second over one worker and over two, with nodes that wait, that compute, and that do nothing."""
    kinds: list[tuple[str, str, dict[str, Any], int, int, tuple[str, ...]]] = [
        ("nodes that wait 200 ms, 8 places a worker", "bench/hold", {"seconds": 0.2}, 2, 300, ("--slots", "8")),
        ("nodes that compute 25 ms", "bench/fib", {"n": 27}, 2, 60, ()),
        ("nodes that do nothing", "core/noop", {}, 5, 600, ()),
    ]
    with tempfile.TemporaryDirectory(prefix="mirrorflow-bench-") as folder:
        path = plugin(Path(folder), "bench_hold", WAIT)
        for name, type, parameters, nodes, runs, args in kinds:
            rates: dict[int, list[float]] = {}
            for workers in (1, 2):
                env = {"PYTHONPATH": f"{path}:{ROOT}"}
                async with distributed(workers, args=args, connections=16, env=env) as stand:
                    workflow = await store(stand.server, chain("d2", nodes, type, parameters))
                    await load(stand.talk, workflow, runs // 4)
                    rates[workers] = [runs / await load(stand.talk, workflow, runs) for _ in range(3)]
                    assert (await stand.talk.query(FAILED))["instances"]["totalCount"] == 0
                line("D2", f"{name}: {workers} worker{'s' * (workers > 1)}", rates[workers], "instances/s")
            factor = statistics.median(rates[2]) / statistics.median(rates[1])
            line("D2", f"{name}: two against one", [factor], "ratio")


async def price() -> None:
    """D3: what an instance of five no-ops costs each part, in processor time, commits, log and messages; D4: what
    PostgreSQL's clients wait for meanwhile.
    """
    runs = 2_000
    async with distributed(2, connections=16) as stand:
        workflow = await store(stand.server, chain("d3", 5, "core/noop"))
        await load(stand.talk, workflow, 300)
        async with _waits(stand) as waits, _costs(stand) as found:
            seconds = await load(stand.talk, workflow, runs)
        assert (await stand.talk.query(FAILED))["instances"]["totalCount"] == 0
    line("D3", "instances a second", [runs / seconds], "1/s")
    for part, spent in found.cpu_s.items():
        line("D3", f"CPU of {part} per instance", [spent / runs * 1000], "ms of CPU")
    line("D3", "PostgreSQL transactions per instance", [found.transactions / runs], "1")
    line("D3", "write-ahead log per instance", [found.wal_bytes / runs / 1000], "kB")
    line("D3", "Redis commands per instance", [found.redis_commands / runs], "1")
    line("D3", "bytes through Redis per instance", [found.redis_bytes / runs / 1000], "kB")
    samples = sum(waits.values())
    for (kind, event, statement), count in waits.most_common(12):
        line("D4", f"{kind}/{event}", [count / max(1, samples) * 100], "% of active clients", statement=statement)
    locked = sum(count for (kind, *_), count in waits.items() if kind == "Lock")
    line("D4", "waiting for a row that another holds", [locked / max(1, samples) * 100], "% of active clients")


async def load(talk: Client, workflow: str, runs: int) -> float:
    """Submit so many over all connections; seconds from the first byte until none is open."""
    raw = talk.encoded(START, {"input": {"workflow": {"id": workflow}}})
    began = time.perf_counter()
    for answer in await asyncio.gather(*(talk.send(raw) for _ in range(runs))):
        assert answer["instanceStart"]["__typename"] == "InstanceStartPayload", answer

    async def ended() -> bool:
        return not (await talk.query(OPEN))["instances"]["totalCount"]

    await wait_until(ended, 180)
    return time.perf_counter() - began


class Costs:
    """What was spent between two moments."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.transactions = self.wal_bytes = self.redis_commands = self.redis_bytes = 0


@asynccontextmanager
async def _costs(stand: Stand) -> AsyncGenerator[Costs, None]:
    found = Costs()
    before = await _now(stand)
    yield found
    await asyncio.sleep(1.1)  # PostgreSQL's backends tell their figures once a second
    after = await _now(stand)
    found.cpu_s = {part: after[0][part] - spent for part, spent in before[0].items()}
    found.transactions, found.wal_bytes, found.redis_commands, found.redis_bytes = (
        now - then for now, then in zip(after[1:], before[1:], strict=True)
    )


async def _now(stand: Stand) -> tuple[dict[str, float], int, int, int, int]:
    parts: dict[str, Sequence[int]] = {
        "server": [stand.server.pid],
        "workers": [worker.pid for worker in stand.workers],
        "PostgreSQL": [stand.postgres._server.pid],
        "Redis": [stand.redis._process.pid if stand.redis._process else 0],
    }
    database = make_url(stand.url).database
    [[transactions, log]] = await asyncio.to_thread(
        stand.postgres.execute,
        "SELECT sum(xact_commit)::bigint, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint "
        f"FROM pg_stat_database WHERE datname = '{database}'",
        stand.url,
    )
    told: bytes = await asyncio.to_thread(stand.redis.command, "INFO", "stats")
    redis = dict(row.split(":", 1) for row in told.decode().splitlines() if ":" in row)
    through = int(redis["total_net_input_bytes"]) + int(redis["total_net_output_bytes"])
    spent = {part: sum(map(_cpu_s, pids)) for part, pids in parts.items()}
    return spent, transactions, log, int(redis["total_commands_processed"]), through


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of a process, its children, and those that have ended."""
    process = psutil.Process(pid)
    times = [process.cpu_times()]
    for child in process.children(recursive=True):
        try:
            times.append(child.cpu_times())
        except psutil.NoSuchProcess:
            continue
    return float(sum(each.user + each.system + each.children_user + each.children_system for each in times))


@asynccontextmanager
async def _waits(stand: Stand) -> AsyncGenerator[Counter[tuple[str, str, str]], None]:
    """What clients of PostgreSQL that are in a statement wait for, looked at a hundred times a second."""
    found: Counter[tuple[str, str, str]] = Counter()
    url = make_url(stand.url)
    connection = await asyncpg.connect(
        host=str(url.query["host"]), user="postgres", database=url.database, statement_cache_size=10
    )

    async def look() -> None:
        while True:
            rows = await connection.fetch(
                "SELECT coalesce(wait_event_type, 'CPU'), coalesce(wait_event, 'running'), left(query, 60) "
                "FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active' "
                "AND pid <> pg_backend_pid()"
            )
            found.update((kind, event, statement) for kind, event, statement in rows)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await connection.close()


SPREAD: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"D1": idle, "D2": second_worker, "D3": price}
