"""Mappings: which value goes where when data passes along an edge, into an instance, or out of it.

A mapping is ``{target path: source}``. The target path is dotted (``meta.faces``). The source is a path
(``"$"`` the whole, ``"$.<jmespath>"``, ``"$[0]…"``) or a literal; ``"$$…"`` is the literal text ``"$…"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flow.expressions import Expression, compiled

#: Where an output that isn't an object goes when there is no mapping.
VALUE_KEY = "value"


def path(source: Any) -> Expression | None:
    """The expression of a mapping's source, None for a literal. Raises ExpressionError."""
    if not isinstance(source, str) or not source.startswith("$"):
        return None
    if source == "$":
        return compiled("@")
    if source.startswith("$."):
        return compiled(source[2:])
    if source.startswith("$["):
        return compiled(source[1:])
    return None


def apply(mapping: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """A new object with every target filled from ``source``; what isn't found there is null.

    A later target overwrites an earlier one. ``source`` is never changed. Raises ExpressionError.
    """
    result: dict[str, Any] = {}
    for target, wanted in mapping.items():
        expression = path(wanted)
        if expression is not None:
            value = expression.search(source)
        else:
            value = wanted[1:] if isinstance(wanted, str) and wanted.startswith("$$") else wanted
        _put(result, target, value)
    return result


def merged(sources: Iterable[tuple[Mapping[str, Any], Any]]) -> dict[str, Any]:
    """A node's input from its live sources' ``(mapping, output)`` in edge order, later keys over earlier ones.

    Only the top level is merged. Without a mapping an object gives its keys, null gives nothing, and any
    other output goes under ``value``. Raises ExpressionError.
    """
    result: dict[str, Any] = {}
    for mapping, output in sources:
        if mapping:
            result.update(apply(mapping, output))
        elif isinstance(output, dict):
            result.update(output)
        elif output is not None:
            result[VALUE_KEY] = output
    return result


def _put(into: dict[str, Any], target: str, value: Any) -> None:
    *parents, last = target.split(".")
    for key in parents:
        inner = into.get(key)
        # Copied, because an earlier target may have put an object of the source here.
        into[key] = dict(inner) if isinstance(inner, dict) else {}
        into = into[key]
    into[last] = value
