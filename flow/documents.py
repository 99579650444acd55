"""Definitions as documents: text in, a definition or all its problems out; and the canonical document back.

``read(export(d))`` is ``d`` again, and importing an export changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any

import msgspec
import yaml

from flow import durations, spellings, validation
from flow.definition import MAX_NODES, Definition, Edge, Node, TriggerSpec, TypeInfo
from flow.errors import Problem
from flow.parsing import check_values, parse, yaml_scalar
from flow.problems import ProblemCode, Problems
from flow.reading import draft

__all__ = ["Limits", "export", "parse", "read", "to_yaml"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a definition may be."""

    max_nodes: int = MAX_NODES


def read(
    document: Any, types: Mapping[str, TypeInfo], limits: Limits = Limits()
) -> tuple[Definition | None, list[Problem]]:
    """The definition of a document, or every problem that keeps it from being one, by place.

    ``document`` is JSON values (see ``parse``), in the canonical or an older spelling; it is not changed.
    The definition is None if and only if there are problems.
    """
    problems = Problems()
    if not isinstance(document, dict):
        problems.add("", ProblemCode.WRONG_TYPE, "A workflow definition is an object with 'name', 'triggers', 'nodes'.")
        return None, problems.sorted()
    check_values(document, problems)
    if problems:
        # Told already; from here on only JSON is looked at.
        document = _json_only(document, 0)
    spelled = spellings.canonical(document)
    found = Problems()
    read_draft = draft(spelled.document, limits.max_nodes, found)
    validation.check(read_draft, types, found)
    if not problems and not found:
        return read_draft.definition(), []
    for problem in found.sorted():
        problems.add(spelled.given(problem.pointer), ProblemCode(problem.code), problem.message)
    return None, problems.sorted()


def _json_only(value: Any, depth: int) -> Any:
    if depth > 100:
        return None
    if isinstance(value, dict):
        return {key: _json_only(item, depth + 1) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list):
        return [_json_only(item, depth + 1) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value if value is None or isinstance(value, str | int | float) else None


# ---- export ---------------------------------------------------------------------------------------------------

_TOP_KEYS = (
    "name",
    "display_name",
    "description",
    "scenario",
    "input_schema",
    "parameters",
    "triggers",
    "nodes",
    "edges",
    "output_mapping",
    "concurrency",
    "tags",
    "metadata",
)


def export(definition: Definition) -> dict[str, Any]:
    """The canonical document: every key in its order, defaults left out, durations in ISO 8601."""
    written = _written_struct(definition)
    return {key: written[key] for key in _TOP_KEYS if key in written}


def export_part(part: Node | Edge | TriggerSpec) -> dict[str, Any]:
    """One node, edge or trigger as in the canonical document."""
    return _written_struct(part)


@lru_cache(maxsize=64)
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Each field's default, NODEFAULT where it has none. (msgspec works the fields out anew each time it is asked.)"""
    return {
        field.name: field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        for field in msgspec.structs.fields(kind)
    }


def _written_struct(struct: msgspec.Struct) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, default in _defaults(type(struct)).items():
        value = getattr(struct, name)
        if default is msgspec.NODEFAULT or value != default or type(value) is not type(default):
            written[name] = _written(value)
    return written


def _written(value: Any) -> Any:
    match value:
        case StrEnum():
            return value.value
        case timedelta():
            return durations.iso(value)
        case msgspec.Struct():
            return _written_struct(value)
        case tuple():
            return [_written(item) for item in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            # Objects and lists are the author's own JSON: handed on as they are.
            return value


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as YAML that ``parse`` reads back to the same value, keys in their order."""
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
    )


class _Dumper(yaml.SafeDumper):
    """Without anchors, and quoting what YAML 1.1 would leave bare though YAML 1.2 reads it as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represented(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if not text.replace("\n", "").isprintable():
        # Only double quotes escape; U+0085 and U+2028 would be folded as line ends elsewhere.
        style = '"'
    elif "\n" in text:
        style = "|"
    elif yaml_scalar(text) != text or text == "<<":
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represented)


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """One line for each problem, for a terminal: pointer, code, sentence."""
    return [f"{problem.pointer or '/'}: {problem.message} [{problem.code}]" for problem in problems]
