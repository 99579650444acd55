"""How edges settle, and what a join makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, assert_never

import msgspec

from flow import expressions
from flow.definition import Edge, Join, On
from flow.errors import Failure
from flow.expressions import ExpressionError
from flow.history import NodeState
from flow.states import NodeStatus, SkipReason


class Settled(StrEnum):
    """To what an edge settled, once."""

    LIVE = "live"
    DEAD = "dead"
    FAILED = "failed"


def settle(edge: Edge, source: NodeState) -> Settled:
    """To what the edge settles, its source having ended. Raises ExpressionError if its condition can't be evaluated."""
    match source.status:
        case NodeStatus.COMPLETED:
            followed = edge.on is not On.FAILURE
        case NodeStatus.FAILED:
            if edge.on is On.SUCCESS:
                return Settled.FAILED
            followed = True
        case _:  # SKIPPED, and CANCELED when a run ends early: nothing comes this way any more
            return Settled.DEAD
    if followed and edge.condition is not None:
        followed = expressions.truthy(expressions.search(edge.condition, outcome(source)))
    return Settled.LIVE if followed else Settled.DEAD


def outcome(state: NodeState) -> Any:
    """What an edge's condition and mapping see of its source: its output, or ``{error: …}`` where it failed."""
    if state.status is NodeStatus.FAILED and state.error is not None:
        return {"error": msgspec.to_builtins(state.error)}
    return state.output


@dataclass(slots=True)
class Tally:
    """How a node's incoming edges have settled so far; ``skipped`` of the dead ones came from skipped nodes."""

    total: int
    live: int = 0
    dead: int = 0
    failed: int = 0
    skipped: int = 0
    rescued: bool = False
    #: Edges whose condition could not be evaluated, and the first one's error.
    broken: int = 0
    error: Failure | None = None

    @property
    def settled(self) -> bool:
        """True when no edge is open any more."""
        return self.live + self.dead + self.failed + self.broken == self.total

    def count(self, edge: Edge, source: NodeState) -> None:
        """Take in how the edge settled, its source having ended."""
        try:
            match settle(edge, source):
                case Settled.LIVE:
                    self.live += 1
                    self.rescued |= source.status is NodeStatus.FAILED
                case Settled.FAILED:
                    self.failed += 1
                case Settled.DEAD:
                    self.dead += 1
                    self.skipped += source.status is not NodeStatus.COMPLETED and source.status is not NodeStatus.FAILED
        except ExpressionError as error:
            self.broken += 1
            self.error = self.error or msgspec.structs.replace(
                error.failure(edge.target),
                message=f"The condition of the edge {edge.source} → {edge.target} failed: {error.message}",
            )


class Verdict(Enum):
    """What a join says."""

    WAIT = "wait"
    START = "start"
    SKIP = "skip"
    FAIL = "fail"


def verdict(join: Join, tally: Tally) -> Verdict:
    """Whether a node with this join starts, given how its edges settled; final as soon as it isn't WAIT.

    Only what starts a node at its first live or failed edge is decided before all edges have settled, so that
    the order in which they do never makes a difference.
    """
    match join:
        case Join.ANY if tally.live:
            return Verdict.START
        case Join.ONE_FAILED if tally.failed:
            return Verdict.START
        case _ if not tally.settled:
            return Verdict.WAIT
        case _ if tally.broken:
            return Verdict.FAIL
        case Join.ALL:
            starts = tally.live > 0 and tally.failed == 0
        case Join.ALL_LIVE:
            starts = tally.live == tally.total
        case Join.ALL_DONE:
            starts = True
        case Join.NONE_FAILED:
            starts = tally.failed == 0
        case Join.ANY | Join.ONE_FAILED:
            starts = False
        case _:
            assert_never(join)
    return Verdict.START if starts or tally.total == 0 else Verdict.SKIP


def skip_reason(tally: Tally) -> SkipReason:
    """Why a node whose join said SKIP is skipped."""
    if tally.failed:
        return SkipReason.UPSTREAM_FAILED
    return SkipReason.UPSTREAM_SKIPPED if tally.dead and tally.skipped == tally.dead else SkipReason.CONDITION
