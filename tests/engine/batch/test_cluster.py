"""Two engines on one PostgreSQL: one holds the batch, the other takes it over when the first is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from db.session import connect
from engine.access import LOCAL
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from tests.engine.batch.doubles import Double, ended, item_rows, project, serving, task_row, until


@asynccontextmanager
async def working(url: str, folder: Path, lease_s: float = 1.0) -> AsyncIterator[Engine]:
    """One engine of many on that database."""
    database = connect(url)
    (folder / "files").mkdir(exist_ok=True)
    runner = Runner(Registry.load(), data_dir=folder, roots=[folder / "files"], processes=1)
    engine = Engine(database, runner, lease_s=lease_s)
    await engine.access.ensure_defaults()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(grace_s=0.0)
        await database.close()


async def test_another_worker_takes_a_batch_over(postgres_url: str, tmp_path: Path) -> None:
    """The holder dies without a word: when its lease has run out the other follows what was submitted, does the rest,
    and the dead one's fence is worth nothing any more.
    """
    double = Double()
    double.hold = True
    names = [f"f{number}.txt" for number in range(5)]
    async with working(postgres_url, tmp_path) as first, working(postgres_url, tmp_path) as second:
        servers = tuple(await serving(first, double))
        second.servers.__dict__["doubles"] = first.servers.__dict__["doubles"]
        await serving(second)
        await second.tasks.stop()
        spec = await project(first, tmp_path, names, servers=servers)
        started = await first.tasks.batch_start(LOCAL, spec)
        await double.has(2)
        await until(first, started, lambda row: row.expanded)
        setattr(first.tasks.driver, "_let_go", _say_nothing)  # noqa: B010  (a dead process gives nothing back)
        await first.tasks.stop()
        assert (await task_row(first, started)).status == "RUNNING"
        await double.let_go()
        await second.tasks.start()
        row = await ended(second, started)
        assert (row.status, row.done, row.total) == ("COMPLETED", 5, 5)
        assert [item.attempts for item in await item_rows(second, started)] == [1] * 5
        assert len(set(double.submits)) == 5


async def test_a_drained_worker_hands_its_batch_over(postgres_url: str, tmp_path: Path) -> None:
    """It lets go at once: the other follows what was submitted, and does the rest, long before a lease runs out."""
    double = Double()
    double.hold = True
    async with working(postgres_url, tmp_path, 60.0) as first, working(postgres_url, tmp_path) as second:
        servers = tuple(await serving(first, double))
        second.servers.__dict__["doubles"] = first.servers.__dict__["doubles"]
        await serving(second)
        await second.tasks.stop()
        spec = await project(first, tmp_path, [f"f{number}.txt" for number in range(5)], servers=servers)
        started = await first.tasks.batch_start(LOCAL, spec)
        await double.has(2)
        await until(first, started, lambda row: row.expanded)
        await second.tasks.start()
        first.drain()
        await double.let_go()
        row = await ended(second, started)
        assert (row.status, row.done, len(set(double.submits))) == ("COMPLETED", 5, 5)
        assert [item.attempts for item in await item_rows(second, started)] == [1] * 5


async def _say_nothing(hold: object) -> None:
    """As a dead process does."""
