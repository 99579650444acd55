"""Workflows and their versions in SQL. Every look-up is scoped by project inside the query."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from db.models import Instance, Workflow, WorkflowVersion


@dataclass(frozen=True, slots=True)
class StoredWorkflow:
    """A workflow's row."""

    id: str
    project_id: str
    name: str
    display_name: str | None
    description: str | None
    scenario: str | None
    status: str
    tags: tuple[str, ...]
    current_version_id: str | None
    change_seq: int
    created_at: datetime
    created_by: str | None
    updated_at: datetime
    updated_by: str | None
    deleted_at: datetime | None = None
    deleted_by: str | None = None


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version's row. ``definition`` is the canonical document, or, where there are ``problems``, as it was given.

    ``problems`` are ``{pointer, code, message}``.
    """

    id: str
    workflow_id: str
    project_id: str
    number: tuple[int, int, int]
    parent_id: str | None
    definition: dict[str, Any]
    problems: tuple[dict[str, str], ...]
    label: str | None
    change_note: str | None
    created_at: datetime
    created_by: str | None


def insert_workflow(conn: Connection, workflow: StoredWorkflow) -> None:
    """Insert a workflow's row; its name must be free in the project."""
    conn.execute(insert(Workflow).values(**_columns(_WORKFLOW, workflow) | {"tags": list(workflow.tags)}))


def update_workflow(conn: Connection, /, project_id: str, id: str, **values: Any) -> None:
    """Set some columns of a workflow."""
    conn.execute(update(Workflow).where(Workflow.project_id == project_id, Workflow.id == id).values(**values))


def workflow(conn: Connection, project_id: str, id: str) -> StoredWorkflow | None:
    """The workflow of that id, deleted ones too."""
    return _one_workflow(conn, Workflow.project_id == project_id, Workflow.id == id)


def workflow_named(conn: Connection, project_id: str, name: str) -> StoredWorkflow | None:
    """The workflow of that name, deleted ones too: they keep their names until they are gone for good."""
    return _one_workflow(conn, Workflow.project_id == project_id, Workflow.name == name)


def insert_version(conn: Connection, version: StoredVersion) -> None:
    """Insert a version's row; its number must be free in the workflow."""
    major, minor, patch = version.number
    values = _columns(_VERSION, version) | {"problems": list(version.problems)}
    conn.execute(insert(WorkflowVersion).values(**values, major=major, minor=minor, patch=patch))


def version(conn: Connection, project_id: str, id: str) -> StoredVersion | None:
    """The version of that id."""
    return _one_version(conn, WorkflowVersion.project_id == project_id, WorkflowVersion.id == id)


def version_anywhere(conn: Connection, id: str) -> StoredVersion | None:
    """The version of that id in any project: for the executor, which acts for instances and not for people."""
    return _one_version(conn, WorkflowVersion.id == id)


def highest_number(conn: Connection, workflow_id: str) -> tuple[int, int, int] | None:
    """The highest version number of a workflow, as versions order and not as text does."""
    number = WorkflowVersion.major, WorkflowVersion.minor, WorkflowVersion.patch
    query = select(*number).where(WorkflowVersion.workflow_id == workflow_id)
    row = conn.execute(query.order_by(*(part.desc() for part in number)).limit(1)).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


def set_label(conn: Connection, project_id: str, version_id: str, label: str | None) -> None:
    """Name a version, or take its name away."""
    conn.execute(
        update(WorkflowVersion)
        .where(WorkflowVersion.project_id == project_id, WorkflowVersion.id == version_id)
        .values(label=label)
    )


def settle_version(conn: Connection, project_id: str, version_id: str, definition: dict[str, Any]) -> None:
    """A draft's version turned out to be valid: keep its document in canonical form, without problems."""
    conn.execute(
        update(WorkflowVersion)
        .where(WorkflowVersion.project_id == project_id, WorkflowVersion.id == version_id)
        .values(definition=definition, problems=[])
    )


def open_instances(conn: Connection, workflow_id: str) -> int:
    """How many instances of the workflow have not ended."""
    query = select(func.count()).select_from(Instance)
    mine = Instance.workflow_id == workflow_id, Instance.completed_at.is_(None)
    return int(conn.execute(query.where(*mine)).scalar_one())


def delete_instances(conn: Connection, workflow_id: str, limit: int) -> int:
    """Remove up to ``limit`` instances of the workflow with everything of theirs; how many there were."""
    some = select(Instance.id).where(Instance.workflow_id == workflow_id).limit(limit)
    return conn.execute(delete(Instance).where(Instance.id.in_(some))).rowcount


def delete_workflow(conn: Connection, project_id: str, id: str) -> None:
    """Remove the workflow and its versions. Its instances must be gone."""
    conn.execute(delete(Workflow).where(Workflow.project_id == project_id, Workflow.id == id))


_WORKFLOW = tuple(StoredWorkflow.__dataclass_fields__)
_VERSION = tuple(name for name in StoredVersion.__dataclass_fields__ if name != "number")


def _columns(names: tuple[str, ...], row: StoredWorkflow | StoredVersion) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def _one_workflow(conn: Connection, *where: Any) -> StoredWorkflow | None:
    row = conn.execute(select(*(getattr(Workflow, name) for name in _WORKFLOW)).where(*where)).one_or_none()
    return None if row is None else StoredWorkflow(**row._asdict() | {"tags": tuple(row.tags)})


def _one_version(conn: Connection, *where: Any) -> StoredVersion | None:
    columns = (getattr(WorkflowVersion, name) for name in (*_VERSION, "major", "minor", "patch"))
    row = conn.execute(select(*columns).where(*where)).one_or_none()
    if row is None:
        return None
    values = row._asdict()
    number = values.pop("major"), values.pop("minor"), values.pop("patch")
    return StoredVersion(**values | {"number": number, "problems": tuple(row.problems)})
