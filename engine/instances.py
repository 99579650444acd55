"""Runs as their callers see them: started, waited for, forked; what is done to them later is in ``engine.controls``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec

from db.session import Database
from db.store import instances as store
from db.store import lists
from db.store.journal import Committed, Create, Exists, Skipped, Stale
from db.store.workflows import StoredWorkflow
from engine import forks
from engine.access import Actor, Permission
from engine.concurrency import new_instance
from engine.controls import Controls, check_debug
from engine.definitions import PinnedVersion
from engine.executor import Executor
from engine.journal import Journal
from engine.lru import LRU
from engine.streams import Streams
from engine.workflows import Workflows
from flow import events as e
from flow.definition import Definition
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.events import Trigger
from flow.problems import ProblemCode, shown
from flow.states import InstanceStatus, WorkflowStatus
from flow.versions import input_problems

MAX_WAIT = timedelta(seconds=60)
MAX_LABELS = 50
MAX_LABEL = 255  # characters of a name, and of a value
BY_API = Trigger(type="api")

_REMEDIES = {
    WorkflowStatus.DRAFT: "Publish it first, or start a debug run.",
    WorkflowStatus.ARCHIVED: "Activate it first.",
    WorkflowStatus.DELETED: "Restore it first.",
}


@dataclass(frozen=True, slots=True)
class Started:
    """``created`` is the instance's event 1; None if the idempotency key was used before, for the instance named."""

    instance_id: str
    created: e.Recorded | None
    change_seq: int


class Instances(Controls):
    """Changes to the runs of a project. Every method raises NotFound for what is not in the actor's project, Denied
    without the permission, and StorageUnavailable if nothing can be stored now.
    """

    def __init__(
        self, database: Database, journal: Journal, executor: Executor, workflows: Workflows, streams: Streams
    ) -> None:
        super().__init__(database, journal, executor, workflows)
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
        debug: e.Debug | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> Started:
        """Start a run of the workflow's current version, or of the version named; it is stored when this returns.

        With ``debug`` it stops at the breakpoints, and may be one of a DRAFT. ``parameters`` overlay the definition's.
        Raises Invalid with every problem of the input and the options, Conflict if the workflow's status forbids it or
        (code CONCURRENCY_LIMIT) a run with the same concurrency key is there and the workflow says to skip others.
        """
        actor.require(Permission.INSTANCE_RUN)
        known = (actor.project_id, workflow_id or workflow_name or "")
        debugged = debug is not None
        while True:
            cached = None if debugged else self._known.get(known)
            workflow = cached or await self._runnable(actor, workflow_id, workflow_name, debugged=debugged)
            try:
                pinned = await self._pinned(workflow, version_id)
                problems = _option_problems(priority, timeout, queue_timeout, idempotency_key)
                problems += _label_problems(labels or {})
                problems += input_problems(pinned.definition.input_schema, input)
                if problems:
                    raise Invalid(problems, path=("input",))
                if debug is not None:
                    check_debug(pinned.definition, debug)
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
                debug=debug,
                parameters=parameters or {},
            )
            current = version_id is None
            started = await self._create(actor, pinned.definition, created, idempotency_key, current=current)
            if started is not None:
                if not debugged:
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

    async def _runnable(
        self, actor: Actor, id: str | None, name: str | None, *, debugged: bool = False
    ) -> StoredWorkflow:
        if id is not None:
            workflow = await self._workflows.get(actor, id)
        else:
            found = await self._workflows.named(actor, name or "")
            if found is None:
                raise NotFound("workflow", name or "", path=("input", "workflow"))
            workflow = found
        status = WorkflowStatus(workflow.status)
        if not status.runnable and not (debugged and status is WorkflowStatus.DRAFT):
            remedy = _REMEDIES.get(status, "It can't be run.")
            raise Conflict(f"The workflow {workflow.name!r} is {status}. {remedy}", status=status.value)
        return workflow

    async def _create(
        self,
        actor: Actor,
        definition: Definition,
        created: e.InstanceCreated,
        idempotency_key: str | None = None,
        *,
        current: bool = False,
    ) -> Started | None:
        """Store and wake the new instance; None if its workflow isn't as it was believed to be."""
        claimed = self._executor.accepts()
        create = new_instance(
            actor.project_id,
            definition,
            created,
            idempotency_key,
            current=current,
            worker=self._executor.worker if claimed else None,
            lease_s=self._executor.lease_s,
        )
        # Shielded: a caller who hangs up has started the run all the same, and it must be driven.
        return await asyncio.shield(asyncio.ensure_future(self._submit(create)))

    async def _submit(self, create: Create) -> Started | None:
        match await self._journal.submit(create):
            case Committed(change_seq=change_seq, gated=gated):
                if create.worker is not None and not gated:
                    self._executor.adopt(create.instance_id, create.project_id, create.created)
                else:
                    self._executor.wake(create.instance_id, priority=_priority(create))
                return Started(create.instance_id, create.created, change_seq)
            case Exists(instance_id=instance_id, change_seq=change_seq):
                return Started(instance_id, None, change_seq)
            case Skipped(instance_id=instance_id):
                message = f"The limit of runs with this concurrency key is reached, by {instance_id} among others."
                raise Conflict(message, code="CONCURRENCY_LIMIT", instance=instance_id)
            case Stale():
                return None
            case other:
                raise AssertionError(f"a Create can't end as {other}")

    async def fork(
        self,
        actor: Actor,
        instance_id: str,
        *,
        seq: int | None = None,
        node: str | None = None,
        pins: Mapping[str, Any] | None = None,
        input: Any = msgspec.UNSET,
        parameters: dict[str, Any] | None = None,
        version_id: str | None = None,
        debug: e.Debug | None = None,
    ) -> Started:
        """Start a new run that begins where the old one was right after event ``seq``, or before ``node`` started.

        Nodes completed by then keep their outputs, ``pins`` (path → output) give others. Left out, input, parameters
        and version are the old run's. Raises NotFound for an event or node that the old run doesn't have, Conflict for
        a node that never started, Invalid for pins of unknown nodes and as ``start`` does.
        """
        actor.require(Permission.INSTANCE_RUN)
        rows = await self._database.read(lists.instances, actor.project_id, [instance_id])
        if instance_id not in rows:
            raise NotFound("instance", instance_id)
        history = await self._database.read(store.events, instance_id)
        upto = forks.point(history, seq, node)
        old = history[0].event
        assert isinstance(old, e.InstanceCreated)
        await self._runnable(actor, old.workflow_id, None, debugged=debug is not None)
        pinned = await self._workflows.version(version_id or old.version_id)
        if pinned.workflow_id != old.workflow_id:
            raise NotFound("workflow version", pinned.version_id, path=("input", "version"))
        before = forks.completed(history, upto)
        done = dict(zip(before, await self._executor.loader.with_large_values(list(before.values())), strict=True))
        new_input = old.input if input is msgspec.UNSET else input
        if problems := input_problems(pinned.definition.input_schema, new_input):
            raise Invalid(problems, path=("input",))
        if debug is not None:
            check_debug(pinned.definition, debug)
        created = msgspec.structs.replace(
            old,
            version_id=pinned.version_id,
            input=new_input,
            parameters={**old.parameters, **(parameters or {})},
            created_by=actor.user_id,
            debug=debug,
            parent=None,
            fork_of=instance_id,
            pins=forks.pins(done, pins or {}, pinned.definition),
            concurrency_key=None,
        )
        started = await self._create(actor, pinned.definition, created)
        if started is None:
            raise Conflict("The workflow was changed at this moment and can't be run now. Look at it and try again.")
        return started

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


def _priority(create: Create) -> int:
    assert isinstance(create.created.event, e.InstanceCreated)
    return create.created.event.priority


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
        case e.InstanceStarted() | e.InstanceResumed() | e.InstanceReopened():
            return InstanceStatus.RUNNING
        case e.InstancePaused():
            return InstanceStatus.PAUSED
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
