"""What a definition must mean, beyond its shape: types and their parameters, schedules, schemas, expressions.

Every check looks at the whole draft and tells all it finds; none stops the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from flow import comfycheck, comfyui, controlcheck, controls, cron, graphcheck, jsonschemas
from flow.controlcheck import check_condition, check_mapping
from flow.definition import TRIGGER_TYPES, TypeInfo
from flow.expressions import Expression, ExpressionError, compiled, expressions_in, templates
from flow.problems import ProblemCode, Problems, listed, shown
from flow.reading import Draft

__all__ = ["ProblemCode", "check"]


def check(draft: Draft, types: Mapping[str, TypeInfo], problems: Problems) -> None:
    """Add every problem of the draft's meaning."""
    _check_triggers(draft, problems)
    _check_input_schema(draft, problems)
    if draft.too_large:
        return
    graph, outer = _check_graph(draft, types, problems)
    for mention in outer:
        _tell_unknown(mention, graph)
    _check_output_mapping(draft, graph, problems)
    _check_concurrency(draft, problems)


# ---- triggers -------------------------------------------------------------------------------------------------


def _check_triggers(draft: Draft, problems: Problems) -> None:
    seen: dict[str, int] = {}
    for place, trigger in enumerate(draft.triggers):
        if trigger is None:
            continue
        pointer = f"/triggers/{place}"
        if (id := trigger.get("id")) is not None:
            if id in seen:
                message = f"The id {id!r} is taken by trigger {seen[id]} of the list; give each trigger its own."
                problems.add(f"{pointer}/id", ProblemCode.DUPLICATE_ID, message)
            seen.setdefault(id, place)
        kind = trigger.get("type")
        if kind is not None and kind not in TRIGGER_TYPES:
            meant = problems.did_you_mean(kind, TRIGGER_TYPES)
            message = f"There is no trigger type {shown(kind)}; there are {listed(TRIGGER_TYPES)}.{meant}"
            problems.add(f"{pointer}/type", ProblemCode.UNKNOWN_TRIGGER_TYPE, message)
        if kind == "schedule":
            _check_schedule(trigger.get("config", {}), f"{pointer}/config", problems)
        check_mapping(trigger.get("input_mapping", {}), f"{pointer}/input_mapping", problems)


def _check_schedule(config: dict[str, Any], pointer: str, problems: Problems) -> None:
    expression = config.get("cron")
    if not isinstance(expression, str):
        message = "A schedule needs 'cron', a text such as '0 9 * * MON-FRI'."
        problems.add(f"{pointer}/cron", ProblemCode.BAD_CRON, message)
    else:
        try:
            cron.parse(expression)
        except ValueError as error:
            message = f"The cron expression {shown(expression)} can't be used: {error}."
            problems.add(f"{pointer}/cron", ProblemCode.BAD_CRON, message)
    zone = config.get("timezone")
    if zone is not None and not (isinstance(zone, str) and is_time_zone(zone)):
        meant = problems.did_you_mean(zone, _zones()) if isinstance(zone, str) else ""
        message = f"There is no time zone {shown(zone)}; write one like 'Europe/Berlin' or 'UTC'.{meant}"
        problems.add(f"{pointer}/timezone", ProblemCode.BAD_TIME_ZONE, message)


@lru_cache(maxsize=1_024)
def is_time_zone(name: str) -> bool:
    """Whether the IANA database has this zone."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


# ---- schemas --------------------------------------------------------------------------------------------------


def _check_input_schema(draft: Draft, problems: Problems) -> None:
    schema = draft.fields.get("input_schema")
    if schema is not None and (fault := jsonschemas.schema_fault(schema)) is not None:
        pointer, sentence = fault
        message = f"The input schema is not a JSON Schema: {sentence}"
        problems.add(f"/input_schema{pointer}", ProblemCode.BAD_INPUT_SCHEMA, message)


def _check_types(draft: Draft, types: Mapping[str, TypeInfo], problems: Problems) -> None:
    validators: dict[str, Any] = {}
    # Large workflows repeat themselves; the same parameters of the same type are checked once.
    checked: dict[tuple[str, str], list[jsonschemas.Mismatch]] = {}
    for place, node in enumerate(draft.nodes):
        kind = node.get("type") if node is not None else None
        if node is None or kind is None:
            continue
        info = types.get(kind)
        if info is None:
            message = f"There is no node type {shown(kind)}.{problems.did_you_mean(kind, types)}"
            problems.add(f"/nodes/{place}/type", ProblemCode.UNKNOWN_TYPE, message)
            continue
        parameters = node.get("parameters", {})
        key = (kind, json.dumps(parameters, sort_keys=True))
        if key not in checked:
            if kind not in validators:
                validators[kind] = jsonschemas.validator(info.parameters_schema)
            checked[key] = jsonschemas.mismatches(validators[kind], parameters, templates=True)
        for mismatch in checked[key]:
            pointer = f"/nodes/{place}/parameters{mismatch.pointer}"
            message = f"Not as {kind} takes its parameters: {mismatch.message}"
            problems.add(pointer, ProblemCode.BAD_PARAMETERS, message)


# ---- expressions ----------------------------------------------------------------------------------------------


#: How an edge asks for a branch, by `case` or written out.
_BRANCH = re.compile(r"branch == '((?:[^'\\]|\\.)*)'")


def _check_edges(draft: Draft, problems: Problems) -> None:
    branches = {node["id"]: controlcheck.branches(node) for node in draft.nodes if node is not None and "id" in node}
    for place, edge in enumerate(draft.edges):
        if edge is None:
            continue
        if (condition := edge.get("condition")) is not None:
            check_condition(condition, f"/edges/{place}/condition", problems)
            known, asked = branches.get(edge.get("source", "")), _BRANCH.fullmatch(condition)
            if known and asked is not None and (name := asked[1].replace("\\'", "'")) not in known:
                message = (
                    f"There is no case {shown(name)}; there are {listed(known)}.{problems.did_you_mean(name, known)}"
                )
                problems.add(f"/edges/{place}/condition", ProblemCode.UNKNOWN_VALUE, message)
        if edge.get("mapping"):
            check_mapping(edge["mapping"], f"/edges/{place}/mapping", problems)


def _check_output_mapping(draft: Draft, graph: graphcheck.Graph, problems: Problems) -> None:
    for pointer, expression in check_mapping(draft.fields.get("output_mapping", {}), "/output_mapping", problems):
        for id in sorted(expression.references.nodes):
            if id not in graph.index:
                _tell_unknown(_Mention(id, expression, pointer, problems), graph)
        _check_secrets(expression, pointer, problems)


def _check_concurrency(draft: Draft, problems: Problems) -> None:
    """The key is worked out before the run begins, so it sees no node."""
    rule = draft.fields.get("concurrency")
    if rule is None or rule.key is None:
        return
    pointer = "/concurrency/key"
    try:
        expression = compiled(rule.key)
    except ExpressionError as error:
        problems.add(pointer, ProblemCode.BAD_EXPRESSION, error.message)
        return
    _check_secrets(expression, pointer, problems)
    for id in sorted(expression.references.nodes):
        message = f"The key is needed before the run begins, so it can't use the node {shown(id)}."
        problems.add(pointer, ProblemCode.TEMPLATE_LATER_NODE, message)


@dataclass(frozen=True, slots=True)
class _Mention:
    """An expression that names the node ``id``, and where to tell that it may not."""

    id: str
    expression: Expression
    pointer: str
    problems: Problems


def _check_graph(
    draft: Draft, types: Mapping[str, TypeInfo], problems: Problems
) -> tuple[graphcheck.Graph, list[_Mention]]:
    """Check a workflow's graph, or a loop's body. Gives what is named in it and isn't there: nodes around the loop."""
    _check_types(draft, types, problems)
    graph = graphcheck.graph(draft, problems)
    components = graphcheck.check(graph, problems)
    _check_edges(draft, problems)
    outer: list[_Mention] = []
    named: list[tuple[int, int, _Mention]] = []
    for place, node in enumerate(draft.nodes):
        if node is None:
            continue
        own = graph.index.get(node.get("id", ""))
        for mention in _mentions(draft, place, node, types, problems):
            if mention.id not in graph.index:
                outer.append(mention)
            elif own is not None:
                named.append((own, graph.index[mention.id], mention))
    before, bits = graphcheck.ancestors(graph, components, (other for _, other, _ in named))
    for own, other, mention in named:
        if not before[own] & bits[other]:
            id, this = graph.ids[other], graph.ids[own]
            why = "that is the node itself" if own == other else f"no path leads from {id!r} to {this!r}"
            text = mention.expression.text
            message = f"{{{{ {text} }}}} names {id!r}, which can't have run before {this!r}: {why}."
            mention.problems.add(mention.pointer, ProblemCode.TEMPLATE_LATER_NODE, message)
    return graph, outer


def _mentions(
    draft: Draft, place: int, node: dict[str, Any], types: Mapping[str, TypeInfo], problems: Problems
) -> Iterator[_Mention]:
    """What a node's expressions name; with a loop, also what its body names and doesn't have."""
    pointer = f"/nodes/{place}"
    found = [*_template_expressions(node, pointer, problems)]
    if node.get("type") == comfyui.PROMPT and isinstance(node.get("parameters"), dict):
        comfycheck.check(node["parameters"], f"{pointer}/parameters", problems)
    if node.get("type") in controls.PARAMETERS and isinstance(node.get("parameters", {}), dict):
        found += controlcheck.check(node["type"], node.get("parameters", {}), f"{pointer}/parameters", problems)
    for at, expression in found:
        _check_secrets(expression, at, problems)
        yield from (_Mention(id, expression, at, problems) for id in sorted(expression.references.nodes))
    if (body := draft.bodies.get(place)) is None:
        return
    graph, outer = _check_graph(body, types, problems.under(f"{pointer}/parameters/body"))
    yield from outer
    output = node["parameters"].get("output")
    if isinstance(output, dict):
        for at, expression in check_mapping(output, f"{pointer}/parameters/output", problems):
            _check_secrets(expression, at, problems)
            for id in sorted(expression.references.nodes - graph.index.keys()):
                yield _Mention(id, expression, at, problems)


def _template_expressions(node: dict[str, Any], pointer: str, problems: Problems) -> Iterator[tuple[str, Expression]]:
    cache = node.get("cache")
    # What a loop repeats is read as a graph.
    parameters = {key: value for key, value in node.get("parameters", {}).items() if key != "body" or not is_loop(node)}
    texts = [*templates(parameters, f"{pointer}/parameters")]
    if cache is not None and cache.key is not None:
        texts.extend(templates(cache.key, f"{pointer}/cache/key"))
    for at, text in texts:
        found, errors = expressions_in(text)
        for error in errors:
            problems.add(at, ProblemCode.BAD_EXPRESSION, error.message)
        yield from ((at, expression) for expression in found)


def is_loop(node: Mapping[str, Any]) -> bool:
    """Whether the node has a body."""
    return node.get("type") == controls.LOOP


def _tell_unknown(mention: _Mention, graph: graphcheck.Graph) -> None:
    meant = mention.problems.did_you_mean(mention.id, graph.ids) if len(graph.ids) <= 500 else ""
    message = (
        f"{shown(mention.expression.text, 200)} names the node {shown(mention.id)}, which this workflow doesn't "
        f"have.{meant}"
    )
    mention.problems.add(mention.pointer, ProblemCode.TEMPLATE_UNKNOWN_NODE, message)


def _check_secrets(expression: Expression, pointer: str, problems: Problems) -> None:
    if "secrets" in expression.references.names:
        message = "Secrets are not available in this release; give the value by 'parameters' or the input."
        problems.add(pointer, ProblemCode.SECRETS_UNAVAILABLE, message)
