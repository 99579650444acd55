"""Durations as people write them: ``PT1H``, ``"90s"``, ``"1h30m"``, or a number of seconds."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

LONGEST = timedelta(days=3_660)

_SHORT = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|s|m|h|d|w))", re.ASCII)
_SHORT_WHOLE = re.compile(r"(?:\d{1,15}(?:\.\d{1,9})?(?:ms|s|m|h|d|w))+", re.ASCII)
_ISO = re.compile(
    r"P(?=.)(?:(?P<w>\d{1,9})W)?(?:(?P<d>\d{1,9}(?:\.\d{1,9})?)D)?"
    r"(?:T(?=.)(?:(?P<h>\d{1,12}(?:\.\d{1,9})?)H)?(?:(?P<m>\d{1,12}(?:\.\d{1,9})?)M)?(?:(?P<s>\d{1,15}(?:\.\d{1,9})?)S)?)?",
    re.ASCII,
)
_MICROSECONDS = {
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}


def parse(value: Any) -> timedelta:
    """The duration: ISO 8601 without years and months, ``500ms 90s 5m 2h 1d 1w`` alone or together, or seconds.

    Raises ValueError with a sentence for anything else, a negative duration, or one over ten years.
    """
    if isinstance(value, timedelta):
        microseconds = Decimal(value // timedelta(microseconds=1))
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
        microseconds = Decimal(repr(value)) * 1_000_000
    elif isinstance(value, str) and (iso_form := _ISO.fullmatch(value.strip())):
        microseconds = sum(
            (Decimal(amount) * _MICROSECONDS[unit] for unit, amount in iso_form.groupdict().items() if amount),
            Decimal(0),
        )
    elif isinstance(value, str) and _SHORT_WHOLE.fullmatch(value.strip()):
        microseconds = sum(
            (Decimal(amount) * _MICROSECONDS[unit] for amount, unit in _SHORT.findall(value)), Decimal(0)
        )
    else:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
        raise ValueError(f"{shown} is not a duration; write 90, '90s', '5m', '1h30m' or 'PT1H'")
    if microseconds < 0:
        raise ValueError("a duration can't be negative")
    if microseconds > LONGEST // timedelta(microseconds=1):
        raise ValueError(f"a duration is at most {LONGEST.days:,} days")
    return timedelta(microseconds=int(microseconds))


def iso(duration: timedelta) -> str:
    """The duration in ISO 8601, exact to the microsecond: ``PT1M30S``. Raises ValueError if it is negative."""
    if duration < timedelta(0):
        raise ValueError("a duration can't be negative")
    hours, rest = divmod(duration.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    fraction = f".{duration.microseconds:06d}".rstrip("0") if duration.microseconds else ""
    days = f"{duration.days}D" if duration.days else ""
    time = "".join(
        (
            f"{hours}H" if hours else "",
            f"{minutes}M" if minutes else "",
            f"{seconds}{fraction}S" if seconds or fraction else "",
        )
    )
    return f"P{days}{'T' if time else ''}{time}" if days or time else "PT0S"
