"""Tasks as their callers see them: batches over files, single runs in the background, and what is done to them later.

What runs them is in ``engine.batch``; here it is checked, stored, and somebody woken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

import msgspec

from engine.access import Actor
from flow.tasks import BatchSpec, RunSpec, TaskStatus


@dataclass(frozen=True, slots=True)
class Started:
    """A task that is stored. ``token``, shown only here, lets a runner report on the execution."""

    task_id: str
    execution_id: str | None
    token: str | None
    change_seq: int


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that a batch would take; ``refusal`` says why it would fail at once."""

    path: str
    relative: str
    size: int
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch would do: how many files, how large together, the first of them, on which servers.

    ``servers`` are ids. ``warnings`` counts what would be left out, by reason. ``more``: the folders hold so many files
    that the counting was given up; the numbers are at least these.
    """

    files: int
    bytes: int
    first: tuple[PlannedFile, ...]
    servers: tuple[str, ...]
    warnings: dict[str, int]
    more: bool


class Unavailable(StrEnum):
    """Why a server takes no batch now."""

    DISABLED = "DISABLED"
    NOT_ONLINE = "NOT_ONLINE"
    BUSY = "BUSY"
    WORKFLOW_NOT_FOUND = "WORKFLOW_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """Whether a batch could start now, on its first server that can take it (None: this engine itself).

    ``reason`` None: it could. ``status`` is the server's with NOT_ONLINE, ``task_id`` what it works on with BUSY.
    """

    available: bool
    server_id: str | None
    server_name: str | None
    batch_size: int
    message: str
    reason: Unavailable | None = None
    status: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Retried:
    """How many items run again."""

    items: int
    execution_id: str | None
    change_seq: int


class Tasks:
    """Every method raises NotFound for what is not in the actor's project, Denied without the permission, and
    StorageUnavailable if nothing can be stored now. ``change_seq`` is the project's place of the change.
    """

    async def batch_plan(self, actor: Actor, spec: BatchSpec, *, first: int = 20) -> Plan:
        """What ``batch_start`` would do (``dryRun``), with the first so many files; stores nothing.

        Raises as ``batch_start`` does, but for servers that are not available.
        """
        raise NotImplementedError

    async def batch_start(self, actor: Actor, spec: BatchSpec) -> Started:
        """Store the batch and begin; its folders are looked through afterwards.

        Raises Invalid with every problem (folders that aren't there or are outside of the allowed roots, an output
        inside of a target, numbers out of range), NotFound for the workflow or a server, and Conflict with the code
        SERVER_UNAVAILABLE and ``details`` ``reason`` (an ``Unavailable``), ``server``, ``status``, ``task`` if none
        of the servers can take it now.
        """
        raise NotImplementedError

    async def check(self, actor: Actor, spec: BatchSpec) -> ServerCheck:
        """Whether a batch could start now, and if not, why. Raises NotFound for an unknown server, and nothing for
        folders.
        """
        raise NotImplementedError

    async def create(self, actor: Actor, spec: BatchSpec | RunSpec, *, start: bool = True) -> Started:
        """A task of any type. With ``start`` False it stays PENDING until ``execute``.

        Raises as ``batch_start`` does; Invalid for an unknown node type, and parameters or an input that don't fit.
        """
        raise NotImplementedError

    async def update(
        self,
        actor: Actor,
        task_id: str,
        *,
        name: str | msgspec.UnsetType = msgspec.UNSET,
        description: str | msgspec.UnsetType | None = msgspec.UNSET,
        parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET,
        priority: int | msgspec.UnsetType = msgspec.UNSET,
    ) -> int:
        """Change a task that has not started; the change number. Raises Conflict if it has, Invalid."""
        raise NotImplementedError

    async def delete(self, actor: Actor, task_id: str) -> int:
        """Remove a finished task, its executions and items; what they wrote stays. The change number.

        Raises Conflict if it has not finished: cancel it first.
        """
        raise NotImplementedError

    async def cancel(self, actor: Actor, task_id: str, reason: str | None = None) -> int:
        """Ask the task to stop; it is CANCELED when its running items have stopped. Asking twice is asking once.

        The change number. Raises Conflict if it has ended.
        """
        raise NotImplementedError

    async def execute(self, actor: Actor, task_id: str, server: str | None = None) -> Started:
        """Run an existing task, again if it has ended, on that server (id or name; None: as it was created).

        Of a batch, only what isn't completed runs, and files that came since. Raises Conflict if it runs already or
        waits to, or (SERVER_UNAVAILABLE) as ``batch_start``.
        """
        raise NotImplementedError

    async def execution_status_set(
        self,
        actor: Actor,
        execution_id: str,
        token: str,
        status: TaskStatus,
        *,
        progress: float | None = None,
        message: str | None = None,
        result: Any = None,
        error: str | None = None,
    ) -> int:
        """What the runner of an execution reports; the change number. An end uses the token up, ends the task and
        stops whatever still runs of it.

        Raises Denied for a wrong or used token, IllegalTransition (a Conflict), Invalid.
        """
        raise NotImplementedError

    async def items_retry(
        self, actor: Actor, task_id: str, *, failed: bool = True, items: Sequence[str] | None = None
    ) -> Retried:
        """Run the failed items of a finished task again (with ``failed`` False the canceled ones too), or only these.

        Raises Conflict if the task has not finished or there is no such item, NotFound for an item.
        """
        raise NotImplementedError


def timeout_seconds(timeout: timedelta | None) -> float | None:
    """As it is stored."""
    return None if timeout is None else timeout.total_seconds()
