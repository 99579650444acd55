"""The database's own clock: the only one that leases are measured by, since every process sees the same."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from db.base import Instant


class db_now(ColumnElement[datetime]):
    """``db_now(15)``: the database's present instant, plus some seconds."""

    type = Instant()
    #: Statements with it are compiled once for each number of seconds: at each use it cost more than the statement.
    inherit_cache = False
    _traverse_internals: Any = [("plus_seconds", InternalTraversal.dp_plain_obj)]

    def __init__(self, plus_seconds: float = 0) -> None:
        self.plus_seconds = float(plus_seconds)


class db_now_once(db_now):
    """The same, for comparisons: PostgreSQL asks its clock once for the statement and can look into an index with that.

    Its clock may tell something else for every row (it is VOLATILE), so it would go through all of them.
    """

    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite(element: db_now, compiler: Any, **_: Any) -> str:
    return f"(strftime('%Y-%m-%dT%H:%M:%f', 'now', '{element.plus_seconds:+.3f} seconds') || '000Z')"


@compiles(db_now, "postgresql")
def _postgresql(element: db_now, compiler: Any, **_: Any) -> str:
    return f"(clock_timestamp() + interval '{element.plus_seconds:.3f} seconds')"


@compiles(db_now_once, "postgresql")
def _postgresql_once(element: db_now_once, compiler: Any, **_: Any) -> str:
    return f"(SELECT {_postgresql(element, compiler)})"


def present(connection: Connection) -> datetime:
    """The database's present instant."""
    return connection.execute(select(db_now())).scalar_one()
