"""The database as the rest of the code sees it: ``read`` and ``write``, and nothing else.

A query or a change is a plain function on a ``Connection`` (they live in ``db.store``); it runs whole, in one
transaction, and this is the only place that commits.

* PostgreSQL: the function runs under asyncpg by SQLAlchemy's greenlet bridge.
* SQLite: the function runs in a thread, so that a transaction is one hop and not one per statement (three times faster
  than aiosqlite here, see docs/decisions/0001-sqlite-threads.md). One writer thread whose transactions are
  IMMEDIATE, so that two read-modify-writes never meet; readers on connections of their own, deferred, never behind it.

The interpreter's lock is why store functions send few statements with many rows: sqlite3 lets go of the lock at
each step, and under load each step then waits a switch interval to get it back.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import InterfaceError as DriverInterfaceError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from db.base import json_text, json_value
from flow.errors import StorageUnavailable

P = ParamSpec("P")
T = TypeVar("T")

READER_THREADS = 4
BUSY_TIMEOUT_S = 3.0  # of one transaction; a request that waits behind two of them is answered within its 10 s


class Database(ABC):
    """A place to read and write. Make one with ``connect``; close it with ``close``.

    ``read`` and ``write`` raise StorageUnavailable when the database is locked, full, gone or no database;
    a failed ``write`` has changed nothing.
    """

    dialect: str

    @abstractmethod
    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer of ``query(connection, …)``, on one consistent snapshot."""

    @abstractmethod
    async def write(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``change(connection, …)`` in one transaction and commit; any exception rolls it back."""

    @abstractmethod
    async def close(self) -> None:
        """Give back every connection and thread."""


def connect(url: str, *, synchronous: str = "NORMAL") -> Database:
    """The database at ``url``: ``sqlite:///path`` or ``postgresql+asyncpg://…``. Opens nothing yet.

    ``synchronous`` is SQLite's: NORMAL survives kill -9, FULL a power cut too.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ValueError("SQLite needs a file: sqlite:///path/to/mirrorflow.db")
            return SqliteDatabase(Path(parsed.database), synchronous=synchronous)
        case "postgresql":
            return PostgresDatabase(url)
        case other:
            raise ValueError(f"{other!r} is not supported: use sqlite:///… or postgresql+asyncpg://…")


class SqliteDatabase(Database):
    """SQLite in WAL mode: one writer thread, a few reader threads."""

    dialect = "sqlite"

    def __init__(self, path: Path, *, synchronous: str = "NORMAL") -> None:
        self.path = path
        self._write_engine = _sqlite_engine(path, synchronous, begin="BEGIN IMMEDIATE", pool_size=1)
        self._read_engine = _sqlite_engine(path, synchronous, begin="BEGIN", pool_size=READER_THREADS)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="db-writer")
        self._writing: Connection | None = None
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="db-reader")

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, _transaction, self._read_engine, query, args, kwargs)

    async def write(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, self._write, change, args, kwargs)

    def _write(self, change: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """One transaction on the writer thread's own connection: taking one from the pool each time costs as much
        as a statement.
        """
        try:
            if self._writing is None:
                self._writing = self._write_engine.connect()
            with self._writing.begin():
                return change(self._writing, *args, **kwargs)
        except (DBAPIError, sqlite3.Error) as error:
            if (refusal := _refusal(error)) is not None:
                self._forget_connection()
                raise refusal from error
            raise

    def _forget_connection(self) -> None:
        if self._writing is not None:
            self._writing.invalidate()
            self._writing.close()
            self._writing = None

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if self._writing is not None:
            self._writer.submit(self._writing.close).result()
        self._writer.shutdown()
        self._readers.shutdown()
        self._read_engine.dispose()
        self._write_engine.dispose()


class PostgresDatabase(Database):
    """PostgreSQL through asyncpg."""

    dialect = "postgresql"

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            pool_recycle=1800,
            json_serializer=json_text,
            json_deserializer=json_value,
        )
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transaction(self._reader, query, args, kwargs)

    async def write(self, change: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transaction(self._engine, change, args, kwargs)

    async def _transaction(
        self, engine: AsyncEngine, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work, *args, **kwargs)
        except (OperationalError, DriverInterfaceError, OSError) as error:
            raise unavailable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated or _state_of(error).startswith(_UNAVAILABLE_STATES):
                raise unavailable(error) from error
            raise

    async def close(self) -> None:
        await self._engine.dispose()


def _transaction(engine: Engine, work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    try:
        with engine.begin() as connection:
            return work(connection, *args, **kwargs)
    except (DBAPIError, sqlite3.Error) as error:
        if (refusal := _refusal(error)) is not None:
            raise refusal from error
        raise


def _refusal(error: DBAPIError | sqlite3.Error) -> StorageUnavailable | None:
    """What SQLite's error means to a caller; None for one that is our own fault."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    ours = sqlite3.IntegrityError | sqlite3.ProgrammingError
    if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, ours):
        return unavailable(error)
    return None


#: PostgreSQL's SQLSTATEs for what is not the statement's fault: connection, password, no such database, deadlock,
#: resources (a full disk, too many connections), an operator (shutdown), the system, a read-only server, no tables.
_UNAVAILABLE_STATES = ("08", "28", "3D", "40", "53", "57", "58", "25006", "42P01")


def _state_of(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def unavailable(error: Exception) -> StorageUnavailable:
    """What went wrong with the database, in words with a remedy and without SQL."""
    said = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, said, re.IGNORECASE):
            return StorageUnavailable(remedy)
    return StorageUnavailable(f"The database can't be used now ({said.splitlines()[0][:200]}). Try again.")


_REMEDIES = [
    (r"database is locked", "The database is locked by another program. Nothing was stored; try again."),
    (r"full|no space", "The disk is full. Nothing was stored; free some space and try again."),
    (r"disk i/o error", "The disk reports an error. Nothing was stored; check the disk and try again."),
    (
        r"not a database|malformed",
        "The database file is damaged or no SQLite database. Restore a backup or name another.",
    ),
    (r"unable to open", "The database file can't be opened. Check that its folder exists and may be written to."),
    (r"readonly|read-only", "The database file is read-only. Make it and its folder writable."),
    (r"no such table|does not exist", "The database has no Mirrorflow tables. Run `mirrorflow db upgrade`."),
    (r"connect|refused|closed|terminat|shut", "The database server can't be reached. Nothing was stored; try again."),
]


def _sqlite_engine(path: Path, synchronous: str, *, begin: str, pool_size: int) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        pool_size=pool_size,
        max_overflow=0,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA cache_size=-16000")
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        driver.execute(begin)  # past SQLAlchemy, whose way would cost every transaction a statement more

    return engine
