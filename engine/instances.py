"""Runs as their callers see them: started, waited for, cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from db.session import Database
from db.store import instances as store
from db.store.journal import Committed, Create, Exists, Stale
from db.store.workflows import StoredWorkflow
from engine import clock
from engine.access import Actor, Permission
from engine.definitions import PinnedVersion
from engine.executor import Executor
from engine.journal import Journal
from engine.lru import LRU
from engine.streams import Streams
from engine.workflows import Workflows
from flow import events as e
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.events import Trigger
from flow.problems import ProblemCode, shown
from flow.states import InstanceStatus, WorkflowStatus
from flow.versions import input_problems

MAX_WAIT = timedelta(seconds=60)
MAX_LABELS = 50
MAX_LABEL = 255  # characters of a name, and of a value
MAX_REASON = 1_000  # characters
BY_API = Trigger(type="api")

_REMEDIES = {
    WorkflowStatus.DRAFT: "Publish it first.",
    WorkflowStatus.ARCHIVED: "Activate it first.",
    WorkflowStatus.DELETED: "Restore it first.",
}


@dataclass(frozen=True, slots=True)
class Started:
    """``created`` is the instance's event 1; None if the idempotency key was used before, for the instance named."""

    instance_id: str
    created: e.Recorded | None
    change_seq: int


class Instances:
    """Changes to the runs of a project. Every method raises NotFound for what is not in the actor's project, Denied
    without the permission, and StorageUnavailable if nothing can be stored now.
    """

    def __init__(
        self, database: Database, journal: Journal, executor: Executor, workflows: Workflows, streams: Streams
    ) -> None:
        self._database = database
        self._journal = journal
        self._executor = executor
        self._workflows = workflows
        self._streams = streams
        #: Workflows as they were last seen runnable, by project and id or name; the journal's transaction has the
        #: last word, so that a start costs no query of its own.
        self._known: LRU[tuple[str, str], StoredWorkflow] = LRU(1_000)

    async def start(
        self,
        actor: Actor,
        *,
        workflow_id: str | None = None,
        workflow_name: str | None = None,
        version_id: str | None = None,
        input: Any = None,
        trigger: Trigger = BY_API,
        priority: int = 5,
        timeout: timedelta | None = None,
        queue_timeout: timedelta | None = None,
        idempotency_key: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> Started:
        """Start a run of the workflow's current version, or of the version named; it is stored when this returns.

        Raises Invalid with every problem of the input and the options, Conflict if the workflow's status forbids it.
        """
        actor.require(Permission.INSTANCE_RUN)
        known = (actor.project_id, workflow_id or workflow_name or "")
        while True:
            cached = self._known.get(known)
            workflow = cached or await self._runnable(actor, workflow_id, workflow_name)
            try:
                pinned = await self._pinned(workflow, version_id)
                problems = _option_problems(priority, timeout, queue_timeout, idempotency_key)
                problems += _label_problems(labels or {})
                problems += input_problems(pinned.definition.input_schema, input)
                if problems:
                    raise Invalid(problems, path=("input",))
            except (NotFound, Invalid):
                if cached is None:
                    raise
                self._known.pop(known, None)  # perhaps it fits the workflow as it is by now
                continue
            created = e.InstanceCreated(
                workflow_id=workflow.id,
                version_id=pinned.version_id,
                input=input,
                trigger=trigger,
                priority=priority,
                timeout=timeout,
                queue_timeout=queue_timeout,
                labels=labels or {},
                created_by=actor.user_id,
            )
            claimed = self._executor.accepts()
            create = Create(
                instance_id=clock.new_id("inst"),
                project_id=actor.project_id,
                created=e.Recorded(1, clock.now(), created),
                idempotency_key=idempotency_key,
                current=version_id is None,
                worker=self._executor.worker if claimed else None,
                lease_s=self._executor.lease_s,
            )
            # Shielded: a caller who hangs up has started the run all the same, and it must be driven.
            started = await asyncio.shield(asyncio.ensure_future(self._create(create, claimed, priority)))
            if started is not None:
                self._known[known] = workflow
                return started
            # What was known of the workflow no longer holds: ask again, and be refused if need be.
            self._known.pop(known, None)

    async def _pinned(self, workflow: StoredWorkflow, version_id: str | None) -> PinnedVersion:
        """The version to run: the one that was named, or the current one."""
        wanted = version_id or workflow.current_version_id or ""
        pinned = await self._workflows.version(wanted)
        if pinned.workflow_id != workflow.id:
            raise NotFound("workflow version", wanted, path=("input", "version"))
        return pinned

    async def _runnable(self, actor: Actor, id: str | None, name: str | None) -> StoredWorkflow:
        if id is not None:
            workflow = await self._workflows.get(actor, id)
        else:
            found = await self._workflows.named(actor, name or "")
            if found is None:
                raise NotFound("workflow", name or "", path=("input", "workflow"))
            workflow = found
        status = WorkflowStatus(workflow.status)
        if not status.runnable:
            remedy = _REMEDIES.get(status, "It can't be run.")
            raise Conflict(f"The workflow {workflow.name!r} is {status}. {remedy}", status=status.value)
        return workflow

    async def _create(self, create: Create, claimed: bool, priority: int) -> Started | None:
        """Store and wake the new instance; None if its workflow isn't as it was believed to be."""
        match await self._journal.submit(create):
            case Committed(change_seq=change_seq):
                if claimed:
                    self._executor.adopt(create.instance_id, create.project_id, create.created)
                else:
                    self._executor.wake(create.instance_id, priority=priority)
                return Started(create.instance_id, create.created, change_seq)
            case Exists(instance_id=instance_id, change_seq=change_seq):
                return Started(instance_id, None, change_seq)
            case Stale():
                return None
            case other:
                raise AssertionError(f"a Create can't end as {other}")

    async def wait(self, actor: Actor, instance_id: str, timeout: timedelta) -> InstanceStatus:
        """The status when the run has ended, or when the time (at most a minute) is over."""
        actor.require(Permission.INSTANCE_READ)
        status = InstanceStatus.PENDING
        try:
            async with asyncio.timeout(min(timeout, MAX_WAIT).total_seconds()):
                async for recorded in self._streams.events(actor, instance_id):
                    status = _status_after(status, recorded.event)
        except TimeoutError:
            pass
        return status

    async def cancel(self, actor: Actor, instance_id: str, reason: str | None = None) -> int:
        """Ask the run to stop; it is CANCELED when its nodes have stopped. Asking twice is asking once.

        Gives the change number of the run as it was then. Raises Conflict if it has ended, Invalid for a long reason.
        """
        actor.require(Permission.INSTANCE_RUN)
        if reason is not None and len(reason) > MAX_REASON:
            problem = f"A reason has at most {MAX_REASON:,} characters."
            raise Invalid([Problem("/reason", ProblemCode.OUT_OF_RANGE, problem)], path=("input", "reason"))
        status = await self._database.read(store.status, actor.project_id, instance_id)
        if status is None:
            raise NotFound("instance", instance_id)
        if status.completed_at is not None:
            raise Conflict(f"The instance has ended already: {status.status}.", status=status.status)
        if status.cancel_requested_at is None:
            request = e.CancelRequested(by=actor.user_id, reason=reason)
            await self._database.write(store.post, instance_id, request, clock.now())
            self._executor.wake(instance_id, inbox=True)
        return status.change_seq


def _option_problems(
    priority: int, timeout: timedelta | None, queue_timeout: timedelta | None, idempotency_key: str | None
) -> list[Problem]:
    problems = []
    if not 1 <= priority <= 10:
        problems.append(Problem("/priority", ProblemCode.OUT_OF_RANGE, "Priority goes from 1 (low) to 10 (urgent)."))
    for name, limit in (("timeout", timeout), ("queueTimeout", queue_timeout)):
        if limit is not None and limit <= timedelta(0):
            problems.append(Problem(f"/{name}", ProblemCode.OUT_OF_RANGE, "A timeout is longer than nothing."))
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= 255:
        problem = "An idempotency key has 1 to 255 characters."
        problems.append(Problem("/idempotencyKey", ProblemCode.OUT_OF_RANGE, problem))
    return problems


def _label_problems(labels: dict[str, str]) -> list[Problem]:
    problems = []
    if len(labels) > MAX_LABELS:
        problems.append(Problem("/labels", ProblemCode.OUT_OF_RANGE, f"A run has at most {MAX_LABELS} labels."))
    for name, value in labels.items():
        if not 1 <= len(name) <= MAX_LABEL or len(value) > MAX_LABEL:
            problem = f"A label's name has 1 to {MAX_LABEL} characters, its value at most as many: {shown(name)}."
            problems.append(Problem("/labels", ProblemCode.OUT_OF_RANGE, problem))
    return problems


def _status_after(status: InstanceStatus, event: e.AnyEvent) -> InstanceStatus:
    match event:
        case e.InstanceStarted():
            return InstanceStatus.RUNNING
        case e.InstanceCompleted():
            return InstanceStatus.COMPLETED
        case e.InstanceFailed():
            return InstanceStatus.FAILED
        case e.InstanceCanceled():
            return InstanceStatus.CANCELED
        case e.InstanceTimedOut():
            return InstanceStatus.TIMED_OUT
        case _:
            return status
