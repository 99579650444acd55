"""Forks: a new run that begins where an old one was, with what its nodes had given by then.

Those outputs are *pins* of the new run (``flow.events.Pin``): a node that has one is completed with it as soon as its
join would start it, and its handler isn't called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.controls import node_ids
from flow import events as e
from flow.definition import Definition
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.problems import ProblemCode, did_you_mean, shown

#: All pins of a run together, as JSON: they are part of its first event.
MAX_PINS = 16 * 1024 * 1024  # bytes


def point(history: Sequence[e.Recorded], seq: int | None, path: str | None) -> int:
    """The sequence number up to which the old run counts: ``seq``, or the last one before the node first started.

    Raises NotFound if there is no such event or node, Conflict for a node that never started, Invalid for both.
    """
    if seq is not None and path is not None:
        problem = "A fork begins at an event or at a node, not at both."
        raise Invalid([Problem("/node", ProblemCode.UNKNOWN_KEY, problem)], path=("input", "node"))
    if seq is not None:
        if not 1 <= seq <= len(history):
            raise NotFound("event", str(seq), path=("input", "seq"))
        return seq
    if path is None:
        return len(history)
    known = False
    for recorded in history:
        event = recorded.event
        if isinstance(event, e.NodeEvent) and event.path == path:
            if isinstance(event, e.NodeStarted | e.NodeCompleted):
                return recorded.seq - 1
            known = True
    if not known:
        raise NotFound("node execution", path, path=("input", "node"))
    raise Conflict(f"The node {path!r} never started, so nothing begins there.", path=("input", "node"))


def completed(history: Sequence[e.Recorded], upto: int) -> dict[str, e.Recorded]:
    """By path, the event that completed each node which was COMPLETED right after ``upto``.

    The insides of a loop that was completed as a whole are left out: its own output stands for them.
    """
    found: dict[str, e.Recorded] = {}
    for recorded in history[:upto]:
        match recorded.event:
            case e.NodeCompleted(path=path) | e.ValueSet(path=path, what="output"):
                found[path] = recorded
            case e.InstanceReopened(reset=reset):
                for path in reset:
                    found.pop(path, None)
            case _:
                pass
    return {path: recorded for path, recorded in found.items() if not any(above in found for above in _loops(path))}


def _loops(path: str) -> list[str]:
    """The loops that a node is inside of: ``a[3]/b[0]/c`` is in ``a`` and in ``a[3]/b``."""
    parts = path.split("/")
    return ["/".join([*parts[:depth], parts[depth].partition("[")[0]]) for depth in range(len(parts) - 1)]


def pins(done: Mapping[str, e.Recorded], given: Mapping[str, Any], definition: Definition) -> tuple[e.Pin, ...]:
    """The new run's pins: those given, and the outputs of the old run for nodes that the definition still has.

    Raises Invalid for a pin of an unknown node, Conflict (FORK_TOO_LARGE) if they are more than 16 MiB.
    """
    known = node_ids(definition)
    problems = [
        Problem(
            f"/pins/{place}/path",
            ProblemCode.UNKNOWN_NODE,
            f"There is no node {shown(path)}.{did_you_mean(_node(path), known)}",
        )
        for place, path in enumerate(given)
        if _node(path) not in known
    ]
    if problems:
        raise Invalid(problems, path=("input", "pins"))
    outputs = {path: _output(recorded.event) for path, recorded in done.items() if _node(path) in known}
    outputs |= given
    found = tuple(e.Pin(path, output) for path, output in outputs.items())
    if len(msgspec.json.encode(found)) > MAX_PINS:
        message = f"The outputs before that point are more than {MAX_PINS // 2**20} MiB together; fork from earlier."
        raise Conflict(message, code="FORK_TOO_LARGE")
    return found


def _node(path: str) -> str:
    return path.rpartition("/")[2]


def _output(event: e.AnyEvent) -> Any:
    match event:
        case e.NodeCompleted(output=output):
            return output
        case e.ValueSet(value=value):
            return value
        case _:
            raise AssertionError(f"{event!r} completes no node")
