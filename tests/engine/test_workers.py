"""The registry of workers: who says what of itself, who hears it, and whom work is given to."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from db.session import Database
from db.store import workers as store
from db.store.workers import HEARTBEAT_S
from engine.access import DEFAULT_PROJECT, LOCAL, ROLES, Actor
from engine.bus import LocalBus
from engine.workers import TOPIC, Workers
from flow.errors import Conflict, Denied, NotFound

VIEWER = Actor("usr-v", "viewer", DEFAULT_PROJECT, ROLES["viewer"])


class Figures:
    """A worker's figures, to be changed by a test."""

    def __init__(self) -> None:
        self.running = {"thread": 0}
        self.instances = 0
        self.drained = asyncio.Event()


@asynccontextmanager
async def registered(
    database: Database, bus: LocalBus, id: str, figures: Figures | None = None, **fields: Any
) -> AsyncIterator[Workers]:
    """A worker of four threads that is in the registry until the block ends."""
    figures = figures or Figures()
    given: dict[str, Any] = {"version": "1", "slots": lambda: {"thread": 4}} | fields
    workers = Workers(
        database,
        bus,
        id=id,
        host="here",
        pid=7,
        running=lambda: figures.running,
        instances=lambda: figures.instances,
        on_drain=figures.drained.set,
        **given,
    )
    await workers.start()
    try:
        yield workers
    finally:
        await workers.stop()


async def until(true: Callable[[], bool], within: float = 10.0) -> None:
    """Return once it is true."""
    async with asyncio.timeout(within):
        while not true():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


async def test_who_started_later_knows_who_is_there(sqlite_database: Database) -> None:
    """A worker knows the others and itself from its start on, new ones at once, and stopped ones no more."""
    bus = LocalBus()
    async with registered(sqlite_database, bus, "a") as first:
        assert [worker.id for worker in first.live()] == ["a"]
        async with registered(sqlite_database, bus, "b", labels=frozenset({"gpu"})) as second:
            assert [(worker.id, worker.labels) for worker in second.live()] == [("a", frozenset()), ("b", {"gpu"})]
            await until(lambda: [worker.id for worker in first.live()] == ["a", "b"], HEARTBEAT_S - 1)
        async with registered(sqlite_database, bus, "c", works=False) as watcher:
            assert [worker.id for worker in watcher.live()] == ["a"]


async def test_watchers_are_told_who_changed(sqlite_database: Database) -> None:
    """At its start, when it becomes busy or idle, when it drains and when it stops."""
    bus, figures = LocalBus(), Figures()
    with bus.subscribe(TOPIC) as told:
        async with asyncio.timeout(10), registered(sqlite_database, bus, "a", figures) as workers:
            assert await told.take() == ["a"]
            figures.running, figures.instances = {"thread": 1}, 1
            assert await told.take() == ["a"]
            [now] = await sqlite_database.read(store.live)
            assert (now.running, now.instances) == ({"thread": 1}, 1)
            workers.drain()
            assert await told.take() == ["a"]
            [now] = await sqlite_database.read(store.live)
            assert now.draining
            assert not figures.drained.is_set()  # it knew that itself
        assert await told.take() == ["a"]


async def test_a_worker_is_asked_to_drain(sqlite_database: Database) -> None:
    """It is told at once, and it says so in the registry; others don't drain."""
    bus, asked, other = LocalBus(), Figures(), Figures()
    async with (
        registered(sqlite_database, bus, "a", asked) as workers,
        registered(sqlite_database, bus, "b", other),
        registered(sqlite_database, bus, "api", works=False) as api,
    ):
        await api.ask_to_drain(LOCAL, "a")
        async with asyncio.timeout(4):
            await asked.drained.wait()
        await api.ask_to_drain(LOCAL, "a")
        assert not other.drained.is_set()
        assert {worker.id: worker.state for worker in workers.live()} == {"a": "DRAINING", "b": "ONLINE"}


async def test_a_wish_that_the_bus_lost_is_heard_with_the_next_heartbeat(sqlite_database: Database) -> None:
    """The bus only hurries it."""
    asked = Figures()
    async with (
        registered(sqlite_database, LocalBus(), "a", asked),
        registered(sqlite_database, LocalBus(), "api", works=False) as api,
    ):
        await api.ask_to_drain(LOCAL, "a")
        asked.instances = 1  # becomes busy, so its next heartbeat is soon
        async with asyncio.timeout(10):
            await asked.drained.wait()


async def test_only_a_worker_that_is_there_can_drain(sqlite_database: Database) -> None:
    """An unknown one is not found, a stopped one is a conflict, and a viewer may not ask."""
    bus = LocalBus()
    async with registered(sqlite_database, bus, "a"):
        pass
    async with registered(sqlite_database, bus, "api", works=False) as api:
        with pytest.raises(NotFound):
            await api.ask_to_drain(LOCAL, "nobody")
        with pytest.raises(Conflict) as caught:
            await api.ask_to_drain(LOCAL, "a")
        assert caught.value.details == {"state": "OFFLINE"}
        with pytest.raises(Denied):
            await api.ask_to_drain(VIEWER, "a")


async def test_work_goes_to_whom_it_fits(sqlite_database: Database) -> None:
    """All labels and enough GPUs; the most free places first, counted down as they are given away."""
    bus, busy = LocalBus(), Figures()
    busy.running = {"thread": 3}
    gpu, eu = frozenset({"gpu"}), frozenset({"gpu", "eu"})
    async with (
        registered(sqlite_database, bus, "plain"),
        registered(sqlite_database, bus, "gpu", busy, labels=gpu, gpus=1),
        registered(sqlite_database, bus, "eu", labels=eu, gpus=4) as workers,
    ):
        assert workers.label_set_for({"eu"}) == eu
        assert workers.label_set_for({"gpu"}, gpus=2) == eu
        assert workers.label_set_for({"gpu"}, gpus=8) is None
        assert workers.label_set_for({"us"}) is None
        # Two of the four places are given; one more, and both sets have one place: the smaller set first.
        assert [workers.label_set_for({"gpu"}) for _ in range(3)] == [eu, gpu, eu]
        assert workers.label_set_for(()) == frozenset()
        workers.drain()
        await until(lambda: workers.label_set_for({"eu"}) is None)
        assert workers.label_set_for({"gpu"}) == gpu


async def test_different_versions_are_told_once(sqlite_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """By each worker, in one line that names them, when the second version appears, and not with every heartbeat."""
    bus, figures = LocalBus(), Figures()
    caplog.set_level(logging.WARNING, "engine.workers")
    async with registered(sqlite_database, bus, "a"):
        assert not caplog.records
        async with registered(sqlite_database, bus, "b", figures, version="2"):
            await until(lambda: len(caplog.records) == 2)
            with bus.subscribe(TOPIC) as told:
                figures.instances = 1
                await told.take()
            said = [record.getMessage() for record in caplog.records]
            assert said == ["workers of different versions share this database: 1, 2"] * 2


async def test_a_database_that_is_away_ends_no_heartbeat(
    sqlite_database: Database, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker goes on, says so once, and is heard again as soon as it can be."""
    bus, figures = LocalBus(), Figures()
    caplog.set_level(logging.INFO, "engine.workers")
    async with registered(sqlite_database, bus, "a", figures):
        with sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            figures.instances = 1
            await until(lambda: bool(caplog.records))
            other.execute("ROLLBACK")
        await until(lambda: len(caplog.records) == 2)
        [away, again] = [record.getMessage() for record in caplog.records]
        assert away.startswith("this worker can't say that it lives: The database is locked")
        assert again == "this worker can say again that it lives"
        assert [worker.instances for worker in await sqlite_database.read(store.live)] == [1]
