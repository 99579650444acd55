"""What differs between two runs, node by node: their status, what they gave, how long they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flow.expressions import pointer_token
from flow.history import NodeState
from flow.versions import Change, ChangeKind, same_json

#: More differences than this of one value are not listed: whoever has so many wants to see both values instead.
MOST_CHANGES = 100


@dataclass(frozen=True, slots=True)
class ValueDiff:
    """How one JSON value differs from another: JSON pointers with both values; ``more`` if not all are listed."""

    changes: tuple[Change, ...] = ()
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.changes)


@dataclass(frozen=True, slots=True)
class NodeDiff:
    """One node in both runs. ADDED: only in the second, REMOVED: only in the first, None: it came to the same.

    ``slower_by`` is how much longer it took in the second run; it is no difference by itself.
    """

    path: str
    kind: ChangeKind | None
    status: bool
    output: ValueDiff
    slower_by: timedelta | None


def compare(a: Mapping[str, NodeState], b: Mapping[str, NodeState]) -> tuple[NodeDiff, ...]:
    """Every node of either run, in the order in which they began in the first, then those of the second."""
    ordered = [path for path, _ in sorted(a.items(), key=lambda item: item[1].ordinal)]
    ordered += [path for path, _ in sorted(b.items(), key=lambda item: item[1].ordinal) if path not in a]
    return tuple(_node(path, a.get(path), b.get(path)) for path in ordered)


def _node(path: str, a: NodeState | None, b: NodeState | None) -> NodeDiff:
    if a is None or b is None:
        return NodeDiff(path, ChangeKind.ADDED if a is None else ChangeKind.REMOVED, False, ValueDiff(), None)
    status = a.status is not b.status or a.skip_reason != b.skip_reason
    output = _outputs(a, b)
    took_a, took_b = _took(a), _took(b)
    slower_by = took_b - took_a if took_a is not None and took_b is not None else None
    return NodeDiff(path, ChangeKind.CHANGED if status or output else None, status, output, slower_by)


def _outputs(a: NodeState, b: NodeState) -> ValueDiff:
    """Large outputs are compared by their SHA-256, not looked into."""
    if a.artifact is None and b.artifact is None:
        return value_diff(a.output, b.output)
    if a.artifact is not None and b.artifact is not None and a.artifact.sha256 == b.artifact.sha256:
        return ValueDiff()
    small_a, small_b = (None if state.artifact is not None else state.output for state in (a, b))
    return ValueDiff((Change("", ChangeKind.CHANGED, small_a, small_b),), more=True)


def _took(state: NodeState) -> timedelta | None:
    if state.first_start is None or state.completed_at is None:
        return None
    return max(timedelta(0), state.completed_at - state.first_start)


def value_diff(a: Any, b: Any, limit: int = MOST_CHANGES) -> ValueDiff:
    """The differences of two JSON values, key by key and item by item down to what isn't the same."""
    found: list[Change] = []
    waiting: list[tuple[str, Any, Any]] = [("", a, b)]
    while waiting:
        at, old, new = waiting.pop()
        inner: list[tuple[str, Any, Any]] = []
        if isinstance(old, dict) and isinstance(new, dict):
            for key in dict.fromkeys([*old, *new]):
                inner.append((f"{at}/{pointer_token(key)}", old.get(key, _ABSENT), new.get(key, _ABSENT)))
        elif isinstance(old, list) and isinstance(new, list):
            for index in range(max(len(old), len(new))):
                inner.append((f"{at}/{index}", _item(old, index), _item(new, index)))
        elif old is _ABSENT:
            found.append(Change(at, ChangeKind.ADDED, after=new))
        elif new is _ABSENT:
            found.append(Change(at, ChangeKind.REMOVED, before=old))
        elif isinstance(old, dict | list) or isinstance(new, dict | list) or not same_json(old, new):
            found.append(Change(at, ChangeKind.CHANGED, old, new))
        if len(found) > limit:
            return ValueDiff(tuple(found[:limit]), more=True)
        waiting.extend(reversed(inner))
    return ValueDiff(tuple(found))


_ABSENT: Any = object()


def _item(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else _ABSENT
