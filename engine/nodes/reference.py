"""The reference of node types as a Markdown page, drawn from what they declare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from engine.nodes.contract import NodeType


def page(types: Iterable[NodeType]) -> str:
    """The page: each type with its description, placement, parameters and, where declared, output."""
    lines = [
        "# Node reference",
        "",
        "Generated from the node types by `make docs`. How to add one: [node-types.md](node-types.md).",
    ]
    for kind in types:
        lines += [
            "",
            f"## `{kind.name}`: {kind.title}",
            "",
            kind.description,
            "",
            f"{_WHERE[kind.placement.value]}.",
        ]
        if kind.resources.memory is not None:
            lines[-1] += f" May use {kind.resources.memory:,} MB unless the node's `resources` say otherwise."
        if rows := list(_rows(kind.parameters_schema)):
            lines += ["", "| parameter | type | default | meaning |", "|---|---|---|---|", *rows]
        if kind.output_schema is not None:
            names = ", ".join(f"`{name}`" for name in kind.output_schema.get("properties", {}))
            lines += ["", f"Output: {names}."]
    return "\n".join(lines) + "\n"


_WHERE = {
    "async": "Runs on the event loop",
    "thread": "Runs in a thread",
    "process": "Runs in a child process",
    "flow": "Is decided by the flow itself, and holds no worker",
}


def _rows(schema: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", [])
    for name, about in schema.get("properties", {}).items():
        default = "required" if name in required else f"`{json.dumps(about['default'])}`" if "default" in about else ""
        cells = (f"`{name}`", _type(about, schema), default, about.get("description", ""))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(about: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in about:
        return _type(schema["$defs"][about["$ref"].rpartition("/")[2]], schema)
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_type(one, schema) for one in about["anyOf"]))
    if about.get("type") == "array" and (inner := about.get("items")):
        return f"array of {_type(inner, schema)}"
    return str(about.get("type", "any JSON"))
