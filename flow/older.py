"""What a workflow of the older batch form said, read back from the definition that it became.

Reading it (``flow.spellings``) keeps what has no place in a definition under ``metadata.legacy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow import comfyui

LEGACY = "legacy"
#: Stood beside ``workflow_config``, and stand at the top of a definition.
SHARED = ("name", "display_name", "description", "scenario", "parameters", "tags", "metadata")


def legacy(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was kept of the older form, nothing of a document that never was one."""
    metadata = document.get("metadata")
    kept = metadata.get(LEGACY) if isinstance(metadata, dict) else None
    return kept if isinstance(kept, dict) else {}


def field(document: Mapping[str, Any], key: str) -> Any:
    """What the older form gave under this key, or else what the definition has there; None where neither has it."""
    if key == "workflow_config":
        return _workflow_config(document)
    kept = legacy(document)
    return kept[key] if key in kept else document.get(key)


def _workflow_config(document: Mapping[str, Any]) -> Any:
    """The graph: ComfyUI's, or what the older form had under this key in today's spelling; else the definition."""
    kept = legacy(document)
    if "workflow_config" in document:  # a DRAFT whose problems keep it as it was given
        return document["workflow_config"]
    if not kept:
        return dict(document)
    nodes = document.get("nodes")
    if isinstance(nodes, list) and len(nodes) == 1 and nodes[0].get("type") == comfyui.PROMPT:
        return (nodes[0].get("parameters") or {}).get("graph")
    inner = kept.get("workflow_config")
    inner = inner if isinstance(inner, dict) else {}
    return {key: value for key, value in document.items() if key not in SHARED} | inner


def hidden(document: Mapping[str, Any]) -> bool:
    """Whether the older form had it out of its lists."""
    return legacy(document).get("status") == "hidden"
