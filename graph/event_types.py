"""The kinds of events as the schema shows them: one interface, one type for each kind."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import cast

import msgspec
import strawberry
from strawberry import field

from engine.access import Actor
from flow import events as e
from flow.events import PauseReason, Phase
from flow.states import InstanceStatus, SkipReason
from graph.objects import (
    Failure,
    NodeProgress,
    OutputArtifact,
    ResourceUsage,
    choice,
    derived,
    may_see_tracebacks,
)
from graph.scalars import JSON, BigInt
from graph.waiting import Awaited, Debug


@strawberry.enum(description="How loud a log line is.")
class LogLevel(Enum):
    """In rising order."""

    DEBUG = choice("debug", "For whoever builds the workflow.")
    INFO = choice("info", "What happens.")
    WARNING = choice("warning", "Something is not as it should be.")
    ERROR = choice("error", "Something went wrong.")


@strawberry.interface(description="One fact about an instance. `seq` runs 1, 2, 3 … without a gap.")
class InstanceEvent:
    """See ``flow.events``."""

    instance_id: strawberry.ID = field(description="The instance it is about.")
    seq: int = field(description="Its place in the instance's history, from 1: resume a stream `after` it.")
    change_seq: BigInt = field(description="Its place in the project's order of changes.")
    at: datetime = field(description="When it happened.")
    type: str = field(description="Its stable name, such as node.completed.")
    recorded: strawberry.Private[e.Recorded]
    actor: strawberry.Private[Actor | None]

    @derived("The whole event as JSON, with the fields of its kind in snake_case.")
    def data(self) -> JSON:
        """As it is stored, without a traceback for those who may not see it."""
        plain = msgspec.to_builtins(self.recorded.event)
        error = plain.get("error")
        if isinstance(error, dict) and not may_see_tracebacks(self.actor):
            error.pop("traceback", None)
        return cast(JSON, plain)


@strawberry.interface(description="One fact about one node of an instance.")
class NodeEvent(InstanceEvent):
    """See ``flow.events.NodeEvent``."""

    node_path: str = field(description="The node's place in the run: its id, in a loop with the iteration.")
    node_id: str = field(description="The node's id in the definition.")


@strawberry.type(description="The instance exists: event 1.")
class InstanceCreatedEvent(InstanceEvent):
    """See ``flow.events.InstanceCreated``."""

    input: JSON | None = field(description="The instance's input.")
    trigger_type: str = field(description="What started it: api, manual, schedule …")
    priority: int = field(description="From 1 (low) to 10 (urgent).")
    timeout: timedelta | None = field(description="How long the whole run may take.")


@strawberry.type(description="The first worker took the instance up.")
class InstanceStartedEvent(InstanceEvent):
    """See ``flow.events.InstanceStarted``."""

    worker: str | None = field(description="The worker.")


@strawberry.type(description="No node is started any more until the instance is resumed; running ones finish.")
class InstancePausedEvent(InstanceEvent):
    """See ``flow.events.InstancePaused``."""

    pause_reason: PauseReason = field(description="Why.")
    by: str | None = field(description="Who paused it: a user's id.")
    stopped_at: str | None = field(description="The path of the node that a debugger stopped at.")
    phase: Phase | None = field(description="On which side of that node.")


@strawberry.type(description="A paused instance goes on.")
class InstanceResumedEvent(InstanceEvent):
    """See ``flow.events.InstanceResumed``."""

    by: str | None = field(description="Who resumed it: a user's id.")
    step: bool = field(description="True if only to the next node.")


@strawberry.type(description="A FAILED instance goes on: failed nodes were retried by hand.")
class InstanceReopenedEvent(InstanceEvent):
    """See ``flow.events.InstanceReopened``."""

    by: str | None = field(description="Who retried: a user's id.")
    paths: list[str] = field(description="The failed nodes that run again.")


@strawberry.type(description="Stepping and breakpoints from now on.")
class DebugSetEvent(InstanceEvent):
    """See ``flow.events.DebugSet``."""

    by: str | None = field(description="Who set them: a user's id.")
    debug: Debug = field(description="How the run is debugged.")


@strawberry.enum(description="Which value of a node a debugger set.")
class DebugValue(Enum):
    """Before or behind it."""

    INPUT = choice("input", "What the node gets.")
    OUTPUT = choice("output", "What the node gave.")


@strawberry.type(description="A debugger gave a node another input, or another output.")
class DebugValueSetEvent(InstanceEvent):
    """See ``flow.events.ValueSet``."""

    node_path: str = field(description="The node's place in the run.")
    by: str | None = field(description="Who set it: a user's id.")
    what: DebugValue = field(description="Which value.")
    value: JSON | None = field(description="The value.")


@strawberry.type(description="A signal came: for the oldest wait of its name, or kept for the first that will be.")
class SignalReceivedEvent(InstanceEvent):
    """See ``flow.events.SignalReceived``."""

    by: str | None = field(description="Who sent it: a user's id.")
    name: str = field(description="The signal's name.")
    payload: JSON | None = field(description="What came with it.")


@strawberry.type(description="A person answered an approval.")
class ApprovalAnsweredEvent(InstanceEvent):
    """See ``flow.events.ApprovalAnswered``."""

    node_path: str = field(description="The approval's place in the run.")
    by: str | None = field(description="Who answered: a user's id.")
    approved: bool = field(description="True for yes.")
    answer: JSON | None = field(description="The form as it was filled in.")
    comment: str | None = field(description="What was said with it.")


@strawberry.type(description="A child instance that a node waits for has ended.")
class ChildEndedEvent(InstanceEvent):
    """See ``flow.events.ChildEnded``."""

    node_path: str = field(description="The place of the node that started the child.")
    child_id: strawberry.ID = field(description="The child instance.")
    child_status: InstanceStatus = field(description="How it ended.")
    output: JSON | None = field(description="The child's output; null if it is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="The child's output, if it is large.")
    child_error: Failure | None = field(description="Why it failed, if it did.")


@strawberry.type(description="Somebody asked for the instance to be cancelled; its nodes are being stopped.")
class InstanceCancelRequestedEvent(InstanceEvent):
    """See ``flow.events.CancelRequested``."""

    by: str | None = field(description="Who asked: a user's id.")
    reason: str | None = field(description="Why.")


@strawberry.type(description="The instance completed: the last event.")
class InstanceCompletedEvent(InstanceEvent):
    """See ``flow.events.InstanceCompleted``."""

    output: JSON | None = field(description="The instance's output; null if it is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="The output, if it is large.")


@strawberry.type(description="The instance failed: the last event, unless it is retried by hand.")
class InstanceFailedEvent(InstanceEvent):
    """See ``flow.events.InstanceFailed``."""

    error: Failure = field(description="Why.")


@strawberry.type(description="The instance was cancelled: the last event.")
class InstanceCanceledEvent(InstanceEvent):
    """See ``flow.events.InstanceCanceled``."""

    reason: str | None = field(description="Why.")


@strawberry.type(description="The instance took too long: the last event.")
class InstanceTimedOutEvent(InstanceEvent):
    """See ``flow.events.InstanceTimedOut``."""

    error: Failure = field(description="Which limit was met.")


@strawberry.type(description="An attempt of a node began.")
class NodeStartedEvent(NodeEvent):
    """See ``flow.events.NodeStarted``."""

    attempt: int = field(description="Which attempt, from 1.")
    worker: str | None = field(description="The worker that makes it.")


@strawberry.type(description="A node waits for something outside; nothing runs meanwhile.")
class NodeWaitingEvent(NodeEvent):
    """See ``flow.events.NodeWaiting``."""

    attempt: int = field(description="Which attempt, from 1.")
    awaited: Awaited = field(description="What it waits for.")


@strawberry.type(description="A node says how far it has come.")
class NodeProgressEvent(NodeEvent):
    """See ``flow.events.NodeProgress``."""

    attempt: int = field(description="Which attempt, from 1.")
    progress: NodeProgress = field(description="How far it has come.")


@strawberry.type(description="A node wrote a line to its log.")
class NodeLogEvent(NodeEvent):
    """See ``flow.events.NodeLog``."""

    attempt: int = field(description="Which attempt, from 1.")
    level: LogLevel = field(description="How loud it is.")
    message: str = field(description="The line.")
    fields: JSON = field(description="What was kept with the line, as an object.")


@strawberry.type(description="An attempt of a node failed and will be made again.")
class NodeRetryingEvent(NodeEvent):
    """See ``flow.events.NodeRetrying``."""

    attempt: int = field(description="The attempt that failed, from 1.")
    error: Failure = field(description="Why it failed.")
    due: datetime = field(description="When the next attempt is due.")


@strawberry.type(description="A node completed.")
class NodeCompletedEvent(NodeEvent):
    """See ``flow.events.NodeCompleted``."""

    attempt: int = field(description="The attempt that succeeded, from 1.")
    output: JSON | None = field(description="The node's output; null if it is large: see `outputArtifact`.")
    output_artifact: OutputArtifact | None = field(description="The output, if it is large.")
    resource_usage: ResourceUsage | None = field(description="What the attempt used.")
    cached: bool = field(description="True if nothing was run for it: the output is a pinned or remembered one.")


@strawberry.type(description="A node failed for good.")
class NodeFailedEvent(NodeEvent):
    """See ``flow.events.NodeFailed``."""

    attempt: int = field(description="The last attempt, from 1.")
    error: Failure = field(description="Why it failed.")
    resource_usage: ResourceUsage | None = field(description="What the attempt used.")


@strawberry.type(description="A node will not run.")
class NodeSkippedEvent(NodeEvent):
    """See ``flow.events.NodeSkipped``."""

    skip_reason: SkipReason = field(description="Why.")


@strawberry.type(description="A node was stopped.")
class NodeCanceledEvent(NodeEvent):
    """See ``flow.events.NodeCanceled``."""

    attempt: int = field(description="The attempt that was stopped, from 1.")


@strawberry.type(
    description="The worker that ran a node died in the middle, or handed it over; the next attempt is due at once."
)
class NodeLostEvent(NodeEvent):
    """See ``flow.events.NodeLost``."""

    attempt: int = field(description="The attempt that was lost, from 1.")
    worker: str | None = field(description="The worker that is gone.")
    handed_over: bool = field(
        description="True: the worker was stopped in good order and gave up what it could not finish in time."
    )


@strawberry.type(description="A node is offered to other workers: whoever has the labels and a free place starts it.")
class NodeScheduledEvent(NodeEvent):
    """See ``flow.events.NodeScheduled``."""

    attempt: int = field(description="The attempt that is offered, from 1.")
    labels: list[str] = field(description="Labels that the worker must have.")
    gpus: int = field(description="Graphics cards that the worker must have free.")


@strawberry.type(description="A line that a node wrote.")
class LogLine:
    """A ``node.log`` event by itself."""

    seq: int = field(description="Its place in the instance's history: resume `after` it.")
    at: datetime = field(description="When it was written.")
    node_id: str = field(description="The node that wrote it.")
    node_path: str = field(description="The node's place in the run.")
    attempt: int = field(description="Which attempt wrote it, from 1.")
    level: LogLevel = field(description="How loud it is.")
    message: str = field(description="The line.")
    fields: JSON = field(description="What was kept with the line, as an object.")
