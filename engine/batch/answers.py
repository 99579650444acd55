"""What ``engine.tasks`` answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
