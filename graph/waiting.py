"""What nodes wait for, and how runs are debugged, as the schema shows them."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, assert_never, cast

import strawberry
from strawberry import field

from engine.access import Actor, Permission
from flow import events as e
from flow.events import PauseReason, Phase
from graph.objects import choice, derived
from graph.permissions import Info, caller
from graph.scalars import JSON

if TYPE_CHECKING:
    from graph.instances import Instance

strawberry.enum(PauseReason, description="Why an instance stands still: somebody paused it, or a debugger did.")
strawberry.enum(Phase, name="DebugPhase", description="On which side of a node a debugger stops.")


# ---- waits ----------------------------------------------------------------------------------------------------


@strawberry.enum(description="What an approval's answer counts as that does not come in time.")
class ApprovalTimeout(Enum):
    """See ``flow.events.ForApproval``."""

    FAIL = choice("fail", "The node fails (WAIT_TIMEOUT).")
    APPROVE = choice("approve", "Yes.")
    REJECT = choice("reject", "No.")


@strawberry.type(description="Waits for an instant.")
class Timer:
    """See ``flow.events.Timer``."""

    until: datetime | None = field(description="The instant.")


@strawberry.type(description="Waits for a signal: send it by `instanceSignal`.")
class Signal:
    """See ``flow.events.ForSignal``."""

    name: str = field(description="The signal's name.")
    until: datetime | None = field(description="When the node fails if none has come; null: never.")
    payload_schema: JSON | None = field(description="The JSON Schema that the signal's payload must fit.")


@strawberry.type(description="Waits for a person: answer it by `approvalAnswer`.")
class Approval:
    """See ``flow.events.ForApproval``."""

    title: str = field(description="The question.")
    form: JSON | None = field(description="The JSON Schema that the answer must fit.")
    who: list[str] = field(description="The user names that may answer; empty: whoever may run instances.")
    until: datetime | None = field(description="When the answer is due; null: whenever it comes.")
    on_timeout: ApprovalTimeout = field(description="What no answer by then counts as.")
    viewer_can_answer: bool = field(description="True when you may answer it.")


@strawberry.type(description="Waits for a child instance to end.")
class ChildInstance:
    """See ``flow.events.ForChild``."""

    instance_id: strawberry.ID = field(description="The child's id.")

    @derived("The child; null if it has been removed.")
    async def instance(self, info: Info) -> Annotated[Instance, strawberry.lazy("graph.instances")] | None:
        """By loader."""
        from graph.instances import instance

        row = await info.context.load.instance.load(self.instance_id)
        return None if row is None else instance(row, caller(info))


Awaited = Annotated[
    Timer | Signal | Approval | ChildInstance,
    strawberry.union("Awaited", description="What a WAITING node waits for."),
]


def awaited(waits: e.Awaited, actor: Actor | None) -> Timer | Signal | Approval | ChildInstance:
    """The wait as the schema shows it."""
    match waits:
        case e.Timer(until=until):
            return Timer(until=until)
        case e.ForSignal(name=name, until=until, schema=schema):
            return Signal(name=name, until=until, payload_schema=cast(JSON | None, schema))
        case e.ForApproval():
            return Approval(
                title=waits.title,
                form=cast(JSON | None, waits.form),
                who=list(waits.who),
                until=waits.until,
                on_timeout=ApprovalTimeout(waits.on_timeout),
                viewer_can_answer=may_answer(waits, actor),
            )
        case e.ForChild(instance_id=instance_id):
            return ChildInstance(instance_id=strawberry.ID(instance_id))
        case _:
            assert_never(waits)


def may_answer(waits: e.ForApproval, actor: Actor | None) -> bool:
    """Whether the approval takes this caller's answer."""
    if actor is None:
        return False
    return not {actor.name, actor.user_id}.isdisjoint(waits.who) if waits.who else actor.may(Permission.INSTANCE_RUN)


# ---- debugging ------------------------------------------------------------------------------------------------


@strawberry.type(description="Where a debugger stops.")
class DebugBreakpoint:
    """See ``flow.events.Breakpoint``."""

    node_id: str = field(description="The node's id in the definition.")
    phase: Phase = field(description="On which side of the node.")
    when: str | None = field(description="Only if this expression on the node's scope is true.")


@strawberry.type(description="How a run is debugged.")
class Debug:
    """See ``flow.events.Debug``."""

    stepping: bool = field(description="True: it pauses before every node.")
    breakpoints: list[DebugBreakpoint] = field(description="Where it pauses.")


def debug(given: e.Debug) -> Debug:
    """As the schema shows it."""
    points = [DebugBreakpoint(node_id=each.node_id, phase=each.phase, when=each.when) for each in given.breakpoints]
    return Debug(stepping=given.stepping, breakpoints=points)
