"""The shape of a definition document: which keys there are and what each one takes, as tables.

Reading goes on after a problem: what could be read of a broken document is handed on, so that the checks of
meaning (``flow.validation``) tell theirs in the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from flow import durations
from flow.controls import LOOP, MAX_LOOPS
from flow.definition import (
    MAX_DEPTH,
    Cache,
    Concurrency,
    Definition,
    Edge,
    Join,
    Node,
    On,
    Position,
    Resources,
    RetryPolicy,
    TriggerSpec,
)
from flow.errors import Category
from flow.expressions import pointer_token
from flow.problems import ProblemCode, Problems, listed, shown

MAX_NAME = 200
MAX_TEXT = 20_000
MAX_ID = 128

#: Letters of any script, digits, ``_ - . :``. A node's path adds ``/ [ ]`` to ids, so these are not in them.
ID = re.compile(r"\w[\w.:-]*")
ERROR_CODE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+", re.ASCII)


class Unreadable:
    """Stands for a value that a problem was told about."""


UNREADABLE = Unreadable()
Reader = Callable[[Any, str, Problems], Any]


# ---- values ---------------------------------------------------------------------------------------------------


def text(longest: int = MAX_TEXT) -> Reader:
    def read(value: Any, pointer: str, problems: Problems) -> Any:
        if not isinstance(value, str):
            problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not a text; put it in quotes.")
            return UNREADABLE
        if len(value) > longest:
            problems.add(pointer, ProblemCode.TOO_LARGE, f"The text has {len(value):,} characters of {longest:,}.")
            return UNREADABLE
        return value

    return read


def identifier(value: Any, pointer: str, problems: Problems) -> Any:
    if isinstance(value, str) and len(value) <= MAX_ID and ID.fullmatch(value):
        return value
    message = (
        f"{shown(value)} is not an id: a text of 1 to {MAX_ID} letters, digits, '_', '-', '.' or ':', "
        "beginning with a letter, a digit or '_'."
    )
    problems.add(pointer, ProblemCode.BAD_ID, message)
    return UNREADABLE


def workflow_name(value: Any, pointer: str, problems: Problems) -> Any:
    if isinstance(value, str) and not value.strip():
        problems.add(pointer, ProblemCode.MISSING_NAME, "The name is empty; give the workflow a name.")
        return UNREADABLE
    if isinstance(value, str) and (value != value.strip() or not value.isprintable()):
        message = "The name begins or ends with a space, or holds a control character; remove it."
        problems.add(pointer, ProblemCode.WRONG_TYPE, message)
        return UNREADABLE
    return text(MAX_NAME)(value, pointer, problems)


def flag(value: Any, pointer: str, problems: Problems) -> Any:
    if isinstance(value, bool):
        return value
    problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is neither true nor false.")
    return UNREADABLE


def number(low: float, high: float, *, whole: bool = False) -> Reader:
    def read(value: Any, pointer: str, problems: Problems) -> Any:
        allowed = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, allowed):
            kind = "a whole number" if whole else "a number"
            problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not {kind}.")
            return UNREADABLE
        if not low <= value <= high:
            message = f"{shown(value)} is not within {low:,} and {high:,}."
            problems.add(pointer, ProblemCode.OUT_OF_RANGE, message)
            return UNREADABLE
        return value if whole else float(value)

    return read


def duration(*, zero: bool = False) -> Reader:
    def read(value: Any, pointer: str, problems: Problems) -> Any:
        try:
            result = durations.parse(value)
            if not zero and result <= timedelta(0):
                raise ValueError("the duration must be longer than zero")
        except ValueError as error:
            sentence = str(error)
            problems.add(pointer, ProblemCode.BAD_DURATION, f"{sentence[0].upper()}{sentence[1:]}.")
            return UNREADABLE
        return result

    return read


def choice(words: type[StrEnum] | tuple[str, ...], code: ProblemCode = ProblemCode.UNKNOWN_VALUE) -> Reader:
    known = [str(word) for word in words]

    def read(value: Any, pointer: str, problems: Problems) -> Any:
        if isinstance(value, str) and value in known:
            return value if isinstance(words, tuple) else words(value)
        meant = problems.did_you_mean(value, known) if isinstance(value, str) else ""
        problems.add(pointer, code, f"{shown(value)} is unknown here; write {listed(known)}.{meant}")
        return UNREADABLE

    return read


def json_object(value: Any, pointer: str, problems: Problems) -> Any:
    if not isinstance(value, dict):
        problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not an object.")
        return UNREADABLE
    if (deep := too_deep(value)) is not None:
        message = f"This is nested deeper than {MAX_DEPTH}; flatten it, or keep the data in a file."
        problems.add(f"{pointer}{deep}", ProblemCode.NESTED_TOO_DEEP, message)
    return value


def too_deep(value: Any) -> str | None:
    """The pointer of the first container below more than ``MAX_DEPTH - 1`` others, or None."""
    stack = [("", 1, value)]
    while stack:
        pointer, depth, current = stack.pop()
        if not isinstance(current, dict | list):
            continue
        if depth > MAX_DEPTH:
            return pointer
        items = current.items() if isinstance(current, dict) else enumerate(current)
        stack.extend((f"{pointer}/{pointer_token(key)}", depth + 1, item) for key, item in items)
    return None


def list_of(read_item: Reader) -> Reader:
    def read(value: Any, pointer: str, problems: Problems) -> Any:
        if not isinstance(value, list):
            problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not a list.")
            return UNREADABLE
        items = tuple(read_item(item, f"{pointer}/{place}", problems) for place, item in enumerate(value))
        return UNREADABLE if any(item is UNREADABLE for item in items) else items

    return read


def error_word(value: Any, pointer: str, problems: Problems) -> Any:
    """A category, or a code; a code has an underscore, so that a misspelled category is told from one."""
    if isinstance(value, str) and (value in Category.__members__ or ERROR_CODE.fullmatch(value)):
        return value
    meant = problems.did_you_mean(value, Category.__members__) if isinstance(value, str) else ""
    message = (
        f"{shown(value)} is neither an error category ({listed(Category.__members__)}) "
        f"nor an error code like NODE_TIMEOUT.{meant}"
    )
    problems.add(pointer, ProblemCode.UNKNOWN_ERROR_CATEGORY, message)
    return UNREADABLE


def record(kind: Callable[..., Any], fields: Mapping[str, Reader], required: tuple[str, ...] = ()) -> Reader:
    """An object with these keys, as ``kind(**values)``."""

    def read(value: Any, pointer: str, problems: Problems) -> Any:
        before = len(problems)
        values = members(value, pointer, problems, fields, required)
        return UNREADABLE if values is None or len(problems) > before else kind(**values)

    return read


def members(
    value: Any, pointer: str, problems: Problems, fields: Mapping[str, Reader], required: tuple[str, ...]
) -> dict[str, Any] | None:
    """What could be read of an object, None where it isn't one. A key that is null counts as absent."""
    if not isinstance(value, dict):
        problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not an object.")
        return None
    result: dict[str, Any] = {}
    for key, item in value.items():
        read = fields.get(key)
        if read is None:
            message = (
                f"The key {shown(key)} is unknown here; there are {listed(fields)}.{problems.did_you_mean(key, fields)}"
            )
            problems.add(f"{pointer}/{pointer_token(key)}", ProblemCode.UNKNOWN_KEY, message)
        elif item is not None:
            found = read(item, f"{pointer}/{key}", problems)
            if found is not UNREADABLE:
                result[key] = found
    for key in required:
        if value.get(key) is None:
            problems.add(pointer, ProblemCode.MISSING_KEY, f"The key {key!r} is missing; add it.")
    return result


# ---- tables ---------------------------------------------------------------------------------------------------

RETRY: dict[str, Reader] = {
    "max": number(0, 1_000, whole=True),
    "base": duration(zero=True),
    "factor": number(1, 100),
    "cap": duration(zero=True),
    "jitter": number(0, 1),
    "total_timeout": duration(),
    "retry_on": list_of(error_word),
    "never_on": list_of(error_word),
}
CACHE: dict[str, Reader] = {"ttl": duration(), "key": text()}
RESOURCES: dict[str, Reader] = {
    "cpu": number(1, 1_000_000, whole=True),
    "memory": number(1, 100_000_000, whole=True),
    "gpu": number(0, 1_000, whole=True),
}
CONCURRENCY: dict[str, Reader] = {
    "limit": number(1, 1_000_000, whole=True),
    "key": text(),
    "on_conflict": choice(("queue", "cancel_running", "skip")),
}
POSITION: dict[str, Reader] = {"x": number(-1e9, 1e9), "y": number(-1e9, 1e9)}
NODE: dict[str, Reader] = {
    "id": identifier,
    "type": text(MAX_NAME),
    "name": text(MAX_NAME),
    "parameters": json_object,
    "join": choice(Join, ProblemCode.UNKNOWN_JOIN),
    "fail_on_error": flag,
    "retry": record(RetryPolicy, RETRY),
    "timeout": duration(),
    "heartbeat_timeout": duration(),
    "cache": record(Cache, CACHE, ("ttl",)),
    "resources": record(Resources, RESOURCES),
    "runs_on": list_of(text(MAX_NAME)),
    "on_lost": choice(("retry", "fail")),
    "position": record(Position, POSITION, ("x", "y")),
}
EDGE: dict[str, Reader] = {
    "source": text(MAX_ID),
    "target": text(MAX_ID),
    "on": choice(On),
    "condition": text(),
    "mapping": json_object,
}
TRIGGER: dict[str, Reader] = {
    "id": identifier,
    "type": text(MAX_NAME),
    "config": json_object,
    "input_mapping": json_object,
}


def _given_list(value: Any, pointer: str, problems: Problems) -> Any:
    if isinstance(value, list):
        return value
    problems.add(pointer, ProblemCode.WRONG_TYPE, f"{shown(value)} is not a list.")
    return UNREADABLE


TOP: dict[str, Reader] = {
    "name": workflow_name,
    "display_name": text(MAX_NAME),
    "description": text(),
    "scenario": text(MAX_NAME),
    "input_schema": json_object,
    "parameters": json_object,
    "triggers": _given_list,
    "nodes": _given_list,
    "edges": _given_list,
    "output_mapping": json_object,
    "concurrency": record(Concurrency, CONCURRENCY),
    "tags": list_of(text(MAX_NAME)),
    "metadata": json_object,
}


def read_body(body: Mapping[str, Any]) -> tuple[tuple[Node, ...], tuple[Edge, ...]]:
    """The nodes and edges of a loop's body, which was read before and found valid."""
    problems = Problems()
    nodes = [members(node, "", problems, NODE, ()) for node in body["nodes"]]
    edges = [members(edge, "", problems, EDGE, ()) for edge in body.get("edges") or ()]
    return tuple(Node(**node) for node in nodes if node), tuple(Edge(**edge) for edge in edges if edge)


# ---- the document ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Draft:
    """What could be read of a document, place for place: a list's entry is None where it isn't an object.

    ``too_large``: nodes and edges were not looked at, because there are too many.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    triggers: list[dict[str, Any] | None] = field(default_factory=list)
    nodes: list[dict[str, Any] | None] = field(default_factory=list)
    edges: list[dict[str, Any] | None] = field(default_factory=list)
    too_large: bool = False
    #: The bodies of loops, by the place of their node.
    bodies: dict[int, Draft] = field(default_factory=dict)

    def definition(self) -> Definition:
        """The definition, of a draft that no problem was found in."""
        return Definition(
            triggers=tuple(TriggerSpec(**trigger) for trigger in self.triggers if trigger is not None),
            nodes=tuple(Node(**node) for node in self.nodes if node is not None),
            edges=tuple(Edge(**edge) for edge in self.edges if edge is not None),
            **self.fields,
        )


def draft(document: dict[str, Any], max_nodes: int, problems: Problems) -> Draft:
    """Read a document in canonical keys. Above ``max_nodes`` (or 20 edges for each of them) no node is looked at."""
    top = members(document, "", problems, TOP, ())
    assert top is not None
    nodes, edges, triggers = (top.pop(key, []) for key in ("nodes", "edges", "triggers"))
    result = Draft(fields=top)
    if "name" not in document or document["name"] is None:
        problems.add("/name", ProblemCode.MISSING_NAME, "The workflow has no name; add 'name'.")
    if not triggers and isinstance(document.get("triggers", []) or [], list):
        message = "The workflow has no trigger; add one, for example {id: by-hand, type: manual}."
        problems.add("/triggers", ProblemCode.NO_TRIGGER, message)
    if not nodes and isinstance(document.get("nodes", []) or [], list):
        problems.add("/nodes", ProblemCode.NO_NODE, "The workflow has no node; add at least one.")
    for place, trigger in enumerate(triggers):
        result.triggers.append(members(trigger, f"/triggers/{place}", problems, TRIGGER, ("type",)))
    _name_triggers(result.triggers, triggers)
    if (count := _count(nodes)) > max_nodes:
        message = f"The workflow has {count:,} nodes; the limit is {max_nodes:,}. Split it into child workflows."
        problems.add("/nodes", ProblemCode.TOO_MANY_NODES, message)
        result.too_large = True
        return result
    if len(edges) > 20 * max_nodes:
        message = f"The workflow has {len(edges):,} edges; the limit is {20 * max_nodes:,}."
        problems.add("/edges", ProblemCode.TOO_LARGE, message)
        result.too_large = True
        return result
    _read_graph(result, nodes, edges, problems, 0)
    return result


def _body(node: Any) -> dict[str, Any] | None:
    """The body of a loop, if the node is one that has it."""
    if not isinstance(node, dict) or node.get("type") != LOOP or not isinstance(node.get("parameters"), dict):
        return None
    body = node["parameters"].get("body")
    return body if isinstance(body, dict) else None


def _count(nodes: list[Any], depth: int = 0) -> int:
    """How many nodes there are, those in bodies too."""
    count = len(nodes)
    for node in nodes:
        inner = (_body(node) or {}).get("nodes")
        if isinstance(inner, list) and depth < MAX_LOOPS:
            count += _count(inner, depth + 1)
    return count


def _read_graph(result: Draft, nodes: list[Any], edges: list[Any], problems: Problems, depth: int) -> None:
    for place, node in enumerate(nodes):
        pointer = f"/nodes/{place}"
        body = _body(node)
        if body is None:
            result.nodes.append(members(node, pointer, problems, NODE, ("id", "type")))
            continue
        # The body is read as a graph, not as a value.
        rest = {key: value for key, value in node["parameters"].items() if key != "body"}
        read = members({**node, "parameters": rest}, pointer, problems, NODE, ("id", "type"))
        assert read is not None
        result.nodes.append(read)
        read["parameters"] = {**rest, "body": body}
        if depth == MAX_LOOPS:
            message = f"Loops are nested deeper than {MAX_LOOPS}; put the inner ones into a workflow of their own."
            problems.add(f"{pointer}/parameters/body", ProblemCode.NESTED_TOO_DEEP, message)
            continue
        within = problems.under(f"{pointer}/parameters/body")
        values = members(body, "", within, {"nodes": _given_list, "edges": _given_list}, ("nodes",)) or {}
        inner = result.bodies[place] = Draft()
        if values.get("nodes") == []:
            within.add("/nodes", ProblemCode.NO_NODE, "The loop's body has no node; add at least one.")
        _read_graph(inner, values.get("nodes", []), values.get("edges", []), within, depth + 1)
    for place, edge in enumerate(edges):
        result.edges.append(members(edge, f"/edges/{place}", problems, EDGE, ("source", "target")))


def _name_triggers(triggers: list[dict[str, Any] | None], given: list[Any]) -> None:
    """A trigger without an id is called after its type: ``schedule``, ``schedule-2``."""
    taken = {trigger["id"] for trigger in triggers if trigger is not None and "id" in trigger}
    for trigger, raw in zip(triggers, given, strict=True):
        if trigger is None or raw.get("id") is not None or not isinstance(trigger.get("type"), str):
            continue
        base = trigger["type"] if ID.fullmatch(trigger["type"]) else "trigger"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        trigger["id"] = name
        taken.add(name)
