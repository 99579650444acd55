"""What a run may have to do next; the engine answers each action with an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flow import events as e
from flow.errors import Failure
from flow.states import SkipReason


@dataclass(frozen=True, slots=True)
class Begin:
    """The instance is PENDING and may run."""


@dataclass(frozen=True, slots=True)
class Start:
    """Make this attempt of the node. A control node (``Run.is_control``) is only to be recorded as started."""

    path: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Skip:
    """The node will not run."""

    path: str
    reason: SkipReason


@dataclass(frozen=True, slots=True)
class Complete:
    """The node is COMPLETED with this output: a control node's, or a pinned one (``cached``) that never ran."""

    path: str
    output: Any = None
    artifact: e.Artifact | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """The node can't run, or what it waited for did not come: it is FAILED for good."""

    path: str
    error: Failure


@dataclass(frozen=True, slots=True)
class Wait:
    """The node is to wait for this."""

    path: str
    awaited: e.Timer | e.ForSignal | e.ForApproval


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child instance. With ``wait`` the node then waits for it (``NodeWaiting(ForChild)``), or else it is
    completed at once with ``{instance_id}``. ``version`` None: the workflow's current one.
    """

    path: str
    workflow: str
    version: str | None
    input: Any
    wait: bool
    on_parent_end: Literal["cancel", "abandon"]


@dataclass(frozen=True, slots=True)
class Pause:
    """A debugger stops the run here."""

    reason: e.PauseReason
    path: str
    phase: e.Phase


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the node: its work if it is running, its next attempt or what it waits for otherwise."""

    path: str


@dataclass(frozen=True, slots=True)
class End:
    """The instance ends with this event."""

    event: e.InstanceCompleted | e.InstanceFailed | e.InstanceCanceled | e.InstanceTimedOut


Action = Begin | Start | Skip | Complete | Fail | Wait | Spawn | Pause | Cancel | End
