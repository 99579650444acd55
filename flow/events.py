"""The facts that make up an instance's history: one class per kind, in the order of a run's life.

An instance *is* its events: ``flow.history.replay`` folds them into a snapshot, everything
else (rows, streams, pictures) follows from them. A ``Recorded`` event has its place in two
orders: ``seq`` runs 1..n without a gap in its instance, ``change_seq`` orders a whole project.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from flow.errors import Failure


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """One fact about an instance."""


class NodeEvent(Event, frozen=True, omit_defaults=True, tag_field="type"):
    """One fact about one node; ``path`` is the node's id, with the iteration in a loop: ``resize[3]/encode``."""

    path: str


class Trigger(msgspec.Struct, frozen=True, omit_defaults=True):
    """What started an instance: the trigger's type and id, and what it brought."""

    type: str = "manual"
    id: str | None = None
    payload: Any = None


class Artifact(msgspec.Struct, frozen=True):
    """A value that is too large for an event: where it is, how large, and the beginning of it.

    ``size`` is in bytes; ``preview`` is the first 1,000 characters of the JSON text.
    """

    id: str
    sha256: str
    size: int
    media_type: str
    preview: str


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an attempt used: CPU seconds, memory over time, and its peak. None where the platform can't tell."""

    cpu_seconds: float | None = None
    memory_mb_seconds: float | None = None
    peak_memory_mb: float | None = None


class Timer(msgspec.Struct, frozen=True, omit_defaults=True, tag="timer", tag_field="kind"):
    """Waiting for an instant."""

    until: datetime


class ForSignal(msgspec.Struct, frozen=True, omit_defaults=True, tag="signal", tag_field="kind"):
    """Waiting for a signal of this name whose payload fits ``schema``; past ``until`` the node fails (WAIT_TIMEOUT)."""

    name: str
    until: datetime | None = None
    schema: dict[str, Any] | None = None


class ForApproval(msgspec.Struct, frozen=True, omit_defaults=True, tag="approval", tag_field="kind"):
    """Waiting for a person's answer. ``who``: user names that may answer (empty: whoever may run instances).

    ``on_timeout``: what an answer that doesn't come by ``until`` counts as.
    """

    title: str
    form: dict[str, Any] | None = None
    who: tuple[str, ...] = ()
    until: datetime | None = None
    on_timeout: Literal["fail", "approve", "reject"] = "fail"


class ForChild(msgspec.Struct, frozen=True, omit_defaults=True, tag="child", tag_field="kind"):
    """Waiting for a child instance to end."""

    instance_id: str


Awaited = Timer | ForSignal | ForApproval | ForChild


class PauseReason(StrEnum):
    """Why an instance stands still."""

    USER = "USER"
    BREAKPOINT = "BREAKPOINT"
    STEP = "STEP"


class Phase(StrEnum):
    """On which side of a node a breakpoint is."""

    BEFORE = "BEFORE"
    AFTER = "AFTER"


class Breakpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Stop at this node, if ``when`` (an expression on its scope; with AFTER also ``output``) is true or absent."""

    node_id: str
    phase: Phase = Phase.BEFORE
    when: str | None = None


class Debug(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run is debugged: ``stepping`` pauses before every node."""

    stepping: bool = False
    breakpoints: tuple[Breakpoint, ...] = ()


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node's output that is given, not computed."""

    path: str
    output: Any = None


class Parent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose child an instance is: the parent's node waits for it, or not. ``depth`` counts from 1."""

    instance_id: str
    path: str
    depth: int = 1
    waits: bool = True
    on_parent_end: Literal["cancel", "abandon"] = "cancel"


class InstanceCreated(Event, frozen=True, omit_defaults=True, tag="instance.created"):
    """Event 1: everything that a run needs to know besides its version's definition."""

    workflow_id: str
    version_id: str
    input: Any = None
    trigger: Trigger = Trigger()
    priority: int = 5
    timeout: timedelta | None = None
    queue_timeout: timedelta | None = None
    labels: dict[str, str] = {}
    created_by: str | None = None
    debug: Debug | None = None
    parent: Parent | None = None
    fork_of: str | None = None
    pins: tuple[Pin, ...] = ()
    parameters: dict[str, Any] = {}
    concurrency_key: str | None = None


class InstanceStarted(Event, frozen=True, omit_defaults=True, tag="instance.started"):
    worker: str | None = None


class InstancePaused(Event, frozen=True, omit_defaults=True, tag="instance.paused"):
    """No node is started until ``instance.resumed``; running ones finish. ``path``: the node a debugger stopped at."""

    reason: PauseReason
    by: str | None = None
    path: str | None = None
    phase: Phase | None = None


class InstanceResumed(Event, frozen=True, omit_defaults=True, tag="instance.resumed"):
    """Go on. ``step``: only to the next node."""

    by: str | None = None
    step: bool = False


class InstanceReopened(Event, frozen=True, omit_defaults=True, tag="instance.reopened"):
    """A FAILED instance goes on: these failed nodes run again, and what was skipped or cancelled for them.

    A letter names ``paths``; the run works out ``reset``: every node that is PENDING again (``Run.reopening``).
    """

    paths: tuple[str, ...]
    by: str | None = None
    reset: tuple[str, ...] = ()


class DebugSet(Event, frozen=True, omit_defaults=True, tag="debug.set"):
    """Stepping and breakpoints from now on."""

    debug: Debug
    by: str | None = None


class ValueSet(Event, frozen=True, omit_defaults=True, tag="debug.value_set"):
    """A debugger gave a node another input, or another output (then the node counts as COMPLETED with it)."""

    path: str
    what: Literal["input", "output"]
    value: Any = None
    by: str | None = None


class SignalReceived(Event, frozen=True, omit_defaults=True, tag="signal.received"):
    """A signal: taken by the oldest node that waits for its name, or kept for the first that will."""

    name: str
    payload: Any = None
    by: str | None = None


class ApprovalAnswered(Event, frozen=True, omit_defaults=True, tag="approval.answered"):
    """A person's answer to the approval that waits at ``path``."""

    path: str
    approved: bool
    answer: Any = None
    comment: str | None = None
    by: str | None = None


class ChildEnded(Event, frozen=True, omit_defaults=True, tag="child.ended"):
    """The child instance that ``path`` waits for has ended with this status, output or error."""

    path: str
    instance_id: str
    status: str
    output: Any = None
    artifact: Artifact | None = None
    error: Failure | None = None


class CancelRequested(Event, frozen=True, omit_defaults=True, tag="instance.cancel_requested"):
    by: str | None = None
    reason: str | None = None


class InstanceCompleted(Event, frozen=True, omit_defaults=True, tag="instance.completed"):
    output: Any = None
    artifact: Artifact | None = None


class InstanceFailed(Event, frozen=True, omit_defaults=True, tag="instance.failed"):
    error: Failure


class InstanceCanceled(Event, frozen=True, omit_defaults=True, tag="instance.canceled"):
    reason: str | None = None


class InstanceTimedOut(Event, frozen=True, omit_defaults=True, tag="instance.timed_out"):
    error: Failure


class NodeScheduled(NodeEvent, frozen=True, omit_defaults=True, tag="node.scheduled"):
    """The attempt is offered to every worker with these labels and so many graphics cards; one of them makes it."""

    attempt: int
    labels: tuple[str, ...] = ()
    gpus: int = 0


class NodeStarted(NodeEvent, frozen=True, omit_defaults=True, tag="node.started"):
    """The attempt is about to be made: committed before the handler is called."""

    attempt: int
    worker: str | None = None


class NodeWaiting(NodeEvent, frozen=True, omit_defaults=True, tag="node.waiting"):
    """The node waits for something outside; nothing runs meanwhile."""

    attempt: int
    awaited: Awaited


class NodeProgress(NodeEvent, frozen=True, omit_defaults=True, tag="node.progress"):
    attempt: int
    done: float
    total: float | None = None
    message: str | None = None


class NodeLog(NodeEvent, frozen=True, omit_defaults=True, tag="node.log"):
    attempt: int
    message: str
    level: Literal["debug", "info", "warning", "error"] = "info"
    fields: dict[str, Any] = {}


class NodeRetrying(NodeEvent, frozen=True, omit_defaults=True, tag="node.retrying"):
    """The attempt failed; the next one is due at ``due``."""

    attempt: int
    error: Failure
    due: datetime


class NodeCompleted(NodeEvent, frozen=True, omit_defaults=True, tag="node.completed"):
    """The attempt gave ``output``; a large one is in the artifact store and ``output`` is None here."""

    attempt: int
    output: Any = None
    artifact: Artifact | None = None
    usage: Usage | None = None
    cached: bool = False


class NodeFailed(NodeEvent, frozen=True, omit_defaults=True, tag="node.failed"):
    """The node failed for good: its last attempt's error."""

    attempt: int
    error: Failure
    usage: Usage | None = None


class NodeSkipped(NodeEvent, frozen=True, omit_defaults=True, tag="node.skipped"):
    """The node will not run; ``reason`` is a ``flow.states.SkipReason``."""

    reason: str


class NodeCanceled(NodeEvent, frozen=True, omit_defaults=True, tag="node.canceled"):
    attempt: int


class NodeLost(NodeEvent, frozen=True, omit_defaults=True, tag="node.lost"):
    """The worker that ran the attempt died in the middle, or handed it over; its next attempt is due at once."""

    attempt: int
    worker: str | None = None
    #: The worker was stopped in good order and gave up what it could not finish in time.
    handed_over: bool = False


AnyEvent = (
    InstanceCreated
    | InstanceStarted
    | InstancePaused
    | InstanceResumed
    | InstanceReopened
    | CancelRequested
    | DebugSet
    | ValueSet
    | SignalReceived
    | ApprovalAnswered
    | ChildEnded
    | InstanceCompleted
    | InstanceFailed
    | InstanceCanceled
    | InstanceTimedOut
    | NodeScheduled
    | NodeStarted
    | NodeWaiting
    | NodeProgress
    | NodeLog
    | NodeRetrying
    | NodeCompleted
    | NodeFailed
    | NodeSkipped
    | NodeCanceled
    | NodeLost
)

EVENT_TYPES: dict[str, type[Event]] = {str(kind.__struct_config__.tag): kind for kind in AnyEvent.__args__}


class Recorded(msgspec.Struct, frozen=True):
    """An event in its place: ``seq`` 1..n in the instance, ``change_seq`` in the project (0 until committed)."""

    seq: int
    at: datetime
    event: AnyEvent
    change_seq: int = 0

    @property
    def type(self) -> str:
        """The event's stable name, such as ``node.completed``."""
        return str(self.event.__struct_config__.tag)


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    """The event as JSON, as it is stored."""
    return _encoder.encode(event)


def decode(data: bytes | str) -> AnyEvent:
    """The event that ``encode`` wrote. Raises msgspec.ValidationError if the text is no event."""
    return _decoder.decode(data)
