"""Events as this caller may see them: the facts of ``flow.events`` in the types of ``graph.event_types``."""

from __future__ import annotations

from typing import Any, assert_never, cast

import strawberry

from engine.access import Actor
from flow import events as e
from flow.states import InstanceStatus, SkipReason
from graph.event_types import (
    ApprovalAnsweredEvent,
    ChildEndedEvent,
    DebugSetEvent,
    DebugValue,
    DebugValueSetEvent,
    InstanceCanceledEvent,
    InstanceCancelRequestedEvent,
    InstanceCompletedEvent,
    InstanceCreatedEvent,
    InstanceEvent,
    InstanceFailedEvent,
    InstancePausedEvent,
    InstanceReopenedEvent,
    InstanceResumedEvent,
    InstanceStartedEvent,
    InstanceTimedOutEvent,
    LogLevel,
    LogLine,
    NodeCanceledEvent,
    NodeCompletedEvent,
    NodeFailedEvent,
    NodeLogEvent,
    NodeLostEvent,
    NodeProgressEvent,
    NodeRetryingEvent,
    NodeScheduledEvent,
    NodeSkippedEvent,
    NodeStartedEvent,
    NodeWaitingEvent,
    SignalReceivedEvent,
)
from graph.objects import NodeProgress, failure, output_artifact, resource_usage
from graph.scalars import JSON, BigInt
from graph.waiting import awaited, debug

KINDS: dict[type[e.Event], type[InstanceEvent]] = {
    e.InstanceCreated: InstanceCreatedEvent,
    e.InstanceStarted: InstanceStartedEvent,
    e.InstancePaused: InstancePausedEvent,
    e.InstanceResumed: InstanceResumedEvent,
    e.InstanceReopened: InstanceReopenedEvent,
    e.DebugSet: DebugSetEvent,
    e.ValueSet: DebugValueSetEvent,
    e.SignalReceived: SignalReceivedEvent,
    e.ApprovalAnswered: ApprovalAnsweredEvent,
    e.ChildEnded: ChildEndedEvent,
    e.CancelRequested: InstanceCancelRequestedEvent,
    e.InstanceCompleted: InstanceCompletedEvent,
    e.InstanceFailed: InstanceFailedEvent,
    e.InstanceCanceled: InstanceCanceledEvent,
    e.InstanceTimedOut: InstanceTimedOutEvent,
    e.NodeScheduled: NodeScheduledEvent,
    e.NodeStarted: NodeStartedEvent,
    e.NodeWaiting: NodeWaitingEvent,
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
        case e.InstancePaused(reason=why, by=by, path=path, phase=phase):
            return InstancePausedEvent(**common, pause_reason=why, by=by, stopped_at=path, phase=phase)
        case e.InstanceResumed(by=by, step=step):
            return InstanceResumedEvent(**common, by=by, step=step)
        case e.InstanceReopened(paths=paths, by=by):
            return InstanceReopenedEvent(**common, by=by, paths=list(paths))
        case e.DebugSet(debug=given, by=by):
            return DebugSetEvent(**common, by=by, debug=debug(given))
        case e.ValueSet(path=path, what=what, value=value, by=by):
            return DebugValueSetEvent(**common, node_path=path, by=by, what=DebugValue(what), value=value)
        case e.SignalReceived(name=name, payload=payload, by=by):
            return SignalReceivedEvent(**common, by=by, name=name, payload=payload)
        case e.ApprovalAnswered(path=path, approved=approved, answer=answer, comment=comment, by=by):
            return ApprovalAnsweredEvent(
                **common, node_path=path, by=by, approved=approved, answer=answer, comment=comment
            )
        case e.ChildEnded():
            return ChildEndedEvent(
                **common,
                node_path=fact.path,
                child_id=strawberry.ID(fact.instance_id),
                child_status=InstanceStatus(fact.status),
                output=fact.output,
                output_artifact=output_artifact(fact.artifact),
                child_error=None if fact.error is None else failure(fact.error, actor),
            )
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
        case e.NodeScheduled(attempt=attempt, labels=labels, gpus=gpus):
            return NodeScheduledEvent(**common, attempt=attempt, labels=list(labels), gpus=gpus)
        case e.NodeStarted(attempt=attempt, worker=worker):
            return NodeStartedEvent(**common, attempt=attempt, worker=worker)
        case e.NodeWaiting(attempt=attempt, awaited=waits):
            return NodeWaitingEvent(**common, attempt=attempt, awaited=awaited(waits, actor))
        case e.NodeProgress(attempt=attempt, done=done, total=total, message=message):
            progress = NodeProgress(done=done, total=total, message=message)
            return NodeProgressEvent(**common, attempt=attempt, progress=progress)
        case e.NodeLog(attempt=attempt, message=message, level=level, fields=fields):
            return NodeLogEvent(
                **common, attempt=attempt, level=LogLevel(level), message=message, fields=cast(JSON, fields)
            )
        case e.NodeRetrying(attempt=attempt, error=error, due=due):
            return NodeRetryingEvent(**common, attempt=attempt, error=failure(error, actor), due=due)
        case e.NodeCompleted(attempt=attempt, output=output, artifact=artifact, usage=usage, cached=cached):
            return NodeCompletedEvent(
                **common,
                attempt=attempt,
                output=output,
                output_artifact=output_artifact(artifact),
                resource_usage=resource_usage(usage),
                cached=cached,
            )
        case e.NodeFailed(attempt=attempt, error=error, usage=usage):
            return NodeFailedEvent(
                **common, attempt=attempt, error=failure(error, actor), resource_usage=resource_usage(usage)
            )
        case e.NodeSkipped(reason=reason):
            return NodeSkippedEvent(**common, skip_reason=SkipReason(reason))
        case e.NodeCanceled(attempt=attempt):
            return NodeCanceledEvent(**common, attempt=attempt)
        case e.NodeLost(attempt=attempt, worker=worker, handed_over=handed_over):
            return NodeLostEvent(**common, attempt=attempt, worker=worker, handed_over=handed_over)
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
