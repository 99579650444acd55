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
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import InterfaceError as DriverInterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from db.base import json_text, json_value
from db.refusal import UNAVAILABLE_STATES, state_of, unavailable
from flow.errors import StorageUnavailable

__all__ = ["Database", "PostgresDatabase", "SqliteDatabase", "connect", "place", "unavailable"]

P = ParamSpec("P")
T = TypeVar("T")

READER_THREADS = 4
CONNECT_TIMEOUT_S = 5.0
POOL_TIMEOUT_S = 9.0  # for a free connection; a request is given up after 10 s, and would not know why
#: A transaction waits for nothing but the database. One that rests longer belongs to a process that was stopped or cut
#: off, and its locks (a project's row) keep everybody waiting.
IDLE_IN_TRANSACTION_S = 5
RESTED_S = 60.0  # a connection that lay idle longer is asked whether it lives
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


def connect(
    url: str,
    *,
    synchronous: str = "NORMAL",
    pool: int = 10,
    statement_s: float = 30.0,
    lock_s: float = 10.0,
    name: str = "mirrorflow",
) -> Database:
    """The database at ``url``: ``sqlite:///path`` or ``postgresql+asyncpg://…``. Opens nothing yet.

    ``synchronous`` is SQLite's: NORMAL survives kill -9, FULL a power cut too. The rest is PostgreSQL's: most
    connections, the longest that a statement may take and may wait for a lock, and what the server calls us.
    """
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ValueError("SQLite needs a file: sqlite:///path/to/mirrorflow.db")
            return SqliteDatabase(Path(parsed.database), synchronous=synchronous)
        case "postgresql":
            return PostgresDatabase(url, pool=pool, statement_s=statement_s, lock_s=lock_s, name=name)
        case other:
            raise ValueError(f"{other!r} is not supported: use sqlite:///… or postgresql+asyncpg://…")


def place(url: str) -> str:
    """Where the database is, without user and password."""
    parsed = make_url(url)
    return f"{parsed.host or parsed.query.get('host') or 'localhost'}:{parsed.port or 5432}/{parsed.database or ''}"


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
    """PostgreSQL through asyncpg.

    A connection that the server closed (a restart) is seen without asking: asyncpg noticed. One that lay idle for long
    is asked first, since a firewall may have forgotten it; asking each time would cost as much as the transaction.
    Nothing is left in a connection from one transaction to the next but its limits and prepared statements, so
    PgBouncer may stand in between (docs/deploy.md).
    """

    dialect = "postgresql"

    def __init__(self, url: str, *, pool: int, statement_s: float, lock_s: float, name: str) -> None:
        limits = {
            "statement_timeout": int(statement_s * 1000),
            "lock_timeout": int(lock_s * 1000),
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_S * 1000,
            "tcp_keepalives_idle": 30,
            "tcp_keepalives_interval": 10,
            "tcp_keepalives_count": 3,
        }
        self._limits = "; ".join(f"SET {name} = {value}" for name, value in limits.items())
        self._engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_recycle=1800,
            pool_use_lifo=True,
            json_serializer=json_text,
            json_deserializer=json_value,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                # Ours comes after the server's own: it is for the server that has gone without a word.
                "command_timeout": statement_s + 5,
                "prepared_statement_cache_size": 500,
                "server_settings": {"application_name": name},
                "async_creator_fn": self._open,
            },
        )
        event.listen(self._engine.sync_engine, "checkin", _note_rest)
        event.listen(self._engine.sync_engine, "checkout", _refuse_dead)
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def _open(self, **arguments: Any) -> Any:
        """A connection with our limits: set by a statement, since PgBouncer refuses to be told of them at its start."""
        import asyncpg

        connection = await asyncpg.connect(**arguments)
        try:
            await connection.execute(self._limits)
        except BaseException:
            connection.terminate()
            raise
        return connection

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
        except (OperationalError, DriverInterfaceError, PoolTimeout, OSError) as error:
            raise unavailable(error) from error
        except DBAPIError as error:
            if error.connection_invalidated or state_of(error).startswith(UNAVAILABLE_STATES):
                raise unavailable(error) from error
            raise

    async def close(self) -> None:
        await self._engine.dispose()


def _note_rest(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["rests_since"] = time.monotonic()


def _refuse_dead(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """DisconnectionError makes the pool open another connection in place of this one."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError
    if time.monotonic() - record.info.get("rests_since", time.monotonic()) > RESTED_S:
        try:
            connection.ping()
        except Exception as error:  # it says no in many ways
            raise DisconnectionError from error


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
