"""Many rows in few statements.

sqlite3 lets go of the interpreter's lock at every step, and a busy process then waits for it again: row by row, a
thousand rows cost a thousand waits. Statements of many rows, in a few fixed sizes so that both drivers can keep them
prepared, cost one wait each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.engine import Dialect

_PARAMETERS = 30_000  # both databases allow 32,766 or more in a statement
_SIZES = (256, 64, 16, 8, 4, 3, 2, 1)


def insert(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    *,
    conflict: str = "",
) -> None:
    """Insert the rows, their values in the order of ``columns``; ``conflict`` is an ON CONFLICT clause."""
    dialect = connection.dialect
    processors = _processors(dialect, table, columns)
    converted = [
        [value if process is None else process(value) for process, value in zip(processors, row, strict=True)]
        for row in rows
    ]
    start = 0
    for size in _sizes(len(converted), len(columns)):
        values = [value for row in converted[start : start + size] for value in row]
        execute(connection, _statement(table, columns, size, conflict), values)
        start += size


def execute(connection: Connection, statement: str, values: Sequence[Any]) -> Sequence[Any]:
    """Run a statement whose parameters are written ``$1``, ``$2`` …; its rows, if it gives any.

    On SQLite it goes past SQLAlchemy, whose care for one statement costs more than SQLite needs to run it.
    Raises the driver's errors, which ``db.session`` knows.
    """
    if connection.dialect.name == "sqlite":
        driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        return driver.execute(statement.replace("$", "?"), values).fetchall()
    result = connection.exec_driver_sql(statement, tuple(values))
    return result.fetchall() if result.returns_rows else ()


def select_in(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    key: str,
    values: Sequence[Any],
    *,
    lock: bool = False,
) -> list[tuple[Any, ...]]:
    """The columns of the rows whose ``key`` is among ``values``, by key; with ``lock`` nobody else changes them.

    Values come as Python has them, only not for JSON columns. SQLite's writer holds every row anyway.
    """
    dialect = connection.dialect
    read = _readers(dialect, table, columns)
    found: list[tuple[Any, ...]] = []
    start = 0
    for size in _sizes(len(values), 1):
        statement = _select(table, columns, key, size, lock and dialect.name != "sqlite")
        rows = execute(connection, statement, values[start : start + size])
        found.extend(
            tuple(value if process is None else process(value) for process, value in zip(read, row, strict=True))
            for row in rows
        )
        start += size
    return found


def delete_in(connection: Connection, table: Table, key: str, values: Sequence[str]) -> None:
    """Delete the rows whose ``key`` is among ``values``, which are text."""
    start = 0
    for size in _sizes(len(values), 1):
        wanted = ", ".join(f"${i + 1}" for i in range(size))
        execute(connection, f"DELETE FROM {table.name} WHERE {key} IN ({wanted})", values[start : start + size])
        start += size


@lru_cache(maxsize=256)
def _select(table: Table, columns: tuple[str, ...], key: str, size: int, lock: bool) -> str:
    wanted = ", ".join(f"${i + 1}" for i in range(size))
    suffix = f" ORDER BY {key}" + (" FOR NO KEY UPDATE" if lock else "")
    return f"SELECT {', '.join(columns)} FROM {table.name} WHERE {key} IN ({wanted}){suffix}"


def upsert(key: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """The ON CONFLICT clause that takes the new row's values for every column but the key's."""
    taken = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
    return f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {taken}"


@lru_cache(maxsize=4_096)
def _sizes(rows: int, columns: int) -> tuple[int, ...]:
    largest = max(1, _PARAMETERS // columns)
    sizes = []
    while rows:
        sizes.append(next(size for size in _SIZES if size <= min(rows, largest)))
        rows -= sizes[-1]
    return tuple(sizes)


@lru_cache(maxsize=256)
def _statement(table: Table, columns: tuple[str, ...], rows: int, conflict: str) -> str:
    width = len(columns)
    values = ", ".join("(" + ", ".join(f"${row * width + i + 1}" for i in range(width)) + ")" for row in range(rows))
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {values}{conflict}"


@lru_cache(maxsize=256)
def _processors(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> list[Any]:
    return [table.c[column].type.dialect_impl(dialect).bind_processor(dialect) for column in columns]


@lru_cache(maxsize=256)
def _readers(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> list[Any]:
    return [table.c[column].type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
