"""The JSON Schema (2020-12) of a definition document, for editors to complete and explain it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from flow.definition import MAX_NODES, TRIGGER_TYPES, Join, On, TypeInfo
from flow.errors import Category
from flow.jsonschemas import DRAFT
from flow.reading import MAX_ID, MAX_NAME, MAX_TEXT

_DURATION_TEXT = r"^(P.*\d.*|(\d+(\.\d+)?(ms|s|m|h|d|w))+)$"


def definition_schema(types: Mapping[str, TypeInfo] | None = None) -> dict[str, Any]:
    """The schema of the canonical document. With ``types`` it also knows each node type's own parameters.

    It says what a document may look like; ``flow.documents.read`` says the rest (references, cycles, expressions).
    """
    return {
        "$schema": DRAFT,
        "title": "Mirrorflow workflow definition",
        **_object(
            "A workflow: what starts it, its nodes, and the edges between them.",
            {
                "name": _text("Unique in its project; used on the command line.", MAX_NAME, least=1),
                "display_name": _text("What people see instead of the name.", MAX_NAME),
                "description": _text("What the workflow is for."),
                "scenario": _text("The kind of work, to group workflows by.", MAX_NAME),
                "input_schema": {"type": "object", "description": "JSON Schema that an instance's input must fit."},
                "parameters": {
                    "type": "object",
                    "description": "Values that templates read as {{ parameters.<name> }}.",
                },
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "description": "What starts the workflow.",
                    "items": {"$ref": "#/$defs/trigger"},
                },
                "nodes": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_NODES,
                    "description": "The steps, in any order.",
                    "items": {"$ref": "#/$defs/node"},
                },
                "edges": {
                    "type": "array",
                    "description": "Which node follows which; data goes along them.",
                    "items": {"$ref": "#/$defs/edge"},
                },
                "output_mapping": _mapping("The instance's output: target path → '$.<jmespath>' on the final scope."),
                "concurrency": _object(
                    "How many instances with an equal key run at once.",
                    {
                        "limit": {"type": "integer", "minimum": 1, "default": 1, "description": "So many at most."},
                        "key": _text("An expression on the input, such as customer.id; without it all have the same."),
                        "on_conflict": {
                            "enum": ["queue", "cancel_running", "skip"],
                            "default": "queue",
                            "description": "Where they are there: wait, cancel the oldest, or don't start.",
                        },
                    },
                ),
                "tags": {"type": "array", "items": {"type": "string"}, "description": "Words to find the workflow by."},
                "metadata": {"type": "object", "description": "Anything else; the engine doesn't read it."},
            },
            ("name", "triggers", "nodes"),
        ),
        "$defs": {
            "trigger": _trigger(),
            "node": _node(types or {}),
            "edge": _edge(),
            "retry": _retry(),
            "id": {
                "type": "string",
                "pattern": r"^[^\s/\[\].:\-][^\s/\[\]]*$",
                "maxLength": MAX_ID,
                "description": "Letters, digits, '_', '-', '.' and ':'.",
            },
            "duration": {
                "description": "Seconds as a number, '90s', '5m', '2h', '1d', '500ms', or ISO 8601 ('PT1H').",
                "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _DURATION_TEXT}],
            },
            "errorWord": {
                "description": "An error category, or an error code such as NODE_TIMEOUT.",
                "anyOf": [_words(Category), {"type": "string", "pattern": "^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$"}],
            },
        },
    }


def _object(description: str, properties: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "description": description,
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        schema["required"] = list(required)
    return schema


def _text(description: str, longest: int = MAX_TEXT, *, least: int = 0) -> dict[str, Any]:
    bounds = {"maxLength": longest} | ({"minLength": least} if least else {})
    return {"type": "string", **bounds, "description": description}


def _words(words: type[StrEnum] | tuple[str, ...]) -> dict[str, Any]:
    return {"enum": [str(word) for word in words]}


def _mapping(description: str) -> dict[str, Any]:
    return {"type": "object", "description": description}


def _duration(description: str) -> dict[str, Any]:
    return {"$ref": "#/$defs/duration", "description": description}


def _trigger() -> dict[str, Any]:
    return _object(
        "One thing that starts the workflow.",
        {
            "id": {"$ref": "#/$defs/id", "description": "Unique among the triggers; the type's name by default."},
            "type": {**_words(TRIGGER_TYPES), "description": "What kind of event it waits for."},
            "config": {
                "type": "object",
                "description": "By type. schedule: cron, timezone. filesystem: path, events, recursive.",
                "properties": {
                    "cron": {"type": "string", "description": "Five fields, or six with seconds first."},
                    "timezone": {"type": "string", "description": "An IANA zone such as Europe/Berlin."},
                },
            },
            "input_mapping": _mapping("The instance's input: target path → '$.<jmespath>' on the trigger's payload."),
        },
        ("type",),
    )


def _node(types: Mapping[str, TypeInfo]) -> dict[str, Any]:
    schema = _object(
        "One step.",
        {
            "id": {"$ref": "#/$defs/id", "description": "Unique among the nodes."},
            "type": _text("A registered node type, such as http/request.", MAX_NAME),
            "name": _text("A label for people.", MAX_NAME),
            "parameters": {"type": "object", "description": "The type's parameters; templates {{ … }} are allowed."},
            "join": {**_words(Join), "default": "all", "description": "When the node starts, by its incoming edges."},
            "fail_on_error": {
                "type": "boolean",
                "default": True,
                "description": "Whether a final failure of this node fails the instance.",
            },
            "retry": {"$ref": "#/$defs/retry"},
            "timeout": _duration("From start to finish of one attempt; 5m by default."),
            "heartbeat_timeout": _duration("The longest time without a heartbeat of the handler."),
            "cache": _object(
                "Use a result again for the same type, parameters and input.",
                {"ttl": _duration("How long."), "key": _text("What to tell results apart by, instead.")},
                ("ttl",),
            ),
            "resources": _object(
                "What the node needs.",
                {
                    "cpu": {"type": "integer", "minimum": 1, "description": "Millicores."},
                    "memory": {"type": "integer", "minimum": 1, "description": "Megabytes."},
                    "gpu": {"type": "integer", "minimum": 0, "description": "Graphics cards."},
                },
            ),
            "runs_on": {"type": "array", "items": {"type": "string"}, "description": "Labels that a worker must have."},
            "on_lost": {
                "enum": ["retry", "fail"],
                "default": "retry",
                "description": "What follows when the worker died in the middle.",
            },
            "position": _object(
                "Where the node stands on the canvas.",
                {"x": {"type": "number"}, "y": {"type": "number"}},
                ("x", "y"),
            ),
        },
        ("id", "type"),
    )
    if types:
        schema["properties"]["type"] = {
            "enum": sorted(types),
            "description": "A registered node type.",
        }
        schema["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"properties": {"parameters": _parameters(types[name])}},
            }
            for name in sorted(types)
        ]
    return schema


def _parameters(info: TypeInfo) -> dict[str, Any]:
    """Names and descriptions only: a template may stand for any value, so a value's type is the reader's to check."""
    properties = info.parameters_schema.get("properties", {})
    shown = {
        name: {key: value for key, value in schema.items() if key in ("title", "description", "default", "examples")}
        for name, schema in properties.items()
        if isinstance(schema, dict)
    }
    closed = info.parameters_schema.get("additionalProperties") is False
    return {"properties": shown} | ({"additionalProperties": False} if closed else {})


def _edge() -> dict[str, Any]:
    return _object(
        "From one node to another.",
        {
            "source": {"type": "string", "description": "The id of the node that the edge leaves."},
            "target": {"type": "string", "description": "The id of the node that it leads to."},
            "on": {**_words(On), "default": "success", "description": "Which end of the source it follows."},
            "case": _text("The branch of a core/condition that it follows; short for a condition."),
            "condition": _text("A JMESPath expression on the source's output; the edge is followed where it is true."),
            "mapping": _mapping("Target path → '$.<jmespath>' on the source's output, or a plain value."),
        },
        ("source", "target"),
    )


def _retry() -> dict[str, Any]:
    words = {"type": "array", "items": {"$ref": "#/$defs/errorWord"}}
    return _object(
        "How a failed attempt is made again: after base × factor^(n-1), at most cap, ± jitter.",
        {
            "max": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 3, "description": "Retries."},
            "base": _duration("Before the first retry; 1s by default."),
            "factor": {"type": "number", "minimum": 1, "maximum": 100, "default": 2},
            "cap": _duration("The longest wait; 60s by default."),
            "jitter": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.1,
                "description": "Share of the wait that is random.",
            },
            "total_timeout": _duration("All attempts together."),
            "retry_on": {**words, "description": "Only these are retried."},
            "never_on": {**words, "description": "These are never retried."},
        },
    )
