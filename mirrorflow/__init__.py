"""Mirrorflow: a durable workflow engine behind one typed GraphQL schema.

For authors of node types: ``from mirrorflow import Context, NodeError, node`` (docs/node-types.md).
The names are loaded when they are first used, so that importing a part of the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.nodes.contract import Cancelled, Context, NodeError, Placement, node
    from flow.definition import Resources
    from flow.errors import Category

__all__ = ["Cancelled", "Category", "Context", "NodeError", "Placement", "Resources", "node"]

_HOMES = {"Category": "flow.errors", "Resources": "flow.definition"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "engine.nodes.contract")), name)
