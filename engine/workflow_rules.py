"""What stands between a workflow and a change to it: pure questions, and those asked inside the transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from db.store import tasks
from db.store import workflows as store
from db.store.workflows import StoredVersion, StoredWorkflow
from engine.access import Actor
from engine.definitions import ReadDocument
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.problems import ProblemCode
from flow.states import WorkflowStatus, WorkflowStep
from flow.versions import SemVer, same_json

if TYPE_CHECKING:
    from sqlalchemy import Connection

NAME_LENGTH = 255
NOTE_LENGTH = 10_000

#: What fires its triggers and can be run by everybody.
LIVE = frozenset({WorkflowStatus.ACTIVE, WorkflowStatus.HIDDEN})
#: Steps after which the current version's problems matter: it is checked anew, with today's node types.
NEED_CHECKING = frozenset({WorkflowStep.PUBLISH, WorkflowStep.ACTIVATE, WorkflowStep.HIDE, WorkflowStep.RESTORE})


def found(workflow: StoredWorkflow | None, id: str) -> StoredWorkflow:
    """The workflow; raises NotFound if there is none."""
    if workflow is None:
        raise NotFound("workflow", id)
    return workflow


def writable(conn: Connection, actor: Actor, id: str) -> StoredWorkflow:
    """The workflow, if it may be changed. Raises NotFound, or Conflict for an archived or deleted one."""
    workflow = found(store.workflow(conn, actor.project_id, id), id)
    match WorkflowStatus(workflow.status):
        case WorkflowStatus.ARCHIVED:
            raise Conflict(f"{workflow.name} is archived, so it is read-only. Activate it first.", status="ARCHIVED")
        case WorkflowStatus.DELETED:
            raise Conflict(f"{workflow.name} is deleted. Restore it first.", status="DELETED")
        case _:
            return workflow


def require_free(conn: Connection, actor: Actor, name: str) -> None:
    """Raise Conflict if the project has a workflow of that name, a deleted one too."""
    taken = store.workflow_named(conn, actor.project_id, name)
    if taken is None:
        return
    deleted = taken.status == WorkflowStatus.DELETED
    remedy = "It is deleted: restore it, or delete it permanently." if deleted else "Choose another name, or update it."
    message = f"The project has a workflow {name!r} already. {remedy}"
    raise Conflict(message, path=("name",), workflow_id=taken.id, status=taken.status)


def require_unused(conn: Connection, workflow: StoredWorkflow) -> None:
    """Raise Conflict if a task runs the workflow or is about to: each of its items starts an instance of its own."""
    if (task := tasks.open_of_workflow(conn, workflow.id)) is not None:
        message = f"The task {task} runs {workflow.name}. Cancel it first, or wait for its end."
        raise Conflict(message, task=task)


def stale(conn: Connection, workflow: StoredWorkflow, base: StoredVersion) -> Conflict:
    """The refusal of a change that started from a version which is no longer current."""
    current = store.version(conn, workflow.project_id, workflow.current_version_id or "")
    number = SemVer(*current.number) if current is not None else None
    return Conflict(
        f"{workflow.name} has moved on from version {SemVer(*base.number)} to {number}. Nothing was overwritten: "
        "look at the current version and apply your change to it.",
        path=("input", "baseVersion"),
        base_version_id=base.id,
        base_version=str(SemVer(*base.number)),
        current_version_id=workflow.current_version_id,
        current_version=str(number),
        updated_at=workflow.updated_at,
        updated_by=workflow.updated_by,
    )


def same(base: StoredVersion, read: ReadDocument) -> bool:
    """True if a new version would equal the base."""
    return same_json(base.definition, read.stored) and bool(base.problems) == bool(read.problems)


def described(read: ReadDocument) -> dict[str, Any]:
    """The columns that lists show, from the document; a draft's may hold anything, so only what fits is taken."""

    def text(key: str, length: int | None = NAME_LENGTH) -> str | None:
        value = read.canonical.get(key)
        return value[:length] if isinstance(value, str) else None

    tags = read.canonical.get("tags")
    return {
        "display_name": text("display_name"),
        "description": text("description", None),
        "scenario": text("scenario"),
        "tags": tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
    }


def require_name(read: ReadDocument) -> None:
    """A draft keeps its problems, but a name that somebody just typed is refused."""
    wrong = [problem for problem in read.problems if problem.pointer == "/name"]
    if wrong:
        raise Invalid(wrong, path=("name",))


def check_remarks(label: str | None, change_note: str | None) -> None:
    """Raises Invalid for a label or a note of an impossible length."""
    if label is not None and not 0 < len(label.strip()) <= NAME_LENGTH:
        raise invalid("/label", f"A label has 1 to {NAME_LENGTH} characters.")
    if change_note is not None and len(change_note) > NOTE_LENGTH:
        raise invalid("/changeNote", f"A note has at most {NOTE_LENGTH:,} characters.")


def invalid(pointer: str, message: str) -> Invalid:
    """The refusal of one value."""
    return Invalid([Problem(pointer, ProblemCode.OUT_OF_RANGE, message)], path=(pointer.lstrip("/"),))
