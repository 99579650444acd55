"""Events as the schema shows them: one interface, one type for each kind, so that a client's types are exact."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import Any, assert_never, cast

import msgspec
import strawberry
from strawberry import field

from engine.access import Actor
from flow import events as e
from flow.states import SkipReason
from graph.objects import (
    Failure,
    NodeProgress,
    OutputArtifact,
    ResourceUsage,
    choice,
    derived,
    failure,
    may_see_tracebacks,
    output_artifact,
    resource_usage,
)
from graph.scalars import JSON, BigInt


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


@strawberry.type(description="The instance failed: the last event.")
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


@strawberry.type(description="The worker that ran a node died in the middle; the next attempt is due at once.")
class NodeLostEvent(NodeEvent):
    """See ``flow.events.NodeLost``."""

    attempt: int = field(description="The attempt that was lost, from 1.")
    worker: str | None = field(description="The worker that died.")


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


KINDS: dict[type[e.Event], type[InstanceEvent]] = {
    e.InstanceCreated: InstanceCreatedEvent,
    e.InstanceStarted: InstanceStartedEvent,
    e.CancelRequested: InstanceCancelRequestedEvent,
    e.InstanceCompleted: InstanceCompletedEvent,
    e.InstanceFailed: InstanceFailedEvent,
    e.InstanceCanceled: InstanceCanceledEvent,
    e.InstanceTimedOut: InstanceTimedOutEvent,
    e.NodeStarted: NodeStartedEvent,
    e.NodeProgress: NodeProgressEvent,
    e.NodeLog: NodeLogEvent,
    e.NodeRetrying: NodeRetryingEvent,
    e.NodeCompleted: NodeCompletedEvent,
    e.NodeFailed: NodeFailedEvent,
    e.NodeSkipped: NodeSkippedEvent,
    e.NodeCanceled: NodeCanceledEvent,
    e.NodeLost: NodeLostEvent,
}


def node_id(path: str) -> str:
    """The definition's node at this place of a run: ``resize[3]/encode`` is node ``encode`` in the loop ``resize``."""
    return path.rsplit("/", 1)[-1].split("[", 1)[0]


def event(instance_id: str, recorded: e.Recorded, actor: Actor | None) -> InstanceEvent:
    """The event as this caller may see it."""
    fact = recorded.event
    common: dict[str, Any] = {
        "instance_id": strawberry.ID(instance_id),
        "seq": recorded.seq,
        "change_seq": BigInt(recorded.change_seq),
        "at": recorded.at,
        "type": recorded.type,
        "recorded": recorded,
        "actor": actor,
    }
    if isinstance(fact, e.NodeEvent):
        common["node_path"] = fact.path
        common["node_id"] = node_id(fact.path)
    match fact:
        case e.InstanceCreated(input=input, trigger=trigger, priority=priority, timeout=timeout):
            return InstanceCreatedEvent(
                **common, input=input, trigger_type=trigger.type, priority=priority, timeout=timeout
            )
        case e.InstanceStarted(worker=worker):
            return InstanceStartedEvent(**common, worker=worker)
        case e.CancelRequested(by=by, reason=reason):
            return InstanceCancelRequestedEvent(**common, by=by, reason=reason)
        case e.InstanceCompleted(output=output, artifact=artifact):
            return InstanceCompletedEvent(**common, output=output, output_artifact=output_artifact(artifact))
        case e.InstanceFailed(error=error):
            return InstanceFailedEvent(**common, error=failure(error, actor))
        case e.InstanceCanceled(reason=reason):
            return InstanceCanceledEvent(**common, reason=reason)
        case e.InstanceTimedOut(error=error):
            return InstanceTimedOutEvent(**common, error=failure(error, actor))
        case e.NodeStarted(attempt=attempt, worker=worker):
            return NodeStartedEvent(**common, attempt=attempt, worker=worker)
        case e.NodeProgress(attempt=attempt, done=done, total=total, message=message):
            progress = NodeProgress(done=done, total=total, message=message)
            return NodeProgressEvent(**common, attempt=attempt, progress=progress)
        case e.NodeLog(attempt=attempt, message=message, level=level, fields=fields):
            return NodeLogEvent(
                **common, attempt=attempt, level=LogLevel(level), message=message, fields=cast(JSON, fields)
            )
        case e.NodeRetrying(attempt=attempt, error=error, due=due):
            return NodeRetryingEvent(**common, attempt=attempt, error=failure(error, actor), due=due)
        case e.NodeCompleted(attempt=attempt, output=output, artifact=artifact, usage=usage):
            return NodeCompletedEvent(
                **common,
                attempt=attempt,
                output=output,
                output_artifact=output_artifact(artifact),
                resource_usage=resource_usage(usage),
            )
        case e.NodeFailed(attempt=attempt, error=error, usage=usage):
            return NodeFailedEvent(
                **common, attempt=attempt, error=failure(error, actor), resource_usage=resource_usage(usage)
            )
        case e.NodeSkipped(reason=reason):
            return NodeSkippedEvent(**common, skip_reason=SkipReason(reason))
        case e.NodeCanceled(attempt=attempt):
            return NodeCanceledEvent(**common, attempt=attempt)
        case e.NodeLost(attempt=attempt, worker=worker):
            return NodeLostEvent(**common, attempt=attempt, worker=worker)
        case _:
            assert_never(fact)


def log_line(recorded: e.Recorded, line: e.NodeLog) -> LogLine:
    """A log event as a line."""
    return LogLine(
        seq=recorded.seq,
        at=recorded.at,
        node_id=node_id(line.path),
        node_path=line.path,
        attempt=line.attempt,
        level=LogLevel(line.level),
        message=line.message,
        fields=cast(JSON, line.fields),
    )
