"""Starting and cancelling runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, cast

import strawberry
from strawberry import UNSET, argument, field

from engine.access import Permission
from flow import errors
from flow import events as e
from flow.events import Phase
from graph.execution import extend_deadline
from graph.instances import Instance, as_created, instance
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, QuotaExceeded, ValidationFailed
from graph.scalars import JSON, BigInt

LONGEST_WAIT = timedelta(seconds=60)


@strawberry.input(description="A name and value to put on the instance, to find it by.")
class LabelInput:
    """One pair."""

    name: str = field(description="The label's name.")
    value: str = field(description="The label's value.")


@strawberry.input(one_of=True, description="Which workflow to run: exactly one of these.")
class WorkflowRef:
    """By id, name or version."""

    id: strawberry.ID | None = field(default=UNSET, description="The workflow's id: its current version runs.")
    name: str | None = field(default=UNSET, description="The workflow's name: its current version runs.")
    version: strawberry.ID | None = field(default=UNSET, description="A version's id: exactly that one runs.")


@strawberry.input(description="Where a debugger stops.")
class BreakpointInput:
    """See ``flow.events.Breakpoint``."""

    node_id: str = field(description="The node's id in the definition, also in the body of a loop.")
    phase: Phase = field(default=Phase.BEFORE, description="On which side of the node.")
    when: str | None = field(
        default=None, description="Only if this expression on the node's scope is true; AFTER a node it sees `output`."
    )


@strawberry.input(description="How to debug a run: it pauses where this says.")
class DebugInput:
    """See ``flow.events.Debug``."""

    stepping: bool = field(default=False, description="True: pause before every node.")
    breakpoints: list[BreakpointInput] | None = field(default=None, description="Where to pause.")


@strawberry.input(description="What to run, and how.")
class InstanceStartInput:
    """See ``engine.instances``."""

    workflow: WorkflowRef = field(description="Which workflow to run.")
    input: JSON | None = field(default=None, description="The run's input; it must fit the version's `input_schema`.")
    priority: int = field(default=5, description="From 1 (low) to 10 (urgent).")
    timeout: timedelta | None = field(default=None, description="How long the whole run may take.")
    queue_timeout: timedelta | None = field(
        default=None, description="How long it may wait for its first node to begin."
    )
    idempotency_key: str | None = field(
        default=None, description="Starting again with the same key gives the instance that exists, never a second one."
    )
    labels: list[LabelInput] | None = field(default=None, description="What to put on it, to find it by.")
    parameters: JSON | None = field(
        default=None, description="Parameters that differ from the definition's, as an object."
    )
    debug: DebugInput | None = field(
        default=None, description="Run it under a debugger; a DRAFT's versions run only so."
    )
    wait: timedelta | None = field(
        default=None, description="Answer when the run has ended, or after this long: 60 seconds at most."
    )


@strawberry.type(description="The instance was started, or is the one that the key had started before.")
class InstanceStartPayload:
    """What was started."""

    instance: Instance = field(description="The instance.")
    created: bool = field(description="False if the idempotency key had been used: nothing new was started.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.input(description="Which instance to cancel.")
class InstanceCancelInput:
    """See ``engine.instances``."""

    id: strawberry.ID = field(description="The instance's id.")
    reason: str | None = field(default=None, description="Why, for whoever looks at its history.")


@strawberry.type(description="The request is recorded. The instance is CANCELED when its nodes have stopped.")
class InstanceCancelPayload:
    """What is being cancelled."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


InstanceStartResult = Annotated[
    InstanceStartPayload | ValidationFailed | NotFound | Conflict | PermissionDenied | QuotaExceeded,
    strawberry.union("InstanceStartResult", description="A started instance, or why there is none."),
]
InstanceCancelResult = Annotated[
    InstanceCancelPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("InstanceCancelResult", description="A cancelled instance, or why it is not."),
]


@strawberry.type
class InstanceMutation:
    """What can be done with runs."""

    @mutation(Permission.INSTANCE_RUN, "Run a workflow.")
    async def instance_start(
        self, info: Info, input: Annotated[InstanceStartInput, argument(description="What to run, and how.")]
    ) -> InstanceStartResult:
        """Starts, and waits if asked to."""
        actor, engine = caller(info), info.context.engine
        if input.wait is not None and input.wait > LONGEST_WAIT:
            message = "`wait` can be 60 seconds at most; use a subscription to wait longer."
            raise errors.Invalid([errors.Problem("/wait", "OUT_OF_RANGE", message)], path=("input", "wait"))
        workflow_id, version_id = _given(input.workflow.id), _given(input.workflow.version)
        if version_id is not None:
            version = await info.context.load.version.load(version_id)
            if version is None:
                raise errors.NotFound("workflow version", version_id, path=("input", "workflow", "version"))
            workflow_id = version.workflow_id
        started = await engine.instances.start(
            actor,
            workflow_id=workflow_id,
            workflow_name=_given(input.workflow.name),
            version_id=version_id,
            input=input.input,
            trigger=e.Trigger(type="api"),
            priority=input.priority,
            timeout=input.timeout,
            queue_timeout=input.queue_timeout,
            idempotency_key=input.idempotency_key,
            labels=_labels(input.labels or []),
            debug=None if input.debug is None else debugged(input.debug),
            parameters=parameters(input.parameters),
        )
        if input.wait is not None:
            extend_deadline(input.wait.total_seconds() + 5)
            await engine.instances.wait(actor, started.instance_id, input.wait)
        if started.created is not None and input.wait is None:
            shown = as_created(started, input.idempotency_key, actor)
        else:
            shown = await reread(info, started.instance_id)
        return InstanceStartPayload(
            instance=shown,
            created=started.created is not None,
            change_seq=BigInt(started.change_seq),
        )

    @mutation(Permission.INSTANCE_RUN, "Cancel a run: its nodes are stopped, then it is CANCELED. Twice is once.")
    async def instance_cancel(
        self, info: Info, input: Annotated[InstanceCancelInput, argument(description="Which one, and why.")]
    ) -> InstanceCancelResult:
        """Asks the holder to stop."""
        change_seq = await info.context.engine.instances.cancel(caller(info), input.id, input.reason)
        return InstanceCancelPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))


def debugged(given: DebugInput) -> e.Debug:
    """How the run is debugged, as data."""
    return e.Debug(stepping=given.stepping, breakpoints=breakpoints(given.breakpoints or []))


def breakpoints(given: list[BreakpointInput]) -> tuple[e.Breakpoint, ...]:
    """Where it stops, as data."""
    return tuple(e.Breakpoint(each.node_id, each.phase, each.when) for each in given)


def parameters(given: Any) -> dict[str, Any] | None:
    """Parameters as an object. Raises Invalid for anything else."""
    if given is not None and not isinstance(given, dict):
        problem = errors.Problem("/parameters", "BAD_INPUT", "Parameters are an object: name and value.")
        raise errors.Invalid([problem], path=("input", "parameters"))
    return cast("dict[str, Any] | None", given)


def _labels(given: list[LabelInput]) -> dict[str, str]:
    labels = {label.name: label.value for label in given}
    if len(labels) < len(given):
        message = "Each label's name can be given once."
        raise errors.Invalid([errors.Problem("/labels", "DUPLICATE_KEY", message)], path=("input", "labels"))
    return labels


def _given(value: str | None) -> str | None:
    return None if value is UNSET else value


async def reread(info: Info, id: str) -> Instance:
    """The instance as it is now."""
    info.context.refresh()
    row = await info.context.load.instance.load(id)
    if row is None:
        raise errors.NotFound("instance", id)
    return instance(row, caller(info))
