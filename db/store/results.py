"""Results of nodes that may be used again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, select

from db.models import NodeResult
from db.store import bulk
from flow import events as e

_COLUMNS = ("project_id", "key", "output", "artifact", "instance_id", "created_at", "expires_at")
_UPSERT = bulk.upsert(("project_id", "key"), _COLUMNS)


@dataclass(frozen=True, slots=True)
class Result:
    """What a node gave; a large output is in the artifact store."""

    output: Any
    artifact: e.Artifact | None


def result(connection: Connection, project_id: str, key: str, now: datetime) -> Result | None:
    """The project's result of that key, if there is one that has not expired."""
    query = select(NodeResult.output, NodeResult.artifact).where(
        NodeResult.project_id == project_id, NodeResult.key == key, NodeResult.expires_at > now
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return Result(row.output, None if row.artifact is None else msgspec.convert(row.artifact, e.Artifact))


def keep(
    connection: Connection,
    project_id: str,
    key: str,
    found: Result,
    instance_id: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    """Keep the result until it expires, in place of an older one; drop what has expired."""
    connection.execute(delete(NodeResult).where(NodeResult.expires_at <= now))
    artifact = None if found.artifact is None else msgspec.to_builtins(found.artifact)
    row = (project_id, key, found.output, artifact, instance_id, now, expires_at)
    bulk.insert(connection, NodeResult.__table__, _COLUMNS, [row], conflict=_UPSERT)  # type: ignore[arg-type]
