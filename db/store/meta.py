"""What all processes on one database must agree on, by name."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from db.models import Meta

#: The mark of the one folder where all processes keep artifacts.
ARTIFACT_STORE = "artifact-store"


def value(connection: Connection, key: str) -> str | None:
    """What was agreed on; None if nothing yet."""
    return connection.execute(select(Meta.value).where(Meta.key == key)).scalar()


def agree(connection: Connection, key: str, proposal: str) -> str:
    """What holds from now on: the proposal, or what another process proposed before."""
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(Meta).values(key=key, value=proposal).on_conflict_do_nothing())
    return connection.execute(select(Meta.value).where(Meta.key == key)).scalar_one()
