"""The scalars of the schema, strict in what they take: everything that no database would keep is refused here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NewType

import strawberry
from strawberry.types.scalar import ScalarDefinition

from flow import durations

#: Any JSON value.
JSON = NewType("JSON", object)
#: A whole number up to 2^53, which a double holds exactly.
BigInt = NewType("BigInt", int)
#: ``major.minor.patch``.
SemVer = NewType("SemVer", str)

MAX_EXACT = 2**53
MAX_NESTING = 100
_SEMVER = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")


def instant(value: object) -> datetime:
    """The instant in an ISO 8601 text. Raises ValueError unless it names its offset."""
    if not isinstance(value, str):
        raise ValueError("A DateTime is a text such as 2026-11-21T08:00:00Z.")
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{value[:60]!r} is no DateTime: write it as 2026-11-21T08:00:00Z.") from None
    if read.tzinfo is None:
        raise ValueError(f"{value!r} does not say its time zone: end it with Z or an offset such as +08:00.")
    try:
        return read.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{value!r} is outside the years that can be kept.") from None


def instant_text(value: datetime) -> str:
    """The instant as ISO 8601 in UTC, to the microsecond."""
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def duration(value: object) -> timedelta:
    """The duration in ``PT1H``, ``90s`` or ``5m``. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("A Duration is a text such as PT1H30M, 90s or 5m, in quotation marks.")
    return durations.parse(value)


def json_value(value: Any) -> Any:
    """The value, if every database can keep it.

    Raises ValueError for NaN and infinities, numbers beyond 64 bits, NUL, lone surrogates, and nesting deeper than 100.
    """
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        match item:
            case str():
                _check_text(item)
            case float():
                if not math.isfinite(item):
                    raise ValueError("JSON has no NaN and no infinity.")
            case bool() | None:
                pass
            case int():
                if not -(2**63) <= item < 2**63:
                    raise ValueError("A number in JSON must fit in 64 bits; send a larger one as text.")
            case dict() | list():
                if depth >= MAX_NESTING:
                    raise ValueError(f"JSON can't be nested deeper than {MAX_NESTING} levels here.")
                if isinstance(item, dict):
                    for key in item:
                        _check_text(key)
                    waiting.extend((each, depth + 1) for each in item.values())
                else:
                    waiting.extend((each, depth + 1) for each in item)
            case _:
                raise ValueError(f"{type(item).__name__} is no JSON value.")
    return value


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ValueError("A text can't hold the character NUL (\\u0000).")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("A text holds half of a character (a lone surrogate): it is not valid Unicode.") from None


def big_int(value: object) -> int:
    """A whole number up to 2^53. Raises ValueError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_EXACT:
        raise ValueError("A BigInt is a whole number between -2^53 and 2^53.")
    return value


def semver(value: object) -> str:
    """``major.minor.patch``. Raises ValueError."""
    if not isinstance(value, str) or not _SEMVER.fullmatch(value):
        raise ValueError("A SemVer is three numbers such as 1.0.10.")
    return value


def parts(version: str) -> tuple[int, int, int]:
    """A SemVer's three numbers."""
    major, minor, patch = version.split(".")
    return int(major), int(minor), int(patch)


SCALARS: Mapping[object, ScalarDefinition] = {
    datetime: strawberry.scalar(
        name="DateTime",
        description="An instant as ISO 8601 with its offset, such as 2026-11-21T08:00:00Z. Answers are in UTC.",
        serialize=instant_text,
        parse_value=instant,
        specified_by_url="https://scalars.graphql.org/andimarek/date-time",
    ),
    timedelta: strawberry.scalar(
        name="Duration",
        description="A length of time as ISO 8601, such as PT1H30M. 90s, 5m and 1h are understood too.",
        serialize=durations.iso,
        parse_value=duration,
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value. NaN, infinities, NUL characters and broken Unicode are refused.",
        serialize=lambda value: value,
        parse_value=json_value,
        specified_by_url="https://www.rfc-editor.org/rfc/rfc8259",
    ),
    BigInt: strawberry.scalar(
        name="BigInt",
        description="A whole number up to 2^53, which every client can hold exactly.",
        serialize=int,
        parse_value=big_int,
    ),
    SemVer: strawberry.scalar(
        name="SemVer",
        description="A semantic version, major.minor.patch, such as 1.0.10. Versions order as numbers: 1.0.10 > 1.0.9.",
        serialize=str,
        parse_value=semver,
        specified_by_url="https://semver.org",
    ),
}
