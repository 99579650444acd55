"""What the journal is given and what it answers, and the rows that follow from an instance's snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from db.store import bulk
from flow import events as e
from flow.history import NodeState, Snapshot


@dataclass(frozen=True, slots=True)
class Create:
    """A new instance with its event 1. With ``worker``, it is claimed at once for that worker (its fence is 1).

    ``current``: its version is to be the workflow's current one. That, and that the workflow may be run at all, is
    checked in the same transaction, and so is whether a limit allows it to begin (``db.store.admission``): ``limit`` is
    the one of its concurrency key, ``on_conflict`` what happens where that is reached.
    """

    instance_id: str
    project_id: str
    created: e.Recorded
    idempotency_key: str | None = None
    current: bool = True
    worker: str | None = None
    lease_s: float = 15.0
    limit: int | None = None
    on_conflict: Literal["queue", "cancel_running", "skip"] = "queue"


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A file that was put in the store for one of these events."""

    artifact: e.Artifact
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Offer:
    """An attempt that is offered to every worker with the labels, the graphics cards and a place in the lane.

    ``call`` is the attempt as JSON (``engine.attempts``); a large one is in the artifact store and None here.
    """

    id: str
    path: str
    attempt: int
    lane: str
    labels: tuple[str, ...]
    gpus: int
    priority: int
    call: Any = None
    artifact: e.Artifact | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Somebody has something to do: an instance (letters to read, or it is new), or an offered attempt (``att-…``).

    ``owner`` is the worker that holds it, who is to be told; without one, whoever can is to take it. ``labels`` and
    ``gpus`` are what an offered attempt needs.
    """

    id: str
    priority: int = 5
    fence: int = 0
    owner: str | None = None
    labels: tuple[str, ...] = ()
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """Events of one instance, its rows after them, and what its holder has dealt with.

    ``worker`` holds it, under ``fence``; ``base_seq`` is the last sequence number before these events. ``release``: the
    lease is given back with this append, to be woken at ``due_at`` (None: only by somebody else). ``progress``:
    something ended, so that earlier deaths of workers no longer count. ``children`` are created with these events, and
    ``letters`` put into the inboxes of other instances of the project. ``left``: children that nobody waits for any
    more; those that end with their parents are cancelled. ``offers`` are attempts for other workers, ``revoked`` the
    paths of those that are not wanted any more.
    """

    instance_id: str
    project_id: str
    worker: str
    fence: int
    base_seq: int
    events: Sequence[e.Recorded]
    instance: tuple[Any, ...]
    nodes: Sequence[tuple[Any, ...]]
    artifacts: Sequence[NewArtifact] = ()
    consumed: Sequence[int] = ()
    release: bool = False
    due_at: datetime | None = None
    progress: bool = False
    children: Sequence[Create] = ()
    left: Sequence[str] = ()
    letters: Sequence[tuple[str, e.Event]] = ()
    offers: Sequence[Offer] = ()
    revoked: Sequence[str] = ()


Entry = Create | Append


@dataclass(frozen=True, slots=True)
class Committed:
    """It is stored. ``change_seq`` is the project's place of the entry's last event.

    ``more``: the inbox got something new while the lease was being given back: wake the instance again.
    ``gated``: a limit may keep the new instance waiting, so it was not claimed. ``woken``: what others have to do
    now: letters to read, a new instance or one that a limit lets begin, an attempt to make or to stop.
    """

    change_seq: int
    more: bool = False
    gated: bool = False
    woken: tuple[Wake, ...] = ()


@dataclass(frozen=True, slots=True)
class Exists:
    """The idempotency key was used before, for this instance; nothing was created."""

    instance_id: str
    change_seq: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The workflow is gone, may not be run (any more), or has another current version; nothing was created."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The limit of its concurrency key is reached, by this instance among others; nothing was created."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Another worker holds the instance, or it is gone; nothing was written for it."""


Outcome = Committed | Exists | Stale | Skipped | Lost


#: What an append may change of an instance, in the order of ``instance_row``.
CHANGING = (
    "status",
    "output",
    "output_artifact",
    "error",
    "started_at",
    "completed_at",
    "cancel_requested_at",
    "last_seq",
    "pause_reason",
)
FIXED = (
    "id",
    "project_id",
    "workflow_id",
    "version_id",
    "trigger_type",
    "input",
    "labels",
    "priority",
    "created_at",
    "created_by",
)
LEASE = ("fence", "owner", "lease_until", "due_at", "lost_claims")
ORIGIN = ("parent_id", "parent_path", "ends_with_parent", "fork_of", "concurrency_key", "concurrency_limit", "gate")
NEW_COLUMNS = (*FIXED, *CHANGING, "idempotency_key", "change_seq", *LEASE, *ORIGIN)
APPEND_COLUMNS = (*FIXED, *CHANGING, "change_seq", *LEASE)
APPEND_UPSERT = " ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{column} = excluded.{column}" for column in (*CHANGING, "change_seq", *LEASE)
)
EVENT_COLUMNS = ("instance_id", "seq", "change_seq", "type", "path", "at", "data")
NODE_COLUMNS = (
    "instance_id",
    "path",
    "ordinal",
    "node_id",
    "node_type",
    "status",
    "skip_reason",
    "attempt",
    "started_at",
    "completed_at",
    "due_at",
    "started_seq",
    "output",
    "output_artifact",
    "error",
    "progress",
    "usage",
    "worker",
    "last_seq",
    "awaited",
    "cached",
)
NODE_UPSERT = bulk.upsert(("instance_id", "path"), NODE_COLUMNS)
ARTIFACT_COLUMNS = ("id", "project_id", "instance_id", "sha256", "size", "media_type", "created_at")


def instance_row(instance_id: str, project_id: str, snapshot: Snapshot) -> tuple[Any, ...]:
    """The instance's row as its snapshot says, without what only the database knows."""
    created = snapshot.created
    assert created is not None
    return (
        instance_id,
        project_id,
        created.workflow_id,
        created.version_id,
        created.trigger.type,
        created.input,
        created.labels or None,
        created.priority,
        snapshot.created_at,
        created.created_by,
        snapshot.status.value,
        None if snapshot.artifact is not None else snapshot.output,
        _builtins(snapshot.artifact),
        _builtins(snapshot.error),
        snapshot.started_at,
        snapshot.completed_at,
        snapshot.cancel_requested_at,
        snapshot.last_seq,
        snapshot.pause.reason.value if snapshot.pause is not None else None,
    )


def node_row(instance_id: str, path: str, node_type: str, state: NodeState) -> tuple[Any, ...]:
    """A node execution's row as its state says. An output in the artifact store is not repeated here."""
    progress = state.progress
    return (
        instance_id,
        path,
        state.ordinal,
        path.rpartition("/")[2],
        node_type,
        state.status.value,
        state.skip_reason,
        state.attempt,
        state.first_start,
        state.completed_at,
        state.due,
        state.started_seq,
        None if state.artifact is not None else state.output,
        _builtins(state.artifact),
        _builtins(state.error),
        {"done": progress.done, "total": progress.total, "message": progress.message} if progress else None,
        _builtins(state.usage),
        state.worker,
        state.last_seq,
        _builtins(state.awaited),
        state.cached or None,
    )


def _builtins(value: msgspec.Struct | None) -> Any:
    return None if value is None else msgspec.to_builtins(value)
