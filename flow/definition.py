"""What a workflow is: triggers, nodes, edges, parameters, mappings.

These types hold a *valid* definition. Documents from outside are read by
``flow.documents.read``, which reports every problem at once.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

MAX_NODES = 5_000
MAX_DEPTH = 16


class Join(StrEnum):
    """When a node starts, given how its incoming edges settled."""

    ALL = "all"
    ALL_LIVE = "all_live"
    ANY = "any"
    ALL_DONE = "all_done"
    NONE_FAILED = "none_failed"
    ONE_FAILED = "one_failed"


class On(StrEnum):
    """Which end of its source an edge follows."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often, and how long apart, a failed attempt is made again.

    ``max`` counts retries, not attempts. Delay before attempt n+1: ``min(cap, base × factor^(n-1))``,
    then ± ``jitter`` (a share of the delay, 0..1). ``total_timeout`` bounds all attempts together.
    ``retry_on`` and ``never_on`` hold error categories or codes; ``never_on`` wins.
    """

    max: int = 3
    base: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    cap: timedelta = timedelta(seconds=60)
    jitter: float = 0.1
    total_timeout: timedelta | None = None
    retry_on: tuple[str, ...] = ()
    never_on: tuple[str, ...] = ()


class Cache(msgspec.Struct, frozen=True):
    """How long a node's result may be used again."""

    ttl: timedelta
    key: str | None = None


class Resources(msgspec.Struct, frozen=True):
    """What a node needs: millicores, megabytes, graphics cards."""

    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None


class Position(msgspec.Struct, frozen=True):
    """Where the node stands on the canvas."""

    x: float
    y: float


class Node(msgspec.Struct, frozen=True):
    """One step of a workflow."""

    id: str
    type: str
    name: str | None = None
    parameters: dict[str, Any] = {}
    join: Join = Join.ALL
    fail_on_error: bool = True
    retry: RetryPolicy = RetryPolicy()
    timeout: timedelta = timedelta(minutes=5)
    heartbeat_timeout: timedelta | None = None
    cache: Cache | None = None
    resources: Resources | None = None
    runs_on: tuple[str, ...] = ()
    on_lost: Literal["retry", "fail"] = "retry"
    position: Position | None = None


class Edge(msgspec.Struct, frozen=True):
    """From ``source`` to ``target``, if ``on`` fits and ``condition`` (JMESPath on the source's output) is true.

    ``mapping``: target path → ``"$.<jmespath>"`` on the source's output, or a literal. Empty: all of it goes on.
    """

    source: str
    target: str
    on: On = On.SUCCESS
    condition: str | None = None
    mapping: dict[str, Any] = {}


class TypeInfo(msgspec.Struct, frozen=True):
    """What a definition's reader knows about a node type: its name and the JSON Schema of its parameters."""

    name: str
    parameters_schema: dict[str, Any] = {}


#: Types of triggers that a definition may name.
TRIGGER_TYPES = ("manual", "api", "schedule", "filesystem", "webhook", "condition")


class TriggerSpec(msgspec.Struct, frozen=True):
    """What starts a workflow by itself, and how its payload becomes the input."""

    id: str
    type: str
    config: dict[str, Any] = {}
    input_mapping: dict[str, Any] = {}


class Concurrency(msgspec.Struct, frozen=True):
    """At most ``limit`` runs at once whose ``key`` (an expression on the input; None: all) gives the same.

    ``on_conflict``: where they are there, another waits, or takes the place of the oldest, or is not started.
    """

    limit: int = 1
    key: str | None = None
    on_conflict: Literal["queue", "cancel_running", "skip"] = "queue"


class Definition(msgspec.Struct, frozen=True):
    """A whole workflow, valid and with every default filled in."""

    name: str
    triggers: tuple[TriggerSpec, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    display_name: str | None = None
    description: str | None = None
    scenario: str | None = None
    input_schema: dict[str, Any] | None = None
    parameters: dict[str, Any] = {}
    output_mapping: dict[str, Any] = {}
    concurrency: Concurrency | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
