"""What the parameters of control nodes must mean, and the pieces of it that edges and mappings share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flow import controls, durations, jsonschemas, mapping
from flow.definition import MAX_DEPTH
from flow.expressions import Expression, ExpressionError, compiled, pointer_token
from flow.problems import ProblemCode, Problems, shown

_ANY_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def check_condition(condition: str, pointer: str, problems: Problems) -> Expression | None:
    """Check an expression that is written without braces; gives it."""
    if condition.strip().startswith("{{"):
        message = "A condition is an expression, not a template; write it without the braces."
        problems.add(pointer, ProblemCode.BAD_EXPRESSION, message)
        return None
    try:
        return compiled(condition)
    except ExpressionError as error:
        problems.add(pointer, ProblemCode.BAD_EXPRESSION, error.message)
        return None


def check_mapping(rules: dict[str, Any], pointer: str, problems: Problems) -> list[tuple[str, Expression]]:
    """Check targets and sources; gives each source's pointer and expression."""
    sources: list[tuple[str, Expression]] = []
    for target, source in rules.items():
        at = f"{pointer}/{pointer_token(target)}"
        segments = target.split(".")
        if not all(segments) or len(segments) > MAX_DEPTH:
            message = f"The target {shown(target)} is not a path; write names with dots between, like 'meta.faces'."
            problems.add(at, ProblemCode.BAD_MAPPING, message)
        if isinstance(source, str) and "{{" in source:
            message = "A mapping takes '$.path' or a plain value, not a template."
            problems.add(at, ProblemCode.BAD_MAPPING, message)
            continue
        try:
            expression = mapping.path(source)
        except ExpressionError as error:
            problems.add(at, ProblemCode.BAD_EXPRESSION, error.message)
            continue
        if expression is not None:
            sources.append((at, expression))
    return sources


def check(kind: str, parameters: dict[str, Any], pointer: str, problems: Problems) -> Iterator[tuple[str, Expression]]:
    """Tell what is wrong beyond the parameters' schema; gives the expressions written without braces."""
    match kind:
        case "core/condition":
            yield from _cases(parameters, pointer, problems)
        case "core/loop":
            _one_of(("items", "while"), parameters, pointer, problems)
            items = parameters.get("items")
            if isinstance(items, str) and "{{" not in items:
                yield from _expression(items, f"{pointer}/items", problems)
            if isinstance(condition := parameters.get("while"), str):
                yield from _expression(condition, f"{pointer}/while", problems)
        case "core/delay":
            _one_of(("duration", "until"), parameters, pointer, problems)
            _check_moment(parameters.get("duration"), f"{pointer}/duration", problems, instants=False)
            _check_moment(parameters.get("until"), f"{pointer}/until", problems)
        case "core/wait-signal":
            _check_moment(parameters.get("deadline"), f"{pointer}/deadline", problems)
            _check_schema(parameters.get("schema"), f"{pointer}/schema", problems)
        case "core/approval":
            _check_moment(parameters.get("deadline"), f"{pointer}/deadline", problems)
            _check_schema(parameters.get("form"), f"{pointer}/form", problems)
        case _:
            pass


def _cases(parameters: dict[str, Any], pointer: str, problems: Problems) -> Iterator[tuple[str, Expression]]:
    seen: set[str] = set()
    cases = parameters.get("cases")
    for place, case in enumerate(cases if isinstance(cases, list) else []):
        if not isinstance(case, dict):
            continue
        at = f"{pointer}/cases/{place}"
        name = case.get("name")
        if isinstance(name, str) and name in seen:
            problems.add(f"{at}/name", ProblemCode.DUPLICATE_ID, f"The case {shown(name)} is there already.")
        elif isinstance(name, str):
            seen.add(name)
        if isinstance(case.get("when"), str):
            yield from _expression(case["when"], f"{at}/when", problems)


def branches(node: dict[str, Any]) -> list[str]:
    """The branches that a condition has; none for another node."""
    if node.get("type") != "core/condition":
        return []
    parameters = node.get("parameters", {})
    cases = parameters.get("cases")
    names = [case.get("name") for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
    return [name for name in (*names, parameters.get("default")) if isinstance(name, str)]


def _expression(text: str, pointer: str, problems: Problems) -> Iterator[tuple[str, Expression]]:
    expression = check_condition(text, pointer, problems)
    if expression is not None:
        yield pointer, expression


def _one_of(names: tuple[str, str], parameters: dict[str, Any], pointer: str, problems: Problems) -> None:
    given = [name for name in names if parameters.get(name) is not None]
    if len(given) != 1:
        message = f"It takes either {names[0]!r} or {names[1]!r}; give one of them."
        problems.add(pointer, ProblemCode.BAD_PARAMETERS, message)


def _check_moment(given: Any, pointer: str, problems: Problems, *, instants: bool = True) -> None:
    if not isinstance(given, str | int | float) or (isinstance(given, str) and "{{" in given):
        return
    try:
        if instants:
            controls.moment(given, _ANY_DAY)
        else:
            durations.parse(given)
    except ValueError as error:
        problems.add(pointer, ProblemCode.BAD_DURATION, f"{str(error)[0].upper()}{str(error)[1:]}.")


def _check_schema(schema: Any, pointer: str, problems: Problems) -> None:
    if isinstance(schema, dict) and (fault := jsonschemas.schema_fault(schema)) is not None:
        problems.add(f"{pointer}{fault[0]}", ProblemCode.BAD_PARAMETERS, f"Not a JSON Schema: {fault[1]}")
