"""What a run keeps of each graph under way: of the workflow's own, and of each open iteration of a loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flow.errors import Failure
from flow.graph import Graph
from flow.joins import Tally


@dataclass(slots=True, eq=False)
class Scope:
    """One run of a graph. Nodes are named by their ids in it.

    ``ready`` are pending nodes that may start, ``due`` those that are to be skipped or failed, ``active`` those that
    run, wait, or will be tried again; ``open`` counts all that have not ended. ``interrupted``: something of it was
    stopped from outside.
    """

    graph: Graph
    prefix: str = ""
    loop: Loop | None = None
    index: int = 0
    #: What an iteration's expressions see besides their nodes: ``item``, ``index``, ``last``, ``outer``.
    names: dict[str, Any] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    open: int = 0
    ready: dict[str, None] = field(default_factory=dict)
    due: dict[str, None] = field(default_factory=dict)
    active: dict[str, None] = field(default_factory=dict)
    failure: Failure | None = None
    failed_seq: int = 0
    interrupted: bool = False


@dataclass(slots=True, eq=False)
class Loop:
    """A loop node under way: ``items`` are gone through, or ``condition`` is asked before each iteration.

    Iterations that have ended leave nothing but their output, or their failure. If the loop fails or is stopped,
    those that were not completed are ``kept`` for a retry by hand.
    """

    path: str
    scope: Scope
    body: Graph
    input: Any
    items: list[Any] | None
    condition: str | None
    concurrency: int
    max_iterations: int
    collect: bool
    output: dict[str, Any]
    next: int = 0
    exhausted: bool = False
    open: dict[int, Scope] = field(default_factory=dict)
    kept: dict[int, Scope] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)
    last: Any = None
    failure: Failure | None = None
    interrupted: bool = False

    def result(self) -> dict[str, Any]:
        """What the loop gives: ``items`` in order, null where one failed, and ``failed`` with the reasons."""
        return {
            "items": [self.outputs.get(index) for index in range(self.next)],
            "failed": [{"index": index, "error": plain(failure)} for index, failure in sorted(self.failed.items())],
        }


def plain(failure: Failure) -> dict[str, Any]:
    """A failure as data for expressions and outputs; its traceback is for the owners only."""
    told: dict[str, Any] = {
        "code": failure.code,
        "category": failure.category.value,
        "message": failure.message,
        "node_id": failure.node_id,
    }
    if failure.details:
        told["details"] = failure.details
    return told
