"""Child instances: how a node starts one, and how its end comes back.

A child is created in the transaction that records what became of the node, so there is never one without the other.
Its end is a letter to the parent, in the transaction of the child's last event; so is the cancellation that follows a
parent's early end (``db.store.journal``). Nobody waits for anybody in memory.
"""

from __future__ import annotations

from typing import Any

import msgspec

from db.session import Database
from db.store import children as store
from db.store.journal import Create
from engine.concurrency import new_instance
from engine.workflows import Workflows
from flow import events as e
from flow.actions import Spawn
from flow.errors import Category, Failure, Invalid, NotFound
from flow.history import Snapshot
from flow.states import WorkflowStatus
from flow.versions import SemVer, input_problems

MAX_DEPTH = 16


class ChildRefused(Exception):
    """The child can't be started: the node fails with this."""

    def __init__(self, code: str, message: str, category: Category = Category.VALIDATION, **details: Any) -> None:
        super().__init__(message)
        self.failure = Failure(code, category, message, details=details)


class Children:
    """Makes child instances for ``core/workflow``."""

    def __init__(self, database: Database, workflows: Workflows) -> None:
        self._database = database
        self._workflows = workflows

    async def create(self, project_id: str, instance_id: str, parent: Snapshot, spawn: Spawn) -> Create:
        """The new instance, to be created with the event that names it.

        Raises ChildRefused if there is no such workflow or version, it may not be run, its input doesn't fit, it is
        one of its own ancestors, or it would be deeper than 16. Raises StorageUnavailable.
        """
        assert parent.created is not None
        depth = 1 + (parent.created.parent.depth if parent.created.parent is not None else 0)
        if depth > MAX_DEPTH:
            raise ChildRefused("CHILD_TOO_DEEP", f"Instances start each other at most {MAX_DEPTH} deep.")
        found = await self._database.read(
            store.startable, project_id, instance_id, spawn.workflow, _number(spawn.version)
        )
        if found is None:
            named = spawn.workflow if spawn.version is None else f"{spawn.workflow} {spawn.version}"
            raise ChildRefused("CHILD_NOT_FOUND", f"There is no workflow {named!r} in this project.")
        if found.workflow_id in found.ancestors:
            message = (
                f"The workflow {found.name!r} has started this instance, directly or through others; a child can't "
                "start its own ancestor. Use a loop."
            )
            raise ChildRefused("WORKFLOW_CYCLE", message)
        status = WorkflowStatus(found.status)
        if not status.runnable and not (status is WorkflowStatus.DRAFT and parent.created.debug is not None):
            raise ChildRefused("CHILD_NOT_RUNNABLE", f"The workflow {found.name!r} is {status} and can't be run.")
        try:
            pinned = await self._workflows.version(found.version_id)
            if problems := input_problems(pinned.definition.input_schema, spawn.input):
                raise Invalid(problems)
            create = new_instance(project_id, pinned.definition, _created(instance_id, parent, spawn, found, depth))
        except (Invalid, NotFound) as error:
            problems = error.problems if isinstance(error, Invalid) else []
            message = f"The workflow {found.name!r} can't be started: {error.message}"
            raise ChildRefused("CHILD_INVALID", message, problems=msgspec.to_builtins(problems)) from None
        if create.on_conflict == "skip" and await self._database.read(store.taken, create):
            message = f"The limit of runs of {found.name!r} with this concurrency key is reached."
            raise ChildRefused("CONCURRENCY_LIMIT", message, Category.RESOURCE)
        return create


def _created(instance_id: str, parent: Snapshot, spawn: Spawn, found: store.Startable, depth: int) -> e.InstanceCreated:
    above = parent.created
    assert above is not None
    return e.InstanceCreated(
        workflow_id=found.workflow_id,
        version_id=found.version_id,
        input=spawn.input,
        trigger=e.Trigger("workflow", payload={"instance": instance_id, "node": spawn.path}),
        priority=above.priority,
        created_by=above.created_by,
        debug=e.Debug() if above.debug is not None else None,
        parent=e.Parent(instance_id, spawn.path, depth, spawn.wait, spawn.on_parent_end),
    )


def _number(version: str | None) -> tuple[int, int, int] | None:
    if version is None:
        return None
    try:
        number = SemVer.parse(version)
    except ValueError:
        raise ChildRefused("CHILD_NOT_FOUND", f"{version!r} is not a version; write one like 1.2.0.") from None
    return number.major, number.minor, number.patch


def farewell(instance_id: str, snapshot: Snapshot) -> list[tuple[str, e.Event]]:
    """What an instance that has ended writes to the one that waits for it."""
    if snapshot.created is None or snapshot.created.parent is None or not snapshot.created.parent.waits:
        return []
    if not snapshot.status.terminal:
        return []
    parent = snapshot.created.parent
    ended = e.ChildEnded(
        path=parent.path,
        instance_id=instance_id,
        status=snapshot.status.value,
        output=snapshot.output if snapshot.artifact is None else None,
        artifact=snapshot.artifact,
        error=snapshot.error,
    )
    return [(parent.instance_id, ended)]
