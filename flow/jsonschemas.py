"""JSON Schema without surprises: no network, no endless reference, and templates where values will be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from flow import patterns
from flow.expressions import Expression, ExpressionError, pointer_token, template
from flow.problems import did_you_mean, listed, shown

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_UNKNOWN: Any = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One place where a value isn't as a schema wants it; ``pointer`` is within the value."""

    pointer: str
    message: str


def validator(schema: dict[str, Any]) -> Any:
    """A validator for the schema (2020-12 unless it names another draft) that never fetches anything."""
    return patterns.bounded(validator_for(schema, default=Draft202012Validator))(schema, registry=REGISTRY)


def schema_fault(schema: dict[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a schema: ``(pointer within it, sentence)``, or None.

    Beyond the metaschema: patterns that don't compile, references that don't resolve or never end.
    """
    draft = schema.get("$schema", DRAFT)
    kind: Any = validator_for({"$schema": draft}, default=_UNKNOWN) if isinstance(draft, str) else None
    if kind is None:
        return "/$schema", f"{shown(draft)} is not a known draft; leave it out, or write {DRAFT!r}."
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        if error.absolute_path and error.absolute_path[-1] == "type" and isinstance(error.instance, str):
            kinds = ("object", "array", "string", "number", "integer", "boolean", "null")
            return _pointer(error.absolute_path), (
                f"The type {shown(error.instance)} is unknown; there are {listed(kinds)}."
                f"{did_you_mean(error.instance, kinds)}"
            )
        return _pointer(error.absolute_path), shown_message(error.message)
    except Exception as error:  # a metaschema that can't be found, or a schema of the wrong kind
        return "", shown_message(str(error))
    for pointer, key, value in _keywords(schema):
        for pattern in _patterns(key, value):
            try:
                patterns.compiled(pattern)
            except ValueError as error:
                return pointer, f"The pattern {shown(pattern)} can't be used: {error}."
        if key == "unevaluatedProperties" and any(name == "patternProperties" for _, name, _ in _keywords(schema)):
            sentence = "'unevaluatedProperties' can't stand beside 'patternProperties'; use 'additionalProperties'."
            return pointer, sentence
        if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
            return pointer, f"The reference {shown(value)} is not within this schema; put it under '$defs'."
    try:
        samples: tuple[Any, ...] = ({}, [], "", 0, None)
        for sample in samples:
            list(validator(schema).iter_errors(sample))
        for reference in {value for _, key, value in _keywords(schema) if key == "$ref" and isinstance(value, str)}:
            list(validator(schema).descend(None, {"$ref": reference}))
    except RecursionError:
        return "", "A reference leads back to itself without end."
    except Exception as error:  # Unresolvable and its kind, wrapped differently by release
        lost: Any = getattr(error, "ref", None)
        return "", f"The reference {shown(lost)} leads nowhere in it." if lost else shown_message(str(error))
    return None


def _patterns(key: str, value: Any) -> list[str]:
    if key == "pattern" and isinstance(value, str):
        return [value]
    return list(value) if key == "patternProperties" and isinstance(value, dict) else []


def _keywords(schema: Any) -> Iterator[tuple[str, str, Any]]:
    stack: list[tuple[str, Any]] = [("", schema)]
    while stack:
        pointer, current = stack.pop()
        if isinstance(current, dict):
            for key, value in current.items():
                at = f"{pointer}/{pointer_token(key)}"
                yield at, key, value
                if key not in ("const", "enum", "default", "examples"):
                    stack.append((at, value))
        elif isinstance(current, list):
            stack.extend((f"{pointer}/{number}", value) for number, value in enumerate(current))


def mismatches(checked: Any, value: Any, *, templates: bool = False) -> list[Mismatch]:
    """Every mismatch of ``value`` with the validator's schema.

    With ``templates`` a string that is one template stands for a value of any type, and a text with templates
    in it for any text: what will be there is only known when the node runs.
    """
    found: list[Mismatch] = []
    try:
        for error in checked.iter_errors(value):
            if not (templates and _forgiven(error)):
                found.extend(_described(error))
    except RecursionError:
        found.append(Mismatch("", "The value is nested too deeply for its schema."))
    return found


def _forgiven(error: ValidationError) -> bool:
    match _kind(error.instance):
        case "value":
            return True
        case "text":
            return error.validator != "type"
        case _:
            pass
    if error.context:
        # One alternative that only a template keeps from fitting is enough.
        branches: dict[Any, list[ValidationError]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0] if inner.schema_path else None, []).append(inner)
        return any(all(map(_forgiven, branch)) for branch in branches.values())
    if error.validator in ("not", "contains", "uniqueItems", "oneOf", "const", "enum"):
        return _holds_template(error.instance)
    return False


def _kind(instance: Any) -> str:
    """``value``: one template; ``text``: a text with templates; ``plain``: anything else."""
    if not isinstance(instance, str) or "{{" not in instance:
        return "plain"
    try:
        parts = template(instance)
    except ExpressionError:
        # Reported as an expression; not a second time as a value.
        return "value"
    return "value" if len(parts) == 1 and isinstance(parts[0], Expression) else "text"


def _holds_template(value: Any) -> bool:
    stack = [value]
    while stack:
        current = stack.pop()
        if _kind(current) != "plain":
            return True
        if isinstance(current, dict):
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)
    return False


def _described(error: ValidationError) -> Iterator[Mismatch]:
    pointer = _pointer(error.absolute_path)
    if error.validator == "additionalProperties" and error.validator_value is False:
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []
        others = list(error.schema.get("patternProperties", {})) if isinstance(error.schema, dict) else []
        keys: Any = error.instance
        for key in keys:
            if key not in known and not any(patterns.found(pattern, key) for pattern in others):
                meant = did_you_mean(key, known)
                yield Mismatch(f"{pointer}/{pointer_token(key)}", f"The key {shown(key)} is not known here.{meant}")
        return
    yield Mismatch(pointer, shown_message(error.message))


def _pointer(path: Any) -> str:
    return "".join(f"/{pointer_token(token)}" for token in path)


def shown_message(message: str, limit: int = 300) -> str:
    """A library's message as one sentence of bounded length."""
    line = " ".join(message.split())
    line = line if len(line) <= limit else f"{line[:limit]}…"
    return line if line.endswith((".", "…", "!")) else f"{line}."
