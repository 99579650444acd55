"""Nodes that have not begun: they have no row yet, and come after those that have, in the definition's order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from db.store import keyset
from flow.graph import Graph

#: Behind every ordinal that a row can have.
FIRST_ORDINAL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Pending:
    """A node execution's row before the node's first event."""

    instance_id: str
    path: str
    ordinal: int
    node_id: str
    node_type: str
    status: str = "PENDING"
    skip_reason: None = None
    attempt: int = 0
    started_at: None = None
    completed_at: None = None
    due_at: None = None
    started_seq: int = 0
    output: None = None
    output_artifact: None = None
    error: None = None
    progress: None = None
    usage: None = None
    worker: None = None
    last_seq: int = 0
    awaited: None = None
    cached: bool = False


def pending(instance_id: str, graph: Graph, begun: keyset.Rows, where: keyset.Filter = keyset.EVERY) -> list[Pending]:
    """The outer nodes that have not begun and match, in the definition's order; bodies of loops are not looked into."""
    known = {row.path for row in begun}
    rows = [
        Pending(instance_id, id, FIRST_ORDINAL + place, id, node.type)
        for place, (id, node) in enumerate(graph.nodes.items())
        if id not in known
    ]
    return [row for row in rows if matches(where, row)]


def joined(page: keyset.Page, part: keyset.Slice, waiting: list[Pending]) -> keyset.Page:
    """The page with the nodes that have not begun behind those that have."""
    shown = {row.path for row in page.rows}
    behind = [
        row
        for row in waiting
        if row.path not in shown
        and (part.after is None or (row.ordinal, row.path) > part.after)
        and (part.before is None or (row.ordinal, row.path) < part.before)
    ]
    rows: list[Any] = [*page.rows, *behind]
    if part.backward:
        return keyset.Page(rows[-part.limit :], page.more or len(rows) > part.limit)
    if page.more:
        return page
    return keyset.Page(rows[: part.limit], len(rows) > part.limit)


def matches(where: keyset.Filter, row: Pending) -> bool:
    """Whether the row passes the filter, as SQL would have it."""
    match where:
        case keyset.All(parts):
            return all(matches(part, row) for part in parts)
        case keyset.Either(parts):
            return any(matches(part, row) for part in parts)
        case keyset.Not(part):
            return not matches(part, row)
        case keyset.Compare(field, op, value):
            have = getattr(row, field)
            match op:
                case "eq":
                    return bool(have == value)
                case "in":
                    return have in value
                case "contains":
                    return str(value).casefold() in have.casefold()
                case "gte":
                    return bool(have >= value)
                case "lte":
                    return bool(have <= value)
