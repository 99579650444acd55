"""Servers in SQL, on both databases: checks are claimed once, and what they find moves the status."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from db.models import ServerCheck
from db.session import Database
from db.store import access, keyset
from db.store import servers as store
from db.store.servers import Found, StoredServer
from flow.servers import CheckOutcome, ServerStatus

PROJECT = "proj-1"
AT = datetime(2026, 11, 21, tzinfo=UTC)


def server(id: str, **given: Any) -> StoredServer:
    values: dict[str, Any] = {
        "project_id": PROJECT, "name": id, "url": "http://host", "type": "http", "enabled": True, "batch_size": 5,
        "status": "OFFLINE", "failures": 0, "last_check_at": None, "latency_ms": None, "capabilities": None,
        "last_error": None, "sealed_token": None, "change_seq": 1, "created_at": AT, "created_by": None,
        "updated_at": AT, "updated_by": None,
    }  # fmt: skip
    return StoredServer(id=id, **values | given)


def found(number: int, outcome: CheckOutcome, **given: Any) -> Found:
    values: dict[str, Any] = {"latency_ms": 1.5, "capabilities": None, "message": None}
    return Found(f"chk-{number:03}", AT + timedelta(seconds=number), outcome, **values | given)


@pytest.fixture
async def db(database: Database) -> Database:
    await database.write(access.ensure_project, PROJECT, "one", AT)
    return database


async def test_what_is_stored_is_read_again(db: Database) -> None:
    """Every column, by id and by name, and only in its project."""
    given = server("srv-1", name="近江", capabilities={"gpu": [1]}, sealed_token="1.x", latency_ms=0.25)
    await db.write(store.insert_server, given)
    assert await db.read(store.server, PROJECT, "srv-1") == given
    assert await db.read(store.server_named, PROJECT, "近江") == given
    assert await db.read(store.server, "proj-2", "srv-1") is None
    assert await db.read(store.servers, "proj-2", ["srv-1"]) == {}


async def test_each_check_is_claimed_once(db: Database) -> None:
    """However many processes look at the same moment, each server that is due is given to one of them, and to nobody
    again before its time; a disabled one to nobody.
    """
    for number in range(20):
        await db.write(store.insert_server, server(f"srv-{number:02}", enabled=number != 0))
    takers = await asyncio.gather(*(db.write(store.claim_due, 15.0, 7) for _ in range(6)))
    claimed = [row.id for taken in takers for row in taken]
    assert sorted(claimed) == [f"srv-{number:02}" for number in range(1, 20)]
    assert await db.write(store.claim_due, 15.0, 100) == []
    due_in = await db.read(store.due_in)
    assert due_in is not None
    assert 0 < due_in <= 15


async def test_what_is_due_is_told(db: Database) -> None:
    """Nothing without servers; at once after an insertion; again when somebody says so."""
    assert await db.read(store.due_in) is None
    await db.write(store.insert_server, server("srv-1"))
    overdue = await db.read(store.due_in)
    assert overdue is not None
    assert overdue <= 0
    await db.write(store.claim_due, 15.0, 1)
    await db.write(store.update_server, PROJECT, "srv-1", due=True, name="new")
    [again] = await db.write(store.claim_due, 15.0, 1)
    assert again.name == "new"


async def test_failures_in_a_row_move_the_status(db: Database) -> None:
    """The third failure makes ONLINE OFFLINE or ERROR, by its kind; one good check in between begins anew."""
    row = server("srv-1")
    await db.write(store.insert_server, row)
    outcomes = [
        (CheckOutcome.OK, ServerStatus.ONLINE),
        (CheckOutcome.REFUSED, ServerStatus.ONLINE),
        (CheckOutcome.TIMEOUT, ServerStatus.ONLINE),
        (CheckOutcome.OK, ServerStatus.ONLINE),
        (CheckOutcome.REFUSED, ServerStatus.ONLINE),
        (CheckOutcome.TIMEOUT, ServerStatus.ONLINE),
        (CheckOutcome.REFUSED, ServerStatus.OFFLINE),
        (CheckOutcome.WRONG_ANSWER, ServerStatus.ERROR),
        (CheckOutcome.BUSY, ServerStatus.BUSY),
        (CheckOutcome.WRONG_ANSWER, ServerStatus.BUSY),
    ]
    for number, (outcome, after) in enumerate(outcomes):
        moved = await db.write(store.record, row, found(number, outcome, message="why" if outcome.failed else None))
        assert moved is not None
        assert moved[1] is after, number
    kept = await db.read(store.server, PROJECT, "srv-1")
    assert kept is not None
    assert (kept.status, kept.failures, kept.last_error) == ("BUSY", 1, "why")
    assert kept.last_check_at == AT + timedelta(seconds=9)


async def test_maintenance_is_left_alone(db: Database) -> None:
    """No check moves it, however many fail."""
    row = server("srv-1", status="MAINTENANCE")
    await db.write(store.insert_server, row)
    for number, outcome in enumerate([*CheckOutcome] * 3):
        assert await db.write(store.record, row, found(number, outcome)) == (
            ServerStatus.MAINTENANCE,
            ServerStatus.MAINTENANCE,
        )


async def test_a_result_for_another_address_is_thrown_away(db: Database) -> None:
    """A server that was moved, or is gone, takes nothing of what was found before."""
    row = server("srv-1")
    await db.write(store.insert_server, row)
    await db.write(store.update_server, PROJECT, "srv-1", url="http://elsewhere")
    assert await db.write(store.record, row, found(1, CheckOutcome.OK)) is None
    await db.write(store.delete_server, PROJECT, "srv-1")
    assert await db.write(store.record, row, found(2, CheckOutcome.OK)) is None
    assert await db.read(_checks) == 0


async def test_a_hundred_results_are_kept(db: Database) -> None:
    """The oldest go; deleting the server takes the rest with it."""
    row = server("srv-1")
    await db.write(store.insert_server, row)
    for number in range(105):
        await db.write(store.record, row, found(number, CheckOutcome.OK))
    page = await db.read(
        keyset.pages, store.CHECKS, ["srv-1"], keyset.EVERY, keyset.Slice("AT", descending=True, limit=200)
    )
    assert [each.id for each in page["srv-1"].rows] == [f"chk-{number:03}" for number in range(104, 4, -1)]
    await db.write(store.delete_server, PROJECT, "srv-1")
    assert await db.read(_checks) == 0


def _checks(conn: Any) -> int:
    return int(conn.execute(select(func.count()).select_from(ServerCheck)).scalar_one())


async def test_something_is_said_once(db: Database) -> None:
    """Of many at the same time one hears True, and nobody later."""
    said = await asyncio.gather(*(db.write(store.once, "a", "1") for _ in range(5)))
    assert sorted(said) == [False, False, False, False, True]
    assert await db.write(store.once, "b", "1") is True
