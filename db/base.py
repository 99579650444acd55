"""Column types that mean the same on SQLite and PostgreSQL, and the declarative base."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import JSON, DateTime, MetaData, String, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

_encode = msgspec.json.Encoder().encode
json_value = msgspec.json.Decoder().decode


def json_text(value: Any) -> str:
    """Compact JSON."""
    return _encode(value).decode()


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, to the microsecond.

    SQLite drops offsets, so it is stored there as ISO text of fixed width, which sorts as time does.
    A naive value is refused: it would be read back as another instant.
    """

    impl = String(27)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(String(27))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: instants are aware UTC")
        if value.tzinfo is not UTC:
            value = value.astimezone(UTC)
        if dialect.name == "postgresql":
            return value
        return value.isoformat(timespec="microseconds")[:-6] + "Z"  # twice as fast as strftime

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None or isinstance(value, datetime):
            return value
        return datetime.fromisoformat(value)


class Json(TypeDecorator[Any]):
    """Any JSON value, read back as it was written: JSON on PostgreSQL, text on SQLite. None is SQL NULL.

    Not JSONB: it forgets the order of keys, in which an export and an output are shown, and turns 1e300 into an
    integer of 301 digits. A query that looks inside casts (``db.store.lists``).
    """

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSON(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json_value(value)


class JsonText(TypeDecorator[str]):
    """JSON that the caller encoded already (``flow.events.encode``): text both ways, on both databases."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(Text())


class Base(DeclarativeBase):
    """Every table; every constraint has a name, so that a migration can find it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
