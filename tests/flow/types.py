"""Node types for tests of definitions: one that takes anything, one that is strict about its parameters."""

from __future__ import annotations

from typing import Any

from flow.definition import TypeInfo

TYPES = {
    "core/noop": TypeInfo("core/noop", {"type": "object"}),
    "image/preprocess": TypeInfo(
        "image/preprocess",
        {
            "type": "object",
            "properties": {
                "format": {"enum": ["jpeg", "png"]},
                "width": {"type": "integer", "minimum": 1},
                "path": {"type": "string", "pattern": "^/"},
                "size": {"anyOf": [{"type": "integer"}, {"type": "object", "required": ["w"]}]},
                "tasks": {"type": "array", "items": {"enum": ["a", "b"]}},
            },
            "required": ["format"],
            "additionalProperties": False,
        },
    ),
}


def document(**changes: Any) -> dict[str, Any]:
    """A valid document of three nodes in a row, with some top-level keys replaced (or removed, by ``...``)."""
    base: dict[str, Any] = {
        "name": "photos",
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": [
            {"id": "a", "type": "core/noop"},
            {"id": "b", "type": "core/noop"},
            {"id": "c", "type": "core/noop"},
        ],
        "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}],
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def node(**changes: Any) -> dict[str, Any]:
    """The document with its node ``b`` changed."""
    nodes = document()["nodes"]
    nodes[1] = {key: value for key, value in {**nodes[1], **changes}.items() if value is not ...}
    return document(nodes=nodes)


def edges(*pairs: str, **changes: Any) -> dict[str, Any]:
    """The document with these edges (``"a>b"``), the last one with more keys."""
    listed: list[dict[str, Any]] = [dict(zip(("source", "target"), pair.split(">"), strict=True)) for pair in pairs]
    listed[-1] |= changes
    return document(edges=listed)
