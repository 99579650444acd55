"""What starting a child instance needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, or_, select

from db.models import Instance, Workflow, WorkflowVersion
from db.store import admission
from db.store.journal import Create
from flow import events as e


@dataclass(frozen=True, slots=True)
class Startable:
    """A workflow and the version to run. ``ancestors``: the workflows of the starting instance and those above it."""

    workflow_id: str
    name: str
    status: str
    version_id: str
    ancestors: frozenset[str]


def startable(
    connection: Connection, project_id: str, instance_id: str, named: str, number: tuple[int, int, int] | None
) -> Startable | None:
    """The workflow of that id or name, with its version of that number or its current one; None if it has none."""
    query = (
        select(Workflow.id, Workflow.name, Workflow.status, Workflow.current_version_id)
        .where(Workflow.project_id == project_id, or_(Workflow.id == named, Workflow.name == named))
        .order_by((Workflow.id == named).desc())
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    version_id = row.current_version_id
    if number is not None:
        v = WorkflowVersion
        major, minor, patch = number
        pinned = select(v.id).where(v.workflow_id == row.id, v.major == major, v.minor == minor, v.patch == patch)
        version_id = connection.execute(pinned).scalar_one_or_none()
    if version_id is None:
        return None
    return Startable(row.id, row.name, row.status, version_id, _ancestors(connection, instance_id))


def _ancestors(connection: Connection, instance_id: str) -> frozenset[str]:
    above = (
        select(Instance.workflow_id, Instance.parent_id).where(Instance.id == instance_id).cte("above", recursive=True)
    )
    above = above.union_all(select(Instance.workflow_id, Instance.parent_id).where(Instance.id == above.c.parent_id))
    return frozenset(connection.execute(select(above.c.workflow_id)).scalars())


def taken(connection: Connection, create: Create) -> bool:
    """Whether the limit of the new instance's concurrency key is reached."""
    created = create.created.event
    assert isinstance(created, e.InstanceCreated)
    group = (created.workflow_id, created.concurrency_key)
    return create.limit is not None and len(admission.others(connection, create.project_id, group)) >= create.limit
