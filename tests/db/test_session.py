"""What both databases promise alike: transactions, values that come back as they went in, clear refusals."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text, update

from db import session
from db.models import EventRow, InboxItem, Project, User
from db.session import Database, connect
from db.store import access, changes
from flow.errors import NotFound, StorageUnavailable
from tests.postgres import Postgres

AT = datetime(2026, 3, 29, 1, 30, 0, 123456, UTC)


@pytest.fixture
async def project(database: Database) -> str:
    """A project's id."""
    await database.write(access.ensure_project, "proj-a", "a", AT)
    return "proj-a"


def rows(conn: Connection) -> int:
    return len(conn.execute(select(User.id)).all())


def add_user(conn: Connection, name: str, at: datetime = AT) -> None:
    conn.execute(insert(User).values(id=f"usr-{name}", name=name, admin=False, created_at=at))


async def test_of_320_read_modify_writes_at_once_none_is_lost(database: Database, project: str) -> None:
    """Each takes a place of its own, and no place is left out."""
    places = await asyncio.gather(*(database.write(changes.take, project) for _ in range(320)))
    assert sorted(places) == list(range(1, 321))
    assert await database.read(changes.newest, project) == 320


async def test_a_place_is_read_and_written_under_the_projects_row(database: Database, project: str) -> None:
    """What is read after ``take`` can't be changed by another writer: reading in Python and writing back is safe."""

    def slow_increment(conn: Connection) -> None:
        changes.take(conn, project, 0)
        name = conn.execute(select(User.name).where(User.id == "usr-0")).scalar_one()
        conn.execute(update(User).where(User.id == "usr-0").values(name=str(int(name) + 1)))

    await database.write(add_user, "0")
    await asyncio.gather(*(database.write(slow_increment) for _ in range(100)))
    assert await database.read(lambda conn: conn.execute(select(User.name)).scalar_one()) == "100"


async def test_places_are_given_in_blocks(database: Database, project: str) -> None:
    """``take`` gives the first of n; an unknown project has none to give."""
    assert await database.write(changes.take, project, 5) == 1
    assert await database.write(changes.take, project, 2) == 6
    for refused in (database.write(changes.take, "proj-none"), database.read(changes.newest, "proj-none")):
        with pytest.raises(NotFound):
            await refused


async def test_a_failed_write_changes_nothing(database: Database) -> None:
    """Any exception rolls back, and the next write works."""

    def half(conn: Connection) -> None:
        add_user(conn, "half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await database.write(half)
    assert await database.read(rows) == 0
    await database.write(add_user, "whole")
    assert await database.read(rows) == 1


async def test_a_read_sees_one_snapshot(database: Database) -> None:
    """What is committed in the middle of a read is not seen by it."""
    loop = asyncio.get_running_loop()

    def twice(conn: Connection) -> tuple[int, int]:
        first = rows(conn)
        if database.dialect == "sqlite":  # we are in a reader's thread: the loop is free to write
            asyncio.run_coroutine_threadsafe(database.write(add_user, "between"), loop).result(10)
        else:  # we are in the loop itself: another thread writes
            writer = threading.Thread(target=asyncio.run, args=(_write_elsewhere(conn),))
            writer.start()
            writer.join(10)
        return first, rows(conn)

    assert await database.read(twice) == (0, 0)
    assert await database.read(rows) == 1


async def _write_elsewhere(conn: Connection) -> None:
    elsewhere = connect(conn.engine.url.render_as_string(hide_password=False))
    await elsewhere.write(add_user, "between")
    await elsewhere.close()


@pytest.mark.parametrize(
    "zone", [UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3, minutes=-30))], ids=["utc", "+8", "-3:30"]
)
async def test_an_instant_comes_back_as_the_same_instant(database: Database, zone: timezone) -> None:
    """Aware, in UTC, to the microsecond, wherever it was written and whatever the server's time zone."""
    await database.write(add_user, "u", AT.astimezone(zone))
    found = await database.read(lambda conn: conn.execute(select(User.created_at)).scalar_one())
    assert found == AT
    assert found.utcoffset() == timedelta(0)


async def test_instants_sort_as_time_does(database: Database) -> None:
    """Also around the full second and the turn of a century."""
    instants = [
        datetime(1999, 12, 31, 23, 59, 59, 999999, UTC),
        datetime(2000, 1, 1, tzinfo=UTC),
        datetime(2000, 1, 1, 0, 0, 0, 1, UTC),
        datetime(2000, 1, 1, 0, 0, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ]

    def sort(conn: Connection) -> list[datetime]:
        for number, at in enumerate(reversed(instants)):
            add_user(conn, str(number), at)
        return list(conn.execute(select(User.created_at).order_by(User.created_at)).scalars())

    assert await database.write(sort) == instants


async def test_a_naive_instant_is_refused(database: Database) -> None:
    """It would come back as another one."""
    with pytest.raises(Exception, match="naive"):
        await database.write(add_user, "u", datetime(2026, 1, 1))  # noqa: DTZ001
    assert await database.read(rows) == 0


JSON_VALUES: list[Any] = [
    {},
    [],
    False,
    0,
    "",
    "照片 \\ \" ' \u2028 🎞",
    1.5,
    1e300,
    1e-300,
    2**62,
    -(2**63),
    {"z": 1, "a": {"y": [1, None, True], "b": {}}, "": [[]]},
]


@pytest.mark.parametrize("value", JSON_VALUES, ids=repr)
async def test_json_comes_back_as_it_went_in(database: Database, project: str, value: Any) -> None:
    """Types and the order of keys included; a float stays a float."""

    def there_and_back(conn: Connection) -> Any:
        _add_instance(conn, project)
        conn.execute(insert(InboxItem).values(instance_id="inst-1", data=value, created_at=AT))
        return conn.execute(select(InboxItem.data)).scalar_one()

    found = await database.write(there_and_back)
    assert found == value
    assert repr(found) == repr(value)


async def test_none_is_sql_null(database: Database, project: str) -> None:
    """Not the JSON text ``null``: IS NULL finds it."""

    def count(conn: Connection) -> int:
        _add_instance(conn, project)
        return int(conn.execute(text("SELECT count(*) FROM instances WHERE output IS NULL")).scalar_one())

    assert await database.write(count) == 1


@pytest.mark.parametrize("value", [float("nan"), "nul \x00", "half \ud800"])
async def test_nothing_gets_past_the_edge_half_stored(database: Database, project: str, value: Any) -> None:
    """These are refused before they come here; should one slip through, it is not stored as something else unseen."""

    def there_and_back(conn: Connection) -> Any:
        _add_instance(conn, project)
        conn.execute(insert(InboxItem).values(instance_id="inst-1", data=[value], created_at=AT))
        return conn.execute(select(InboxItem.data)).scalar_one()

    try:
        found = await database.write(there_and_back)
    except Exception:
        assert await database.read(lambda conn: conn.execute(select(InboxItem.id)).all()) == []
    else:
        assert found in ([value], [None])


async def test_children_go_with_their_parents(database: Database, project: str) -> None:
    """Foreign keys are kept on both."""

    def orphan(conn: Connection) -> None:
        conn.execute(insert(EventRow).values(instance_id="inst-none", seq=1, change_seq=1, type="x", at=AT, data="{}"))

    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await database.write(orphan)
    await database.write(_add_instance, project)
    await database.write(lambda conn: conn.execute(text("DELETE FROM projects")))
    for table in ("workflows", "workflow_versions", "instances"):
        assert await database.read(_count, table) == 0


# What can go wrong below


async def test_a_database_locked_by_another_program_is_refused_in_time(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded wait; reading works meanwhile, and writing again afterwards."""
    monkeypatch.setattr(session, "BUSY_TIMEOUT_S", 0.05)
    database = connect(sqlite_url)
    intruder = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        intruder.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(5):
            with pytest.raises(StorageUnavailable, match="locked"):
                await database.write(add_user, "u")
        assert await database.read(rows) == 0
        intruder.execute("ROLLBACK")
        await database.write(add_user, "u")
        assert await database.read(rows) == 1
    finally:
        intruder.close()
        await database.close()


async def test_a_reader_does_not_wait_for_the_writer(sqlite_url: str) -> None:
    """While a write is in the middle of its work, readers answer with what was before."""
    database = connect(sqlite_url)
    begun, go_on = threading.Event(), threading.Event()

    def slow(conn: Connection) -> None:
        add_user(conn, "slow")
        begun.set()
        assert go_on.wait(10)

    writing = asyncio.create_task(database.write(slow))
    try:
        assert await asyncio.to_thread(begun.wait, 10)
        assert await database.read(rows) == 0
    finally:
        go_on.set()
        await writing
        assert await database.read(rows) == 1
        await database.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """With a remedy, not a stack; the file stays as it is."""
    path = tmp_path / "notes.txt"
    content = b"these are notes and no database at all. " * 100
    await asyncio.to_thread(path.write_bytes, content)
    database = connect(f"sqlite:///{path}")
    try:
        for refused in (database.read(rows), database.write(add_user, "u")):
            with pytest.raises(StorageUnavailable, match="no SQLite database"):
                await refused
    finally:
        await database.close()
    assert await asyncio.to_thread(path.read_bytes) == content


async def test_a_database_without_tables_is_refused(tmp_path: Path, postgres: Postgres) -> None:
    """It says what to run."""
    url = postgres.create()
    try:
        for empty in (f"sqlite:///{tmp_path / 'empty.db'}", url):
            database = connect(empty)
            try:
                with pytest.raises(StorageUnavailable, match="db upgrade"):
                    await database.read(rows)
            finally:
                await database.close()
    finally:
        postgres.drop(url)


async def test_a_lost_connection_is_refused_and_then_made_anew(postgres: Postgres, postgres_url: str) -> None:
    """The server throws us out in the middle: that write is refused, the next one works."""
    database = connect(postgres_url)
    try:
        await database.write(add_user, "before")

        def suicide(conn: Connection) -> None:
            add_user(conn, "lost")
            conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(StorageUnavailable):
            await database.write(suicide)
        await database.write(add_user, "after")
        assert await database.read(rows) == 2
    finally:
        await database.close()


async def test_a_full_disk_is_refused(sqlite_url: str) -> None:
    """SQLite's own limit of pages stands for a full disk: nothing is half stored, and reading works on."""
    database = connect(sqlite_url)

    def fill(conn: Connection) -> None:
        pages = conn.execute(text("PRAGMA page_count")).scalar_one()
        conn.execute(text(f"PRAGMA max_page_count={pages}"))
        for number in range(1_000):
            conn.execute(
                insert(Project).values(id=f"p{number}", name="x" * 200 + str(number), change_seq=0, created_at=AT)
            )

    try:
        with pytest.raises(StorageUnavailable, match="full"):
            await database.write(fill)
        assert await database.read(lambda conn: conn.execute(select(Project.id)).all()) == []
    finally:
        await database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "nonsense"])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    """Before anything is opened."""
    with pytest.raises(Exception, match=r"SQLite needs a file|not supported|Could not parse"):
        connect(url)


def _add_instance(conn: Connection, project: str) -> None:
    """A workflow, its version and one instance ``inst-1``, by plain SQL."""
    at = {"at": AT.isoformat()} if conn.dialect.name == "sqlite" else {"at": AT}
    for statement in (
        f"INSERT INTO workflows (id, project_id, name, status, tags, change_seq, created_at, updated_at) "
        f"VALUES ('wf-1', '{project}', 'w', 'ACTIVE', '[]', 1, :at, :at)",
        f"INSERT INTO workflow_versions (id, workflow_id, project_id, major, minor, patch, definition, problems, "
        f"created_at) "
        f"VALUES ('wfv-1', 'wf-1', '{project}', 1, 0, 0, '{{}}', '[]', :at)",
        f"INSERT INTO instances (id, project_id, workflow_id, version_id, status, trigger_type, priority, created_at, "
        f"last_seq, change_seq, fence, lost_claims) "
        f"VALUES ('inst-1', '{project}', 'wf-1', 'wfv-1', 'PENDING', 'manual', 5, :at, 0, 1, 0, 0)",
    ):
        conn.execute(text(statement), at)


def _count(conn: Connection, table: str) -> int:
    return int(conn.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
