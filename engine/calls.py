"""What goes into a node's handler, what comes out of it, and what it says on the way.

A ``Call`` is one attempt of one node. ``Report`` is what the handler says while it works,
``Outcome`` how it ended. All of them cross the pipe to a child process as they are.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import msgspec

from flow.definition import Resources
from flow.errors import Failure
from flow.events import Artifact, Usage

Level = Literal["debug", "info", "warning", "error"]


class Call(msgspec.Struct, frozen=True):
    """One attempt of one node: the parameters are rendered, the input is derived, the limits are those of the node.

    ``idempotency_key`` stays the same over the attempts of a node. ``timeout`` bounds the attempt from start to
    finish, ``heartbeat_timeout`` the silence between two signs of life. ``resources`` overrides the type's default.
    """

    type: str
    instance_id: str
    project_id: str
    path: str
    node_id: str
    attempt: int
    parameters: dict[str, Any]
    input: Any
    idempotency_key: str
    timeout: timedelta = timedelta(minutes=5)
    heartbeat_timeout: timedelta | None = None
    resources: Resources | None = None


class LogLine(msgspec.Struct, frozen=True, tag="log"):
    """A line for the node's log."""

    level: Level
    message: str
    fields: dict[str, Any] = {}


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the work is: ``done`` of ``total`` (None: unknown) in the handler's own unit."""

    done: float
    total: float | None = None
    message: str | None = None


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A sign of life with nothing else to say."""


Report = LogLine | Progress | Beat


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The attempt gave ``output``; one over 64 KiB is in the artifact store and ``output`` is None.

    ``artifacts`` are those that the handler put itself. ``cached``: the work was another node's.
    """

    output: Any = None
    usage: Usage | None = None
    artifact: Artifact | None = None
    artifacts: tuple[Artifact, ...] = ()
    cached: bool = False


class Broke(msgspec.Struct, frozen=True, tag="broke"):
    """The attempt failed."""

    failure: Failure
    usage: Usage | None = None


Outcome = Done | Broke
