"""Durations, cron expressions and mappings."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow import cron, durations, mapping
from flow.expressions import ExpressionError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT1H", 3600),
        ("PT0.5S", 0.5),
        ("P1DT2H3M4S", 93784),
        ("P1W", 604800),
        ("90s", 90),
        ("5m", 300),
        ("3600s", 3600),
        ("2h", 7200),
        ("1d", 86400),
        ("500ms", 0.5),
        ("1h30m", 5400),
        (90, 90),
        (0.1, 0.1),
        (0, 0),
    ],
)
def test_durations_as_people_write_them(text: Any, seconds: float) -> None:
    """ISO 8601, short forms and numbers of seconds."""
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "P", "PT", "P1Y", "P1M", "1", "-5s", -1, True, None, "1e5s", "٣s", float("nan"), float("inf"), "9999999d"],
)
def test_what_is_no_duration_is_refused(text: Any) -> None:
    """Years and months have no fixed length; bare digits in a text have no unit."""
    with pytest.raises(ValueError, match="duration"):
        durations.parse(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=durations.LONGEST))
def test_iso_reads_back_to_the_same(duration: timedelta) -> None:
    """``iso`` is exact to the microsecond."""
    assert durations.parse(durations.iso(duration)) == duration


def test_a_schedule_matches_what_its_fields_say() -> None:
    """Names, ranges, steps, lists, Sunday twice, and seconds in front."""
    schedule = cron.parse("*/20 5,10-12 8-18/5 1 JAN,dec FRI-SUN")
    assert schedule.seconds == {0, 20, 40}
    assert schedule.minutes == {5, 10, 11, 12}
    assert schedule.hours == {8, 13, 18}
    assert schedule.months == {1, 12}
    assert schedule.days_of_week == {5, 6, 0}
    assert not schedule.any_day_of_month
    assert cron.parse("0 0 * * 7") == cron.parse("@weekly")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "5 fields"),
        ("* * *", "5 fields"),
        ("60 * * * *", "not within 0..59"),
        ("* 24 * * *", "not within 0..23"),
        ("* * 0 * *", "not within 1..31"),
        ("* * * FOO *", "not a month"),
        ("5-1 * * * *", "ends before it starts"),
        ("*/0 * * * *", "zero"),
        ("*-5 * * * *", "range needs a number"),
        ("a b c d e", "can't be read"),
        ("0 0 31 4,6 *", "never fires"),
        ("@often", "@daily"),
    ],
)
def test_a_bad_cron_expression_says_why(text: str, reason: str) -> None:
    """The sentence names the field and what is wrong with it."""
    with pytest.raises(ValueError, match=reason):
        cron.parse(text)


SOURCE = {"path": "/a.jpg", "faces": [{"box": [1, 2]}], "meta": {"w": 3}}


def test_a_mapping_puts_values_at_their_targets() -> None:
    """Paths, the whole, nested targets, literals, and an escaped dollar."""
    rules = {
        "image": "$.path",
        "meta.faces": "$.faces[0].box",
        "meta.all": "$",
        "first": "$.faces | [0]",
        "fixed": {"a": 1},
        "text": "plain",
        "price": "$5",
        "dollar": "$$.path",
        "missing": "$.nope",
    }
    assert mapping.apply(rules, SOURCE) == {
        "image": "/a.jpg",
        "meta": {"faces": [1, 2], "all": SOURCE},
        "first": {"box": [1, 2]},
        "fixed": {"a": 1},
        "text": "plain",
        "price": "$5",
        "dollar": "$.path",
        "missing": None,
    }


def test_a_mapping_never_changes_its_source() -> None:
    """A target below an object that came from the source changes a copy."""
    before = copy.deepcopy(SOURCE)
    assert mapping.apply({"meta": "$.meta", "meta.h": 4}, SOURCE) == {"meta": {"w": 3, "h": 4}}
    assert before == SOURCE


def test_a_list_is_mapped_by_index() -> None:
    """``$[0]`` reads a source that is a list."""
    assert mapping.apply({"a": "$[1].x"}, [0, {"x": 5}]) == {"a": 5}


def test_outputs_merge_in_edge_order() -> None:
    """Later keys win; what is no object goes under ``value``; null and nothing give nothing."""
    assert mapping.merged([({}, {"a": 1, "b": 1}), ({}, {"b": 2}), ({"c": "$.b"}, {"b": 3})]) == {
        "a": 1,
        "b": 2,
        "c": 3,
    }
    assert mapping.merged([({}, [1]), ({}, None)]) == {"value": [1]}
    assert mapping.merged([]) == {}


def test_a_bad_path_is_an_expression_error() -> None:
    """What validation would have told is told again where it slipped through."""
    with pytest.raises(ExpressionError):
        mapping.apply({"a": "$.x-y"}, {})
