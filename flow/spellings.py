"""Older spellings of a definition, brought to the canonical one.

``node_id``, ``node_type``, edges ``from``/``to``; a definition under ``workflow_config`` with the batch
fields around it; a ComfyUI API-format graph. Nothing is lost: what has no place in a definition is kept under
``metadata.legacy``. The reader's problems still point into the document as it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flow import comfyui, older
from flow.controls import LOOP, MAX_LOOPS

_NODE = {"node_id": "id", "node_type": "type"}
_EDGE = {"from": "source", "to": "target"}
_MANUAL = {"id": "manual", "type": "manual"}


@dataclass(slots=True)
class Spelled:
    """A document in canonical keys, and where its parts were.

    ``sections`` were moved and ``names`` changed: canonical pointer → given pointer.
    """

    document: dict[str, Any]
    sections: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    #: What was made up → where it was made from.
    made: dict[str, str] = field(default_factory=dict)

    def given(self, pointer: str) -> str:
        """Where a place of the canonical document is in the document as given."""
        renamed = _replaced(pointer, self.names)
        moved = _replaced(renamed, self.sections)
        if moved != renamed:
            return moved
        section = "/".join(renamed.split("/", 2)[:2])
        return self.made.get(section, renamed)


def _replaced(pointer: str, prefixes: Mapping[str, str]) -> str:
    head, tail = pointer, ""
    while head and prefixes:
        if head in prefixes:
            return prefixes[head] + tail
        head, _, last = head.rpartition("/")
        tail = f"/{last}{tail}"
    return pointer


def canonical(document: dict[str, Any]) -> Spelled:
    """The document in canonical keys; the given one is not changed."""
    if comfyui.is_graph(document):
        return _comfyui({"workflow_config": document}, {"name": "comfyui-graph"}, "")
    if isinstance(document.get("workflow_config"), dict):
        return _batch(document)
    return _renamed(document, {})


def _batch(document: Mapping[str, Any]) -> Spelled:
    config: dict[str, Any] = document["workflow_config"]
    shared = {key: document[key] for key in older.SHARED if document.get(key) is not None}
    legacy = {key: value for key, value in document.items() if key not in older.SHARED and key != "workflow_config"}
    if comfyui.is_graph(config):
        spelled = _comfyui(document, shared, "/workflow_config")
        moved, made = spelled.sections, spelled.made
        body = spelled.document
    else:
        # The fields around the definition win over the same fields inside; nothing differing is dropped silently.
        inner = {key: value for key, value in config.items() if key in shared and value != shared[key]}
        if inner:
            legacy["workflow_config"] = inner
        body = {**config, **shared}
        made = {}
        moved = {f"/{key}": f"/workflow_config/{key}" for key in config if key not in shared}
        if "triggers" not in body:
            body["triggers"] = [dict(_MANUAL)]
    if legacy:
        metadata = body.get("metadata")
        if metadata is None or isinstance(metadata, dict):
            body["metadata"] = {**(metadata or {}), older.LEGACY: legacy}
    spelled = _renamed(body, moved)
    spelled.made = made
    return spelled


def _comfyui(document: Mapping[str, Any], around: Mapping[str, Any], pointer: str) -> Spelled:
    """A workflow of one prompt. The older mappings become the node's where they can mean its graph; they are kept
    as they were given in any case.
    """
    graph = document["workflow_config"]
    parameters: dict[str, Any] = {"graph": dict(graph)}
    sections = {"/nodes/0/parameters/graph": pointer}
    mapping, outputs = document.get("input_mapping"), document.get("output_mapping")
    if isinstance(mapping, dict) and mapping:
        parameters["input_mapping"] = mapping
        sections["/nodes/0/parameters/input_mapping"] = "/input_mapping"
        if document.get("parameters"):
            # What the mapping names may stand there.
            parameters["defaults"] = "{{ parameters }}"
    if isinstance(outputs, dict) and outputs and not comfyui.unknown_outputs(graph, outputs):
        parameters["outputs"] = outputs
        sections["/nodes/0/parameters/outputs"] = "/output_mapping"
    node = {"id": "prompt", "type": comfyui.PROMPT, "parameters": parameters}
    whole = {**around, "triggers": [dict(_MANUAL)], "nodes": [node]}
    return Spelled(whole, sections, made={"/nodes": pointer, "/triggers": pointer})


_SPELLINGS: tuple[tuple[str, dict[str, str]], ...] = (("nodes", _NODE), ("edges", _EDGE))


def _renamed(document: dict[str, Any], sections: dict[str, str]) -> Spelled:
    names: dict[str, str] = {}
    return Spelled(_graph(document, "", names), sections, names)


def _graph(document: dict[str, Any], at: str, names: dict[str, str], depth: int = 0) -> dict[str, Any]:
    """The workflow, or the body of a loop at this pointer."""
    result = dict(document)
    for section, spellings in _SPELLINGS:
        items = document.get(section)
        if not isinstance(items, list):
            continue
        renamed_items = []
        for number, item in enumerate(items):
            if isinstance(item, dict) and not spellings.keys().isdisjoint(item):
                renamed: dict[str, Any] = {}
                for key, value in item.items():
                    new = spellings[key] if key in spellings else key  # noqa: SIM401
                    # Both spellings in one object: if they differ the old one stays, as an unknown key.
                    if new != key and new in item:
                        if item[new] != value:
                            renamed[key] = value
                        continue
                    if new != key:
                        names[f"{at}/{section}/{number}/{new}"] = f"{at}/{section}/{number}/{key}"
                    renamed[new] = value
                item = renamed
            pointer = f"{at}/{section}/{number}"
            if isinstance(item, dict) and section == "edges":
                item = _by_case(item, pointer, names)
            elif isinstance(item, dict) and item.get("type") == LOOP and depth < MAX_LOOPS:
                item = _loop(item, pointer, names, depth)
            renamed_items.append(item)
        result[section] = renamed_items
    return result


def _loop(node: dict[str, Any], pointer: str, names: dict[str, str], depth: int) -> dict[str, Any]:
    parameters = node.get("parameters")
    body = parameters.get("body") if isinstance(parameters, dict) else None
    if not isinstance(parameters, dict) or not isinstance(body, dict):
        return node
    body = _graph(body, f"{pointer}/parameters/body", names, depth + 1)
    return {**node, "parameters": {**parameters, "body": body}}


def _by_case(edge: dict[str, Any], pointer: str, names: dict[str, str]) -> dict[str, Any]:
    """``case: name`` is short for the condition that asks for this branch. With a condition it stays, as unknown."""
    case = edge.get("case")
    if not isinstance(case, str) or not case or edge.get("condition") is not None:
        return edge
    escaped = case.replace("'", "\\'")
    names[f"{pointer}/condition"] = f"{pointer}/case"
    return {**{key: value for key, value in edge.items() if key != "case"}, "condition": f"branch == '{escaped}'"}
