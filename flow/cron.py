"""The syntax of cron expressions: five fields, or six with seconds first, or ``@daily`` and its kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
_DAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))}
_LONGEST_MONTH = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]


_FIELDS = (
    _Field("second", 0, 59, {}),
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)

_PART = re.compile(
    r"(?P<first>\*|\?|[A-Za-z]{3}|\d{1,2})(?:-(?P<last>[A-Za-z]{3}|\d{1,2}))?(?:/(?P<step>\d{1,2}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Cron:
    """Which values of each field match. Sunday is 0. ``any_day_of_month``, ``any_day_of_week``: the field was ``*``.

    Where both day fields are restricted, a day matches if either does (POSIX crontab).
    """

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days_of_month: frozenset[int]
    months: frozenset[int]
    days_of_week: frozenset[int]
    any_day_of_month: bool
    any_day_of_week: bool


def parse(text: str) -> Cron:
    """The schedule of a cron expression. Raises ValueError with a sentence, also for one that never fires."""
    expression = text.strip()
    if expression.startswith("@"):
        if expression.lower() not in MACROS:
            raise ValueError(f"{expression[:40]!r} is not one of {', '.join(MACROS)}")
        expression = MACROS[expression.lower()]
    words = expression.split()
    if len(words) == 5:
        words = ["0", *words]
    if len(words) != 6:
        raise ValueError(
            f"a cron expression has 5 fields (minute, hour, day of month, month, day of week) or 6 with seconds "
            f"first, not {len(words)}"
        )
    seconds, minutes, hours, days, months, weekdays = (
        _values(word, field) for word, field in zip(words, _FIELDS, strict=True)
    )
    any_day, any_weekday = words[3][0] in "*?", words[5][0] in "*?"
    if any_weekday and min(days) > max(_LONGEST_MONTH[month] for month in months):
        raise ValueError(f"it never fires: no month in {words[4]!r} has a day {min(days)}")
    weekdays = frozenset(day % 7 for day in weekdays)
    return Cron(seconds, minutes, hours, days, months, weekdays, any_day, any_weekday)


def _values(word: str, field: _Field) -> frozenset[int]:
    values: set[int] = set()
    for part in word.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(f"the {field.name} {part[:40]!r} can't be read; write *, 5, 1-5, */15 or a list of these")
        first, last, step = found["first"], found["last"], found["step"]
        if first in "*?":
            if last is not None:
                raise ValueError(f"the {field.name} {part!r} can't be read; a range needs a number before the '-'")
            low, high = field.low, field.high
        else:
            low = _number(first, field)
            # ``5/15`` means from 5 on, as every common cron reads it.
            high = _number(last, field) if last is not None else (field.high if step is not None else low)
        if high == 0 < low and field.high == 7:
            high = 7  # FRI-SUN
        if low > high:
            raise ValueError(f"the {field.name} range {part!r} ends before it starts")
        if step is not None and int(step) == 0:
            raise ValueError(f"the step of the {field.name} {part!r} is zero")
        values.update(range(low, high + 1, int(step or 1)))
    return frozenset(values)


def _number(word: str, field: _Field) -> int:
    if not word.isdigit():
        if word.upper() not in field.names:
            raise ValueError(f"{word!r} is not a {field.name}")
        return field.names[word.upper()]
    if not field.low <= int(word) <= field.high:
        raise ValueError(f"the {field.name} {word} is not within {field.low}..{field.high}")
    return int(word)
