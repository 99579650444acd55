"""The definitions that are measured."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any


def chain(name: str, nodes: int, type: str, parameters: dict[str, Any] | None = None) -> str:
    """``nodes`` nodes in a row."""
    ids = [f"n{index}" for index in range(nodes)]
    edges = [{"source": a, "target": b} for a, b in pairwise(ids)]
    return _definition(name, [{"id": id, "type": type, "parameters": parameters or {}} for id in ids], edges)


def fan(name: str, width: int) -> str:
    """One node, ``width`` parallel no-ops, one join."""
    ids = [f"p{index}" for index in range(width)]
    nodes = [{"id": id, "type": "core/noop"} for id in ("first", *ids, "last")]
    edges = [{"source": "first", "target": id} for id in ids]
    edges += [{"source": id, "target": "last"} for id in ids]
    return _definition(name, nodes, edges)


def _definition(name: str, nodes: list[dict[str, Any]], edges: list[dict[str, Any]]) -> str:
    document = {"name": name, "triggers": [{"id": "m", "type": "manual"}], "nodes": nodes, "edges": edges}
    return json.dumps(document)
