"""The ledger in SQL: leases, slots and counts that hold whoever asks, on both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, func, select, update

from db.models import Server, Task, TaskItem
from db.session import Database
from db.store import access, changes, keyset
from db.store import items as ledger
from db.store import tasks as store
from db.store.dbclock import db_now
from db.store.items import NewItem
from db.store.keyset import Compare, Slice
from db.store.tasks import Hold
from flow.errors import LeaseLost, NotFound
from flow.tasks import TaskStatus, TaskStep

AT = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = "proj-a"


async def made(database: Database, id: str = "task-1", files: int = 5, priority: int = 5) -> str:
    """A task of so many files that is due, in a project with a server."""

    def make(connection: Connection) -> None:
        access.ensure_project(connection, PROJECT, PROJECT, AT)
        seq = changes.take(connection, PROJECT)
        store.insert_task(
            connection, id=id, project_id=PROJECT, type="batch", name=id, status="PENDING", priority=priority, spec={},
            change_seq=seq, created_at=AT, updated_at=AT,
        )  # fmt: skip
        store.insert_execution(connection, id, PROJECT, f"exec-{id}", server_id=None, token_sha256="x", at=AT, by=None)
        store.make_due(connection, id)

    await database.write(make)
    if files:
        [hold] = await database.write(store.claim, "maker", 60, 1)
        await database.write(ledger.add, hold, new(id, range(files)), None, {}, AT)
        await database.write(store.release, hold)
    return id


def new(task: str, numbers: range) -> list[NewItem]:
    return [NewItem(f"item-{task}-{n:04d}", f"/in/{n:04d}", f"{n:04d}", 10) for n in numbers]


async def with_server(database: Database, id: str = "srv-1") -> str:
    def make(connection: Connection) -> None:
        values = {
            "id": id, "project_id": PROJECT, "name": id, "url": "http://x", "type": "http", "enabled": True,
            "batch_size": 3, "status": "ONLINE", "failures": 0, "due_at": AT, "change_seq": 1, "created_at": AT,
            "updated_at": AT,
        }  # fmt: skip
        connection.execute(Server.__table__.insert().values(**values))  # type: ignore[attr-defined]

    await database.write(make)
    return id


async def claimed(database: Database, owner: str = "w1") -> Hold:
    [hold] = await database.write(store.claim, owner, 60, 1)
    await database.write(store.begin, hold, AT)
    return hold


async def row_of(database: Database, id: str = "task-1") -> keyset.Record:
    return (await database.read(store.tasks, PROJECT, [id]))[id]


async def test_a_task_is_held_by_one(database: Database) -> None:
    """A second claim finds nothing until the lease has run out; then the first holder can write nothing any more."""
    await made(database)
    hold = await claimed(database)
    assert await database.write(store.claim, "w2", 60, 1) == []
    assert await database.write(store.renew, "w1", [hold], 60) == {"task-1": False}
    await database.write(store.expire_all)
    [taken] = await database.write(store.claim, "w2", 60, 1)
    assert taken.fence == hold.fence + 1
    assert await database.write(store.renew, "w1", [hold], 60) == {}
    for change in (
        lambda c: ledger.take(c, hold, None, 5, 5, AT),
        lambda c: ledger.add(c, hold, [], None, {}, AT),
        lambda c: store.note(c, hold, AT, progress=1.0),
        lambda c: store.end(c, hold, TaskStep.COMPLETE, AT),
    ):
        with pytest.raises(LeaseLost):
            await database.write(change)


async def test_urgent_tasks_are_taken_first(database: Database) -> None:
    """By priority, then by age; a task that nobody has begun is not due."""
    for id, priority in (("task-a", 3), ("task-b", 9), ("task-c", 9)):
        await made(database, id, 0, priority)
    assert (await database.read(store.due_in) or 1) <= 0
    holds = await database.write(store.claim, "w1", 60, 2)
    assert {hold.task_id for hold in holds} == {"task-b", "task-c"}
    assert [hold.task_id for hold in await database.write(store.claim, "w1", 60, 9)] == ["task-a"]
    assert 0 < (await database.read(store.due_in) or 0) <= 60


async def test_the_slots_of_a_server_are_never_more_than_it_has(database: Database) -> None:
    """Two tasks' holders at once: together they take what is free, and what ends is free again."""
    await made(database, "task-1")
    server = await with_server(database)
    first = await claimed(database, "w1")
    await made(database, "task-2")
    second = await claimed(database, "w2")
    both = await asyncio.gather(
        *(database.write(ledger.take, hold, server, 3, 3, AT) for hold in (first, second, first, second))
    )
    assert sum(map(len, both)) == 3
    assert await database.read(store.running_by_server, [server, "srv-9"]) == {server: 3, "srv-9": 0}
    assert (await database.read(store.current_by_server, [server]))[server] in ("task-1", "task-2")
    for hold, taken in zip((first, second, first, second), both, strict=True):
        for item in taken:
            await database.write(ledger.finish, hold, item, TaskStatus.COMPLETED, AT)
    assert await database.read(store.running_by_server, [server]) == {server: 0}
    assert await database.read(store.current_by_server, [server]) == {}


async def test_an_item_ends_once_and_is_counted_once(database: Database) -> None:
    """A second end of the same item changes nothing, and an item that was given back has not ended."""
    await made(database, files=3)
    hold = await claimed(database)
    one, two, three = await database.write(ledger.take, hold, None, 9, 9, AT)
    for _ in range(2):
        await database.write(ledger.finish, hold, one, TaskStatus.COMPLETED, AT, result={"x": 1})
    await database.write(ledger.finish, hold, two, TaskStatus.FAILED, AT, error={"code": "X"})
    assert await database.read(ledger.without_outputs, "task-1") == 1
    await database.write(ledger.give_back, hold, three.id, lost=True)
    row = await row_of(database)
    assert (row.total, row.done, row.failed, row.bytes_total, row.bytes_done) == (3, 1, 1, 30, 10)
    [again] = await database.write(ledger.take, hold, None, 9, 9, AT)
    assert (again.id, again.attempts, again.losses, again.ref) == (three.id, 2, 1, None)


async def test_an_item_that_is_to_wait_waits(database: Database) -> None:
    """It is handed out when its time has come, by the database's clock."""
    await made(database, files=1)
    hold = await claimed(database)
    [item] = await database.write(ledger.take, hold, None, 9, 9, AT)
    await database.write(ledger.give_back, hold, item.id, in_s=60, failed=True)
    assert await database.write(ledger.take, hold, None, 9, 9, AT) == []
    waiting = await database.read(ledger.waiting, "task-1")
    assert waiting.items == 1
    assert 50 < waiting.in_s <= 60
    await database.write(lambda c: c.execute(update(TaskItem).values(due_at=db_now(-1))) and None)
    assert (await database.read(ledger.waiting, "task-1")).in_s == 0
    assert len(await database.write(ledger.take, hold, None, 9, 9, AT)) == 1
    assert (await database.read(ledger.waiting, "task-1")).items == 0


async def test_what_is_found_again_is_not_added_again(database: Database) -> None:
    """A piece that was written before a death is found anew by the next holder: nothing doubles."""
    await made(database, files=0)
    hold = await claimed(database)
    assert await database.write(ledger.add, hold, new("task-1", range(6)), {"at": 1}, {"X": 1}, AT) == 6
    assert await database.write(ledger.add, hold, new("task-9", range(3, 9)), {"at": 2}, {"X": 2}, AT, over=True) == 3
    row = await row_of(database)
    assert (row.total, row.warnings, row.expanded) == (9, {"X": 3}, True)
    ordinals = await database.read(
        lambda c: list(c.execute(select(TaskItem.ordinal).order_by(TaskItem.path)).scalars())
    )
    assert ordinals == list(range(1, 10))


async def test_a_file_that_can_not_be_taken_has_failed_already(database: Database) -> None:
    """It is counted as failed and never handed out."""
    await made(database, files=0)
    hold = await claimed(database)
    bad = NewItem(
        "item-x", "/in/b\nad", "b\nad", 0, {"code": "NAME_NOT_UTF8", "category": "VALIDATION", "message": "no"}
    )
    await database.write(ledger.add, hold, [bad, *new("task-1", range(1))], None, {}, AT)
    assert (await row_of(database)).failed == 1
    assert [item.path for item in await database.write(ledger.take, hold, None, 9, 9, AT)] == ["/in/0000"]


async def test_a_task_runs_again_with_what_failed(database: Database) -> None:
    """Its end closes its execution; reopened items count as waiting, completed ones stay."""
    await made(database, files=3)
    hold = await claimed(database)
    one, two, _ = await database.write(ledger.take, hold, None, 9, 9, AT)
    await database.write(ledger.finish, hold, one, TaskStatus.COMPLETED, AT)
    await database.write(ledger.finish, hold, two, TaskStatus.FAILED, AT, error={"code": "X"})
    await database.write(ledger.fail_task, hold, {"code": "INTERNAL", "message": "x"}, AT)
    row = await row_of(database)
    assert (row.status, row.done, row.failed, row.canceled) == ("FAILED", 1, 1, 1)
    execution = (await database.read(store.executions, PROJECT, ["exec-task-1"]))["exec-task-1"]
    assert (execution.status, execution.error["code"]) == ("FAILED", "INTERNAL")
    assert await database.write(ledger.reopen, "task-1", ["FAILED"]) == 1
    await database.write(ledger.recount, "task-1")
    row = await row_of(database)
    assert (row.total, row.done, row.failed, row.canceled) == (3, 1, 0, 1)


async def test_lists_go_by_key_and_filter_by_status(database: Database) -> None:
    """Items of a task by place, a page of each status; tasks by priority; executions by number."""
    await made(database, files=5)
    hold = await claimed(database)
    [first] = await database.write(ledger.take, hold, None, 1, 1, AT)
    await database.write(ledger.finish, hold, first, TaskStatus.FAILED, AT, error={"code": "X"})
    failed = await database.read(
        keyset.pages, store.ITEMS, ["task-1"], Compare("status", "eq", "FAILED"), Slice("PLACE", limit=3)
    )
    assert [row.id for row in failed["task-1"].rows] == [first.id]
    page = (await database.read(keyset.pages, store.ITEMS, ["task-1"], keyset.EVERY, Slice("PLACE", limit=3)))["task-1"]
    assert page.more
    rest = Slice("PLACE", limit=3, after=keyset.key(store.ITEMS, "PLACE", page.rows[-1]))
    second = (await database.read(keyset.pages, store.ITEMS, ["task-1"], keyset.EVERY, rest))["task-1"]
    assert [row.ordinal for row in [*page.rows, *second.rows]] == [1, 2, 3, 4, 5]
    assert [
        r.id for r in (await database.read(keyset.page, store.TASKS, PROJECT, keyset.EVERY, Slice("PRIORITY"))).rows
    ]
    numbers = await database.read(keyset.pages, store.EXECUTIONS, ["task-1"], keyset.EVERY, Slice("NUMBER"))
    assert [row.number for row in numbers["task-1"].rows] == [1]
    assert await database.read(store.items, PROJECT, [first.id]) != {}
    assert await database.read(store.items, "proj-other", [first.id]) == {}


async def test_a_task_is_removed_with_its_ledger(database: Database) -> None:
    """In pieces, so that no transaction is long; another project can't even lock it."""
    await made(database, files=5)
    with pytest.raises(NotFound):
        await database.write(store.locked, "proj-other", "task-1")
    while await database.write(ledger.delete_some, "task-1"):
        pass
    await database.write(store.delete_task, PROJECT, "task-1")
    left = await database.read(lambda c: c.execute(select(func.count()).select_from(Task)).scalar_one())
    assert left == 0
