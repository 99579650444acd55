"""The debugger: stepping, breakpoints, and other values than those that a run came to by itself."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, cast

import strawberry
from strawberry import argument, field

from db.store import instances as store
from engine.access import Permission
from flow import errors
from flow.expressions import ExpressionError, compiled
from flow.graph import split
from flow.planner import Names, Run
from flow.states import NodeStatus
from graph.blocked import graph_at
from graph.instances import Instance
from graph.permissions import Info, caller, mutation, query
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed, refusal_as_result
from graph.scalars import JSON, BigInt
from graph.starting import BreakpointInput, breakpoints, reread

# ---- inputs ---------------------------------------------------------------------------------------------------


@strawberry.input(description="Which run goes on by one node.")
class DebugStepInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")


@strawberry.input(description="Which run goes on.")
class DebugContinueInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")


@strawberry.input(description="Where a run stops from now on, instead of where it did before.")
class DebugBreakpointsSetInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")
    breakpoints: list[BreakpointInput] = field(description="Every breakpoint that there shall be; empty: none.")
    stepping: bool = field(default=False, description="True: stop before every node.")


@strawberry.input(description="What a node gets instead of its own input.")
class DebugInputSetInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id; it is PAUSED.")
    path: str = field(description="The node's id, in a loop its path. It has not started yet.")
    value: JSON | None = field(description="The input.")


@strawberry.input(description="What a node gave instead of its own output.")
class DebugOutputSetInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id; it is PAUSED.")
    path: str = field(description="The node's id, in a loop its path. It is not running.")
    value: JSON | None = field(description="The output; the node counts as COMPLETED with it.")


# ---- payloads -------------------------------------------------------------------------------------------------


@strawberry.type(description="The run goes on by one node, and pauses before the next.")
class DebugStepPayload:
    """What goes on."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The run goes on to the next breakpoint.")
class DebugContinuePayload:
    """What goes on."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The breakpoints are set.")
class DebugBreakpointsSetPayload:
    """What is debugged."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The node gets this input when it starts.")
class DebugInputSetPayload:
    """What is debugged."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The node is COMPLETED with this output.")
class DebugOutputSetPayload:
    """What is debugged."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


DebugStepResult = Annotated[
    DebugStepPayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugStepResult", description="A run that goes on, or why it does not."),
]
DebugContinueResult = Annotated[
    DebugContinuePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugContinueResult", description="A run that goes on, or why it does not."),
]
DebugBreakpointsSetResult = Annotated[
    DebugBreakpointsSetPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugBreakpointsSetResult", description="Breakpoints that are set, or why they are not."),
]
DebugInputSetResult = Annotated[
    DebugInputSetPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugInputSetResult", description="An input that is set, or why it is not."),
]
DebugOutputSetResult = Annotated[
    DebugOutputSetPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugOutputSetResult", description="An output that is set, or why it is not."),
]


@strawberry.type(description="What the expression gives.")
class DebugEvaluatePayload:
    """A value."""

    value: JSON | None = field(description="The value; null also where nothing is found.")
    node_path: str = field(description="The node on whose scope it was evaluated.")


DebugEvaluateResult = Annotated[
    DebugEvaluatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("DebugEvaluateResult", description="A value, or why there is none."),
]


@strawberry.type
class DebugQuery:
    """Trying out."""

    @query(
        Permission.INSTANCE_READ,
        "An expression on what a node sees: its input's keys, `input`, `nodes`, `parameters`, `trigger`, in a loop "
        "`item` and `index`; of a node that has completed also `output`. Changes nothing; the run may also have ended.",
    )
    async def debug_evaluate(
        self,
        info: Info,
        instance: Annotated[strawberry.ID, argument(name="instance", description="The instance's id.")],
        expression: Annotated[str, argument(description="JMESPath, without the braces of a template.")],
        node: Annotated[
            str | None, argument(description="The node's path; left out: the node at which the run has stopped.")
        ] = None,
    ) -> DebugEvaluateResult:
        """Replays the run and asks it."""
        try:
            path, value = await _evaluated(info, instance, node, expression)
        except errors.WorkflowError as error:
            refusal = refusal_as_result(_as_invalid(error))
            if not isinstance(refusal, ValidationFailed | NotFound | Conflict | PermissionDenied):
                raise
            return refusal
        return DebugEvaluatePayload(value=cast(JSON | None, value), node_path=path)


def _as_invalid(error: errors.WorkflowError) -> errors.WorkflowError:
    """An expression that can't be read or evaluated is a mistake in what was asked."""
    if not isinstance(error, ExpressionError):
        return error
    return errors.Invalid([errors.Problem("/expression", error.code, error.message)], path=("expression",))


async def _evaluated(info: Info, instance_id: str, node: str | None, expression: str) -> tuple[str, Any]:
    load, engine = info.context.load, info.context.engine
    row = await load.instance.load(instance_id)
    if row is None:
        raise errors.NotFound("instance", instance_id, path=("instance",))
    wanted = compiled(expression)
    graph = await load.graph.load(row.version_id)
    if graph is None:
        raise errors.Conflict("The run's version has problems: nothing can be evaluated on it.")
    workflow = await load.workflow.load(row.workflow_id)
    name = workflow.name if workflow is not None else ""
    history = await engine.database.read(store.events, instance_id)
    history = await engine.executor.loader.with_large_values(history)
    called = Names(instance_id, name, caller(info).project_id)
    run = await asyncio.to_thread(Run, graph, history, called)
    paused = run.snapshot.pause
    path = node or (paused.path if paused is not None else None)
    if path is None:
        problem = errors.Problem("/node", "REQUIRED", "The run stands at no node: name one.")
        raise errors.Invalid([problem], path=("node",))
    known = graph_at(graph, path)
    if known is None or split(path)[1] not in known.nodes:
        raise errors.NotFound("node", path, path=("node",))
    if run.scope_of(path) is None:
        raise errors.Conflict(f"The iteration of {path!r} is not under way (any more).", path=("node",))
    scope = run.names(path, run.input(path))
    state = run.snapshot.nodes.get(path)
    if state is not None and state.status is NodeStatus.COMPLETED:
        scope["output"] = state.output
    return path, await asyncio.to_thread(wanted.search, scope)


@strawberry.type
class DebugMutation:
    """What a debugger does."""

    @mutation(Permission.INSTANCE_RUN, "Let a paused run go on by one node: it pauses again before the next.")
    async def debug_step(
        self, info: Info, input: Annotated[DebugStepInput, argument(description="Which run.")]
    ) -> DebugStepResult:
        """Resumes with ``step``."""
        change_seq = await info.context.engine.instances.debug_step(caller(info), input.id)
        return DebugStepPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(Permission.INSTANCE_RUN, "Let a paused run go on to the next breakpoint, or to its end.")
    async def debug_continue(
        self, info: Info, input: Annotated[DebugContinueInput, argument(description="Which run.")]
    ) -> DebugContinueResult:
        """Resumes."""
        change_seq = await info.context.engine.instances.debug_continue(caller(info), input.id)
        return DebugContinuePayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(
        Permission.INSTANCE_RUN,
        "Say where a run stops, also while it runs: these breakpoints take the place of those before. "
        "To run to a node, set a breakpoint BEFORE it and `debugContinue`.",
    )
    async def debug_breakpoints_set(
        self, info: Info, input: Annotated[DebugBreakpointsSetInput, argument(description="Where it stops.")]
    ) -> DebugBreakpointsSetResult:
        """Sets what is there."""
        change_seq = await info.context.engine.instances.debug_set(
            caller(info), input.id, breakpoints(input.breakpoints), stepping=input.stepping
        )
        return DebugBreakpointsSetPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(Permission.INSTANCE_RUN, "Give a node of a paused run another input; go on by `debugContinue`.")
    async def debug_input_set(
        self, info: Info, input: Annotated[DebugInputSetInput, argument(description="The input.")]
    ) -> DebugInputSetResult:
        """Recorded as an event."""
        change_seq = await info.context.engine.instances.debug_value_set(
            caller(info), input.id, input.path, "input", input.value
        )
        return DebugInputSetPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(Permission.INSTANCE_RUN, "Give a node of a paused run an output; go on by `debugContinue`.")
    async def debug_output_set(
        self, info: Info, input: Annotated[DebugOutputSetInput, argument(description="The output.")]
    ) -> DebugOutputSetResult:
        """Recorded as an event."""
        change_seq = await info.context.engine.instances.debug_value_set(
            caller(info), input.id, input.path, "output", input.value
        )
        return DebugOutputSetPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))
