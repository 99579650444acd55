"""The debugger: stepping, breakpoints, and other values than those that a run came to by itself."""

from __future__ import annotations

from typing import Annotated

import strawberry
from strawberry import argument, field

from engine.access import Permission
from graph.instances import Instance
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed
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
