"""What all processes on one database must agree on, by name."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from db.models import Meta

#: The mark of the one folder where all processes keep artifacts.
ARTIFACT_STORE = "artifact-store"
#: When somebody last tried whether the database can store.
STORED_AT = "stored-at"


def value(connection: Connection, key: str) -> str | None:
    """What was agreed on; None if nothing yet."""
    return connection.execute(select(Meta.value).where(Meta.key == key)).scalar()


def put(connection: Connection, key: str, value: str) -> None:
    """Write a value, whatever there was."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(Meta).values(key=key, value=value)
    connection.execute(insert.on_conflict_do_update(index_elements=[Meta.key], set_={"value": value}))


def agree(connection: Connection, key: str, proposal: str) -> str:
    """What holds from now on: the proposal, or what another process proposed before."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(Meta).values(key=key, value=proposal).on_conflict_do_nothing())
    return connection.execute(select(Meta.value).where(Meta.key == key)).scalar_one()
