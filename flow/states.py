"""The states of everything that has a life, and the only steps allowed between them.

One table per machine. ``after`` is the one way through a table: an illegal step raises
``IllegalTransition`` and changes nothing. The pictures in ``docs/states.md`` are drawn from
these tables (``python -m tests.docs``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from flow import events as e
from flow.errors import IllegalTransition


class InstanceStatus(StrEnum):
    """The life of one run."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """True when nothing will ever happen again."""
        return self in TERMINAL_INSTANCE


class NodeStatus(StrEnum):
    """The life of one node in one run."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    SKIPPED = "SKIPPED"

    @property
    def terminal(self) -> bool:
        """True when the node will not run (again) in this run."""
        return self in TERMINAL_NODE


class SkipReason(StrEnum):
    """Why a node was not run."""

    CONDITION = "CONDITION"
    UPSTREAM_SKIPPED = "UPSTREAM_SKIPPED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    INSTANCE_ENDED = "INSTANCE_ENDED"


class WorkflowStatus(StrEnum):
    """The life of a workflow. DRAFT runs only as debug runs; HIDDEN is ACTIVE but left out of lists."""

    DRAFT = "DRAFT"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    HIDDEN = "HIDDEN"
    ARCHIVED = "ARCHIVED"
    DELETED = "DELETED"

    @property
    def runnable(self) -> bool:
        """True when an ordinary run may be started."""
        return self in {WorkflowStatus.ACTIVE, WorkflowStatus.INACTIVE, WorkflowStatus.HIDDEN}


R, N, W = InstanceStatus, NodeStatus, WorkflowStatus

TERMINAL_INSTANCE = frozenset({R.COMPLETED, R.FAILED, R.CANCELED, R.TIMED_OUT})
TERMINAL_NODE = frozenset({N.COMPLETED, N.FAILED, N.CANCELED, N.SKIPPED})

INSTANCE_TRANSITIONS: Mapping[tuple[InstanceStatus, type[e.Event]], InstanceStatus] = {
    (R.PENDING, e.InstanceStarted): R.RUNNING,
    (R.PENDING, e.InstanceFailed): R.FAILED,
    (R.PENDING, e.InstanceCanceled): R.CANCELED,
    (R.PENDING, e.InstanceTimedOut): R.TIMED_OUT,
    (R.PENDING, e.InstancePaused): R.PAUSED,
    (R.RUNNING, e.InstancePaused): R.PAUSED,
    (R.PAUSED, e.InstanceResumed): R.RUNNING,
    (R.PAUSED, e.InstanceFailed): R.FAILED,
    (R.PAUSED, e.InstanceCanceled): R.CANCELED,
    (R.PAUSED, e.InstanceTimedOut): R.TIMED_OUT,
    (R.FAILED, e.InstanceReopened): R.RUNNING,
    (R.RUNNING, e.InstanceCompleted): R.COMPLETED,
    (R.RUNNING, e.InstanceFailed): R.FAILED,
    (R.RUNNING, e.InstanceCanceled): R.CANCELED,
    (R.RUNNING, e.InstanceTimedOut): R.TIMED_OUT,
}

NODE_TRANSITIONS: Mapping[tuple[NodeStatus, type[e.Event]], NodeStatus] = {
    (N.PENDING, e.NodeStarted): N.RUNNING,
    (N.PENDING, e.NodeSkipped): N.SKIPPED,
    (N.PENDING, e.NodeFailed): N.FAILED,
    (N.RUNNING, e.NodeCompleted): N.COMPLETED,
    (N.RUNNING, e.NodeFailed): N.FAILED,
    (N.RUNNING, e.NodeCanceled): N.CANCELED,
    (N.RUNNING, e.NodeWaiting): N.WAITING,
    (N.WAITING, e.NodeCompleted): N.COMPLETED,
    (N.WAITING, e.NodeFailed): N.FAILED,
    (N.WAITING, e.NodeCanceled): N.CANCELED,
    (N.RUNNING, e.NodeRetrying): N.RETRYING,
    (N.RUNNING, e.NodeLost): N.RETRYING,
    (N.RETRYING, e.NodeStarted): N.RUNNING,
    (N.RETRYING, e.NodeFailed): N.FAILED,
    (N.RETRYING, e.NodeCanceled): N.CANCELED,
    # a pin: its output is given, it never runs
    (N.PENDING, e.NodeCompleted): N.COMPLETED,
    # a debugger gives an output
    (N.PENDING, e.ValueSet): N.COMPLETED,
    (N.RETRYING, e.ValueSet): N.COMPLETED,
    (N.WAITING, e.ValueSet): N.COMPLETED,
    (N.COMPLETED, e.ValueSet): N.COMPLETED,
    (N.FAILED, e.ValueSet): N.COMPLETED,
    # a retry by hand
    (N.FAILED, e.InstanceReopened): N.PENDING,
    (N.CANCELED, e.InstanceReopened): N.PENDING,
    (N.SKIPPED, e.InstanceReopened): N.PENDING,
}


class WorkflowStep(StrEnum):
    """What people do with a workflow as a whole."""

    PUBLISH = "publish"
    ACTIVATE = "activate"
    DEACTIVATE = "deactivate"
    HIDE = "hide"
    SHOW = "show"
    ARCHIVE = "archive"
    DELETE = "delete"
    RESTORE = "restore"


S = WorkflowStep

#: RESTORE of a deleted workflow brings it back INACTIVE: nothing fires before somebody has looked at it.
WORKFLOW_TRANSITIONS: Mapping[tuple[WorkflowStatus, WorkflowStep], WorkflowStatus] = {
    (W.DRAFT, S.PUBLISH): W.ACTIVE,
    (W.DRAFT, S.ARCHIVE): W.ARCHIVED,
    (W.DRAFT, S.DELETE): W.DELETED,
    (W.ACTIVE, S.DEACTIVATE): W.INACTIVE,
    (W.ACTIVE, S.HIDE): W.HIDDEN,
    (W.ACTIVE, S.ARCHIVE): W.ARCHIVED,
    (W.ACTIVE, S.DELETE): W.DELETED,
    (W.INACTIVE, S.ACTIVATE): W.ACTIVE,
    (W.INACTIVE, S.HIDE): W.HIDDEN,
    (W.INACTIVE, S.ARCHIVE): W.ARCHIVED,
    (W.INACTIVE, S.DELETE): W.DELETED,
    (W.HIDDEN, S.SHOW): W.ACTIVE,
    (W.HIDDEN, S.DEACTIVATE): W.INACTIVE,
    (W.HIDDEN, S.ARCHIVE): W.ARCHIVED,
    (W.HIDDEN, S.DELETE): W.DELETED,
    (W.ARCHIVED, S.ACTIVATE): W.ACTIVE,
    (W.ARCHIVED, S.DELETE): W.DELETED,
    (W.DELETED, S.RESTORE): W.INACTIVE,
}

State = TypeVar("State", bound=StrEnum)
Step = TypeVar("Step")


def after(table: Mapping[tuple[State, Step], State], state: State, step: Step) -> State:
    """The state that ``step`` leads to from ``state``.

    Raises IllegalTransition, naming both and what would be allowed.
    """
    try:
        return table[state, step]
    except KeyError:
        allowed = sorted(_name(s) for (at, s) in table if at == state)
        remedy = f"what can follow: {', '.join(allowed)}" if allowed else "that is final"
        raise IllegalTransition(
            f"{_name(step)!r} is not possible while it is {state}; {remedy}.", status=str(state)
        ) from None


def _name(step: object) -> str:
    return getattr(getattr(step, "__struct_config__", None), "tag", None) or str(step)
