"""Which of the offered attempts a worker gets, on both databases."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import update

from db.models import RemoteAttempt
from db.session import Database
from db.store import offers
from db.store.entries import Offer
from db.store.journal import commit
from tests.db.test_journal import create, prepare

NONE = frozenset[str]()


@pytest.fixture
async def database(database: Database) -> Database:
    """A database with one run, ``inst-1``."""

    await database.write(prepare)
    await database.write(commit, [create()])
    return database


def offer(name: str, lane: str = "async", *labels: str, gpus: int = 0, priority: int = 5) -> Offer:
    return Offer(name, name, 1, lane, labels, gpus, priority)


async def put(database: Database, *made: Offer) -> None:
    for one in made:
        await database.write(offers.put, "inst-1", "proj-a", [one])


async def claimed(
    database: Database, room: dict[str, int], labels: frozenset[str] = NONE, gpus: int = 0
) -> Sequence[str]:
    taken = await database.write(offers.claim, "w", 15.0, labels, room, gpus)
    return sorted(one.id for one in taken)


async def test_the_oldest_go_first_and_the_urgent_before_them(database: Database) -> None:
    """A step of priority is worth ten seconds of waiting."""
    await put(database, *(offer(f"n{number}") for number in range(4)), offer("urgent", priority=6))
    assert await claimed(database, {"async": 1}) == ["urgent"]
    assert await claimed(database, {"async": 2}) == ["n0", "n1"]
    assert await claimed(database, {"async": 9}) == ["n2", "n3"]
    assert await claimed(database, {"async": 9}) == []


async def test_one_lane_keeps_no_other_waiting(database: Database) -> None:
    """However many are before them in a lane that has hardly a place, the free places of another are filled."""
    await put(database, *(offer(f"a{number}") for number in range(9)), offer("t0", "thread"), offer("t1", "thread"))
    assert await claimed(database, {"async": 1, "thread": 2}) == ["a0", "t0", "t1"]


async def test_only_what_fits_is_taken(database: Database) -> None:
    """Labels that the worker lacks, lanes without a place, more cards than are left: those stay for others."""
    await put(
        database,
        offer("eu", "async", "eu"), offer("both", "async", "eu", "gpu"), offer("any"), offer("process", "process"),
        offer("one", "thread", "gpu", gpus=1), offer("two", "thread", "gpu", gpus=2),
        offer("more", "thread", "gpu", gpus=1),
    )  # fmt: skip
    assert await claimed(database, {"async": 9, "process": 0}) == ["any"]
    assert await claimed(database, {"async": 9}, frozenset({"gpu"})) == []
    assert await claimed(database, {"thread": 2}, frozenset({"gpu"}), gpus=2) == ["more", "one"]
    assert await claimed(database, {"async": 9, "process": 9}, frozenset({"eu", "gpu"})) == ["both", "eu", "process"]
    assert await claimed(database, {"thread": 9}, frozenset({"gpu", "x"}), gpus=2) == ["two"]


async def test_what_is_given_back_is_the_next_again(database: Database) -> None:
    """Its age counts from the first time."""
    await put(database, offer("first"), offer("second"))
    assert await claimed(database, {"async": 1}) == ["first"]
    await database.write(offers.release, "w", ["first"])
    assert await claimed(database, {"async": 1}) == ["first"]


async def test_what_an_older_program_offers_is_taken_too(database: Database) -> None:
    """It knows of no rank."""
    await put(database, offer("old"), offer("older"), offer("new"))
    nothing = update(RemoteAttempt).where(RemoteAttempt.id != "new").values(ranked_at=None)
    await database.write(lambda connection: connection.execute(nothing) and None)
    assert await claimed(database, {"async": 9}) == ["new", "old", "older"]
