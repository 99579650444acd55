"""The node types that the flow decides by itself, and their parameters.

None of them has a handler: what they do is a decision over the run (``flow.control``), so they hold no worker.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec

from flow import durations

#: The lane of these nodes: there is always room in it.
LANE = "flow"

#: How many items a loop takes, and how often a ``while`` runs, unless the loop says otherwise.
DEFAULT_MAX_ITEMS = 10_000
DEFAULT_MAX_ITERATIONS = 1_000
MAX_ITERATIONS = 50_000
MAX_CONCURRENCY = 1_000
#: How deep loops may be within each other.
MAX_LOOPS = 8

_meta = msgspec.Meta
_Moment = Annotated[
    str | int | float,
    _meta(description="A duration ('90s', '2h', 'PT1H', seconds) from its start, or an instant in ISO 8601 with zone."),
]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One branch of a condition."""

    name: Annotated[str, _meta(min_length=1, max_length=128, description="What edges call the branch by.")]
    when: Annotated[str, _meta(description="An expression on the node's scope; the first case that is true is taken.")]


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/condition``."""

    cases: Annotated[list[Case], _meta(description="The branches, in the order in which they are tried.")]
    default: Annotated[str | None, _meta(description="The branch taken where no case is true.")] = None


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a loop repeats: a graph of its own."""

    nodes: Annotated[list[dict[str, Any]], _meta(min_length=1, description="Nodes, as in a workflow.")]
    edges: Annotated[list[dict[str, Any]], _meta(description="Edges between them.")] = []


class Loop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/loop``: ``items`` or ``while``."""

    body: Annotated[Body, _meta(description="The graph that each iteration runs.")]
    items: Annotated[
        str | list[Any] | None,
        _meta(description="An expression that gives the list to go through, such as input.files; or the list itself."),
    ] = None
    while_: Annotated[
        str | None,
        _meta(description="An expression: go on as long as it is true. It sees `index` and `last`, the last output."),
    ] = msgspec.field(default=None, name="while")
    concurrency: Annotated[
        int | str, _meta(description="How many iterations are open at once (`items` only), at most 1,000.")
    ] = 1
    max_iterations: Annotated[
        int | str | None,
        _meta(description="More than this fail the loop (LOOP_LIMIT); 10,000 for `items`, 1,000 for `while`."),
    ] = None
    on_error: Annotated[
        Literal["fail_fast", "collect"],
        _meta(description="A failed iteration fails the loop at once, or is listed in `failed` at its end."),
    ] = "fail_fast"
    output: Annotated[
        dict[str, Any],
        _meta(description="An iteration's output: target path → '$.nodes.<id>…' on its scope. Else its last outputs."),
    ] = {}


class ChildWorkflow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/workflow``."""

    workflow: Annotated[str, _meta(min_length=1, description="The name or the id of the workflow to run.")]
    version: Annotated[str | None, _meta(description="A version, such as 1.2.0; the current one if left out.")] = None
    input: Annotated[Any, _meta(description="The child's input; the node's own input if left out.")] = msgspec.UNSET
    wait: Annotated[
        bool | str, _meta(description="Wait for the child and give its output, or go on at once with its id.")
    ] = True
    on_parent_end: Annotated[
        Literal["cancel", "abandon"], _meta(description="What becomes of the child if this run ends before it.")
    ] = "cancel"


class Delay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/delay``: ``duration`` or ``until``."""

    duration: Annotated[str | int | float | None, _meta(description="How long: '90s', '2h', 'PT1H', seconds.")] = None
    until: Annotated[str | None, _meta(description="Until when: an instant in ISO 8601 with its time zone.")] = None


class WaitSignal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/wait-signal``."""

    name: Annotated[str, _meta(min_length=1, max_length=128, description="The signal's name.")]
    deadline: Annotated[_Moment | None, _meta(description="After it the node fails (WAIT_TIMEOUT).")] = None
    schema: Annotated[dict[str, Any] | None, _meta(description="The JSON Schema that the payload must fit.")] = None


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of ``core/approval``."""

    title: Annotated[str, _meta(min_length=1, max_length=500, description="What is asked.")]
    form: Annotated[dict[str, Any] | None, _meta(description="The JSON Schema of the answer.")] = None
    who: Annotated[
        list[str], _meta(description="User names that may answer; if empty, whoever may run instances.")
    ] = []
    deadline: Annotated[_Moment | None, _meta(description="Until when an answer is waited for.")] = None
    on_timeout: Annotated[
        Literal["fail", "approve", "reject"], _meta(description="What no answer by the deadline counts as.")
    ] = "fail"


#: Every type that is decided here, and its parameters.
PARAMETERS: dict[str, type[msgspec.Struct]] = {
    "core/condition": Condition,
    "core/loop": Loop,
    "core/workflow": ChildWorkflow,
    "core/delay": Delay,
    "core/wait-signal": WaitSignal,
    "core/approval": Approval,
}
LOOP = "core/loop"


def moment(given: str | float, now: datetime) -> datetime:
    """The instant that a duration from now, or an instant, names. Raises ValueError with a sentence."""
    if isinstance(given, str) and "-" in given:
        return instant(given)
    return later(now, durations.parse(given))


def instant(text: str) -> datetime:
    """The instant of an ISO 8601 text with its zone. Raises ValueError with a sentence."""
    try:
        found = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:60]!r} is not an instant; write one like '2026-12-01T09:00:00Z'") from None
    if found.tzinfo is None:
        raise ValueError(f"{text[:60]!r} has no time zone; add 'Z' or '+02:00'")
    return found.astimezone(UTC)


def later(now: datetime, by: timedelta) -> datetime:
    """``now`` plus a duration. Raises ValueError beyond the calendar."""
    try:
        return now + by
    except OverflowError:
        raise ValueError("the duration leads beyond the calendar") from None
