"""Regular expressions from outside, matched in time linear in the text (RE2).

Python's own ``re`` can take for ever on thirty characters and keeps the interpreter's lock meanwhile, so that one
pattern in a schema would stop everybody's runs. RE2 knows no look-around and no back-references; a schema that
needs them is refused with these words.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import re2
from jsonschema import ValidationError
from jsonschema.validators import extend

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


@lru_cache(maxsize=1_024)
def compiled(pattern: str) -> Any:
    """The pattern, ready to ``search``. Raises ValueError with the reason if RE2 can't read it."""
    try:
        return re2.compile(pattern, options=_OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{reason} (look-around and back-references are not supported)") from None


def found(pattern: str, text: str) -> bool:
    """Whether the pattern matches anywhere in the text."""
    return compiled(pattern).search(text) is not None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not found(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for key, value in instance.items():
                if found(pattern, key):
                    yield from validator.descend(value, inner, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = schema.get("patternProperties", {})
    known = schema.get("properties", {})
    extras = [key for key in instance if key not in known and not any(found(pattern, key) for pattern in patterns)]
    if validator.is_type(allowed, "object"):
        for key in extras:
            yield from validator.descend(instance[key], allowed, path=key)
    elif not allowed and extras:
        yield ValidationError(f"Additional properties are not allowed ({', '.join(map(repr, extras))})")


@lru_cache(maxsize=16)
def bounded(validator: type[Any]) -> type[Any]:
    """The validator class, with every pattern matched by RE2."""
    keywords = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return extend(validator, keywords)  # type: ignore[no-untyped-call, no-any-return]
