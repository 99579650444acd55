"""The scalars take what every database can keep, and say clearly what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from graph import scalars


def nested(levels: int) -> Any:
    """A list in a list in a list …"""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [float("inf")],
        {"a": "nul \0"},
        {"key \0": 1},
        ["\ud800"],
        2**63,
        nested(101),
        {1, 2},
    ],
    ids=["nan", "infinity", "nul", "nul in a key", "lone surrogate", "too large", "too deep", "no JSON"],
)
def test_json_refuses_what_can_not_be_kept(value: Any) -> None:
    """NaN, NUL, broken Unicode, giant numbers and endless nesting never get further than this."""
    with pytest.raises(ValueError, match=r"\w"):
        scalars.json_value(value)


@pytest.mark.parametrize("value", [None, True, 0, -(2**63), 1.5, "文", [1, {"a": [None]}]])
def test_json_takes_json(value: Any) -> None:
    """Everything else is handed on as it is."""
    assert scalars.json_value(value) == value


def test_an_instant_has_an_offset() -> None:
    """A DateTime names its offset and is answered in UTC; a naive one is refused."""
    assert scalars.instant("2026-11-21T08:00:00+08:00") == datetime(2026, 11, 21, tzinfo=UTC)
    there = datetime(2026, 11, 21, 8, 0, 0, 5, tzinfo=timezone(timedelta(hours=8)))
    assert scalars.instant_text(there) == "2026-11-21T00:00:00.000005Z"
    for wrong in ("2026-11-21T08:00:00", "yesterday", 5, "9999-12-31T23:59:59-14:00"):
        with pytest.raises(ValueError, match=r"\w"):
            scalars.instant(wrong)


@pytest.mark.parametrize("text", ["PT1M30S", "90s", "1m30s"])
def test_durations_are_read_in_every_spelling(text: str) -> None:
    """ISO 8601 and the short form mean the same."""
    assert scalars.duration(text) == timedelta(seconds=90)


@pytest.mark.parametrize("wrong", [2**53 + 1, 1.5, True, "7", None])
def test_a_big_int_is_exact(wrong: Any) -> None:
    """Only whole numbers that a double can hold; a float that is whole counts."""
    assert scalars.big_int(2.0**53) == 2**53
    with pytest.raises(ValueError, match="BigInt"):
        scalars.big_int(wrong)


@pytest.mark.parametrize("wrong", ["1.0", "v1.0.0", "1.0.01", "1.0.0-rc.1", 1])
def test_a_semver_is_three_numbers(wrong: Any) -> None:
    """What is no major.minor.patch is refused."""
    assert scalars.parts(scalars.semver("1.0.10")) == (1, 0, 10)
    with pytest.raises(ValueError, match="SemVer"):
        scalars.semver(wrong)
