"""Bring a database to the schema of this program, or say in one sentence why not.

Call these before the server starts, outside an event loop. A database that is up to date is seen by one small query,
without loading Alembic. Migrations run whole or not at all, and one process at a time: on SQLite under its write lock,
with foreign keys off (Alembic copies tables, and dropping the old one would delete every child row), on PostgreSQL
under an advisory lock.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, NullPool, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError

from db.refusal import hopeless, unavailable
from flow.errors import StorageUnavailable, WorkflowError

#: Every revision, oldest first: what Alembic would find in ``migrations/versions`` (a test compares).
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")

T = TypeVar("T")

LOCK_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
_ADVISORY_LOCK = 0x6D6972726F72  # "mirror"
_OURS = {"workflows", "workflow_versions", "node_executions"}


class DatabaseRefused(WorkflowError):
    """The database is not one that this program may use.

    ``code`` is DATABASE_NEWER (a newer program has been here), FOREIGN_SCHEMA (it holds somebody else's tables),
    NOT_A_DATABASE (the file is something else) or DATABASE_DENIED (wrong password, no such database).
    """


def head() -> str:
    """The revision that this program works with."""
    return REVISIONS[-1]


def current(url: str) -> str | None:
    """The database's revision; None if it is empty or not there yet.

    Raises DatabaseRefused, or StorageUnavailable if it can't be opened or reached.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _current_sqlite(Path(parsed.database or ""))
    return asyncio.run(_on_postgres(parsed, _current))


def check(url: str) -> None:
    """Return if the database is up to date; raise StorageUnavailable with the remedy if it must be upgraded first.

    Raises DatabaseRefused as ``current`` does.
    """
    if current(url) != head():
        raise StorageUnavailable("The database is older than this program. Run `mirrorflow db upgrade`.")


def upgrade(url: str) -> list[str]:
    """Bring the database up to date and return the revisions applied, oldest first; none if it was already.

    Raises DatabaseRefused, or StorageUnavailable; in both cases nothing was changed.
    """
    if current(url) == head():
        return []
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _upgrade_sqlite(Path(parsed.database or ""))
    return asyncio.run(_on_postgres(parsed, _apply))


# SQLite


def _current_sqlite(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            rows = connection.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
            return _judged(tables, [str(row[0]) for row in rows])
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _refusal(error) from error


def _upgrade_sqlite(path: Path) -> list[str]:
    engine = create_engine(
        f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys=OFF")
        _use_wal(connection)

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            return _apply(connection)
    except DBAPIError as error:
        raise _refusal(error) from error
    except sqlite3.Error as error:
        raise _refusal(error) from error
    finally:
        engine.dispose()


def _use_wal(connection: sqlite3.Connection) -> None:
    """Once and for all. SQLite does not wait for the lock that this needs, so two starts at once must try again."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _refusal(error: Exception) -> WorkflowError:
    said = str(error).lower()
    if "not a database" in said or "malformed" in said:
        message = "The database file is damaged or no SQLite database. Restore a backup or name another."
        return DatabaseRefused(message, code="NOT_A_DATABASE")
    return unavailable(error)


# PostgreSQL


async def _on_postgres(url: URL, work: Callable[[Connection], T]) -> T:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        url,
        poolclass=NullPool,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "server_settings": {"application_name": "mirrorflow migration"}},
    )
    try:
        async with engine.begin() as connection:
            if work is _apply:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            return await connection.run_sync(work)
    except (DBAPIError, OSError) as error:
        if hopeless(error):
            raise DatabaseRefused(unavailable(error).message, code="DATABASE_DENIED") from error
        raise unavailable(error) from error
    finally:
        await engine.dispose()


# Both


def _current(connection: Connection) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        return _judged(tables, [])
    rows = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
    return _judged(tables, [str(row[0]) for row in rows])


def _judged(tables: set[str], revisions: list[str]) -> str | None:
    """The revision, or the refusal, of a database with these tables."""
    others = {table for table in tables if table != "alembic_version" and not table.startswith("sqlite_")}
    if not revisions:
        if others:
            named = ", ".join(sorted(others)[:3])
            message = f"The database holds tables that are not Mirrorflow's ({named}). Name another, or an empty one."
            raise DatabaseRefused(message, code="FOREIGN_SCHEMA")
        return None
    [revision] = revisions if len(revisions) == 1 else [", ".join(sorted(revisions))]
    if revision in REVISIONS and others >= _OURS:
        return revision
    if others >= _OURS:
        message = (
            f"The database has revision {revision}; this program knows only up to {head()}. Use the newer program, "
            "or restore the backup from before its first start."
        )
        raise DatabaseRefused(message, code="DATABASE_NEWER")
    message = f"The database holds another program's tables (revision {revision}). Name another, or an empty one."
    raise DatabaseRefused(message, code="FOREIGN_SCHEMA")


def _apply(connection: Connection) -> list[str]:
    """Run what is missing, in the transaction of the caller, who holds the lock."""
    if _current(connection) == head():  # another process was faster
        return []
    from alembic import command
    from alembic.config import Config

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    applied: list[str] = []
    config.attributes.update(connection=connection, applied=applied)
    command.upgrade(config, head())
    return applied
