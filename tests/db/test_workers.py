"""The registry of workers in SQL, on both databases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from db.models import Worker
from db.session import Database
from db.store import keyset, workers
from db.store.dbclock import db_now
from db.store.workers import Heartbeat


def heartbeat(id: str = "a", **fields: Any) -> Heartbeat:
    """What a worker says that has two threads and does nothing."""
    said = Heartbeat(
        id=id, host="here", pid=7, version="1", labels=frozenset(), gpus=0,
        slots={"thread": 2}, running={"thread": 0}, instances=0, draining=False,
    )  # fmt: skip
    return replace(said, **fields)


def silent_for(connection: Connection, id: str, seconds: float) -> None:
    """As if the worker's last heartbeat had been so long ago."""
    connection.execute(update(Worker).where(Worker.id == id).values(heartbeat_at=db_now(-seconds)))


def states(connection: Connection) -> dict[str, str]:
    """The state of every worker in the list."""
    page = keyset.page(connection, workers.WORKERS, "any project", keyset.EVERY, keyset.Slice("STARTED"))
    return {row.id: row.state for row in page.rows}


async def test_a_worker_is_known_from_its_first_heartbeat(database: Database) -> None:
    """A heartbeat registers, the next one replaces the figures, and the answer says who is alive."""
    said = heartbeat(labels=frozenset({"gpu", "eu"}), gpus=2)
    [first] = (await database.write(workers.beat, said)).live
    assert first.labels == {"gpu", "eu"}
    assert (first.gpus, first.state, first.free(), first.free("thread"), first.free("process")) == (
        2,
        "ONLINE",
        2,
        2,
        0,
    )
    heard = await database.write(workers.beat, replace(said, running={"thread": 2}, instances=5))
    [now] = heard.live
    assert (now.running, now.instances, now.free(), heard.draining) == ({"thread": 2}, 5, 0, False)
    await database.write(workers.beat, heartbeat("b"))
    assert await database.read(states) == {"a": "ONLINE", "b": "ONLINE"}


async def test_silence_is_the_end(database: Database) -> None:
    """Three missed heartbeats make a worker OFFLINE, and the next heartbeat makes it ONLINE again."""
    await database.write(workers.beat, heartbeat())
    await database.write(silent_for, "a", workers.OFFLINE_AFTER_S - 3)
    assert await database.read(states) == {"a": "ONLINE"}
    await database.write(silent_for, "a", workers.OFFLINE_AFTER_S + 1)
    assert await database.read(states) == {"a": "OFFLINE"}
    assert await database.read(workers.live) == ()
    assert len((await database.write(workers.beat, heartbeat())).live) == 1
    assert await database.read(states) == {"a": "ONLINE"}


async def test_a_stopped_worker_is_offline_at_once(database: Database) -> None:
    """Whoever stops in order need not be silent for long, and runs nothing any more."""
    await database.write(workers.beat, heartbeat(running={"thread": 1}, instances=1))
    await database.write(workers.stop, "a")
    assert await database.read(states) == {"a": "OFFLINE"}
    assert await database.read(workers.live) == ()
    row = await database.read(lambda connection: connection.execute(select(Worker.running, Worker.instances)).one())
    assert tuple(row) == ({}, 0)


async def test_a_wish_to_drain_stays(database: Database) -> None:
    """It is told with every heartbeat; asking a worker that is gone or was never there asks nothing."""
    assert await database.write(workers.ask_to_drain, "a") is None
    await database.write(workers.beat, heartbeat())
    assert await database.write(workers.ask_to_drain, "a") == "ONLINE"
    assert await database.write(workers.ask_to_drain, "a") == "DRAINING"
    assert (await database.write(workers.beat, heartbeat())).draining
    [seen] = (await database.write(workers.beat, heartbeat())).live
    assert seen.state == "DRAINING"
    assert not seen.fits(())
    await database.write(silent_for, "a", workers.OFFLINE_AFTER_S + 1)
    assert await database.write(workers.ask_to_drain, "a") == "OFFLINE"


async def test_a_draining_worker_says_so(database: Database) -> None:
    """By its own word, from the first heartbeat that says it."""
    await database.write(workers.beat, heartbeat())
    assert (await database.write(workers.beat, heartbeat(draining=True))).draining
    assert await database.read(states) == {"a": "DRAINING"}


async def test_the_long_gone_are_forgotten(database: Database) -> None:
    """A day after their last heartbeat, a few at a time; never a worker that may come back."""
    for id in "abcd":
        await database.write(workers.beat, heartbeat(id))
    for id in "abc":
        await database.write(silent_for, id, workers.FORGET_AFTER_S + 5)
    await database.write(silent_for, "d", workers.FORGET_AFTER_S - 60)
    assert await database.write(workers.forget, 2) == 2
    assert await database.write(workers.forget, 2) == 1
    assert await database.write(workers.forget, 2) == 0
    assert await database.read(states) == {"d": "OFFLINE"}


@pytest.mark.parametrize(
    ("field", "op", "value", "found"),
    [
        ("label", "contains", "gpu", {"a"}),
        ("label", "contains", "gp", set()),
        ("state", "in", ("ONLINE", "DRAINING"), {"a"}),
        ("state", "eq", "OFFLINE", {"b"}),
        ("host", "contains", "HER", {"a", "b"}),
        ("version", "eq", "2", {"b"}),
    ],
)
async def test_the_list_can_be_filtered(
    database: Database, field: str, op: keyset.Op, value: Any, found: set[str]
) -> None:
    """By label, state, host and version."""
    await database.write(workers.beat, heartbeat("a", labels=frozenset({"gpu", "eu"})))
    await database.write(workers.beat, heartbeat("b", version="2"))
    await database.write(workers.stop, "b")
    where = keyset.Compare(field, op, value)
    page = await database.read(keyset.page, workers.WORKERS, "", where, keyset.Slice("HOST"))
    assert {row.id for row in page.rows} == found
    assert await database.read(keyset.count, workers.WORKERS, "", where) == len(found)
