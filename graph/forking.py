"""Forks: a new run from the middle of an old one."""

from __future__ import annotations

from typing import Annotated

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from engine.access import Permission
from graph.instances import Instance, as_created
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed
from graph.scalars import JSON, BigInt
from graph.starting import DebugInput, debugged
from graph.starting import parameters as overlaid


@strawberry.input(description="A node's output that is given to a fork, and not computed.")
class PinInput:
    """See ``flow.events.Pin``."""

    path: str = field(description="The node's id, in a loop its path.")
    output: JSON | None = field(description="What it gives.")


@strawberry.input(description="Where a new run begins, and what is different in it. What is left out is as it was.")
class InstanceForkInput:
    """See ``engine.instances``."""

    id: strawberry.ID = field(description="The old instance's id.")
    seq: int | None = field(
        default=None, description="Begin as it was right after this event: what had completed is not done again."
    )
    node: str | None = field(
        default=None, description="Or begin before this node (its path). Without either: after the last event."
    )
    version: strawberry.ID | None = field(default=None, description="Another version of the same workflow, by its id.")
    input: JSON | None = field(default=UNSET, description="Another input.")
    parameters: JSON | None = field(default=None, description="Parameters that differ, as an object.")
    pins: list[PinInput] | None = field(default=None, description="Outputs of nodes that are given, not computed.")
    debug: DebugInput | None = field(default=None, description="Run it under a debugger.")


@strawberry.type(description="The fork was started.")
class InstanceForkPayload:
    """What was started."""

    instance: Instance = field(description="The new instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


InstanceForkResult = Annotated[
    InstanceForkPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("InstanceForkResult", description="A new instance, or why there is none."),
]


@strawberry.type
class ForkMutation:
    """Forks."""

    @mutation(
        Permission.INSTANCE_RUN,
        "Start a new run from any event or node of an old one, whether that has ended or not: nodes that had completed "
        "by then keep their outputs (`cached`), the rest runs, with another input, parameters, outputs or version if "
        "you say so. The old run is not touched.",
    )
    async def instance_fork(
        self, info: Info, input: Annotated[InstanceForkInput, argument(description="From where, and what differs.")]
    ) -> InstanceForkResult:
        """Starts."""
        actor = caller(info)
        started = await info.context.engine.instances.fork(
            actor,
            input.id,
            seq=input.seq,
            node=input.node,
            pins={pin.path: pin.output for pin in input.pins or []},
            input=msgspec.UNSET if input.input is UNSET else input.input,
            parameters=overlaid(input.parameters),
            version_id=input.version,
            debug=None if input.debug is None else debugged(input.debug),
        )
        return InstanceForkPayload(instance=as_created(started, None, actor), change_seq=BigInt(started.change_seq))
