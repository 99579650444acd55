"""JSON and YAML texts: the same values, no surprises, and every refusal with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.documents import to_yaml
from flow.errors import Invalid, Problem
from flow.parsing import parse

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.sampled_from(
        ["on", "yes", "0o17", "1e5", "0x1f", ".5", "~", "<<", "=", "2026-11-21", "1:30", "- a", "a: b", "#"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.sampled_from(["on", "1", "<<"]), inner, max_size=4)
    ),
    max_leaves=10,
)


def problems(text: str | bytes) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        parse(text)
    return caught.value.problems


@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_what_is_written_as_yaml_reads_back(value: dict[str, Any]) -> None:
    """Every JSON object survives YAML, whatever its texts look like."""
    assert parse(to_yaml(value), "yaml") == value


@given(JSON)
def test_json_reads_as_json(value: Any) -> None:
    """Every JSON value is read as the standard library reads it."""
    assert parse(json.dumps(value), "json") == value


def test_yaml_has_no_surprises() -> None:
    """``on`` is a key, ``no`` and dates are text, numbers are those of YAML 1.2."""
    text = "on: no\nday: 2026-11-21\noctal: 0o17\nold: 017\nfloat: .5\n1: int\ntrue: bool\nempty:\nbase60: 1:30\n"
    assert parse(text) == {
        "on": "no",
        "day": "2026-11-21",
        "octal": 15,
        "old": 17,
        "float": 0.5,
        "1": "int",
        "true": "bool",
        "empty": None,
        "base60": "1:30",
    }


def test_anchors_and_merge_keys_are_written_out() -> None:
    """An alias is the anchor's value; a merge gives keys that aren't there."""
    assert parse("a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\n") == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1, "q": 3},
    }


def test_braces_may_be_yaml_too() -> None:
    """A text in braces that isn't JSON is read as YAML."""
    assert parse("{a: b, c: [d]}") == {"a": "b", "c": ["d"]}


@pytest.mark.parametrize(
    ("text", "pointer", "code"),
    [
        ('{"a": {"b": 1, "b": 2}}', "/a/b", "DUPLICATE_KEY"),
        ("a:\n  - b: 1\n    b: 2", "/a/0/b", "DUPLICATE_KEY"),
        ('{"a": [NaN]}', "/a/0", "NOT_JSON"),
        ('{"a": -Infinity}', "/a", "NOT_JSON"),
        ('{"a": 1e999}', "/a", "NOT_JSON"),
        ("a: .nan", "/a", "NOT_JSON"),
        ("a: -.inf", "/a", "NOT_JSON"),
        ('{"a": "\\u0000"}', "/a", "NOT_JSON"),
        ('{"a": "\\ud800"}', "/a", "NOT_JSON"),
        ('{"\\udfff": 1}', "/\udfff", "NOT_JSON"),
        ('{"a": 9223372036854775808}', "/a", "NOT_JSON"),
        ('{"a": ' + "9" * 5_000 + "}", "", "NOT_JSON"),
        ("a: !!python/object/apply:os.system [ls]", "/a", "NOT_JSON"),
        ("? [a]\n: b", "", "NOT_JSON"),
        ("a: &x [*x]", "/a/0", "BAD_SYNTAX"),
        ("a: b: c", "", "BAD_SYNTAX"),
        ("[1, 2", "", "BAD_SYNTAX"),
        ("--- a\n--- b", "", "BAD_SYNTAX"),
        (b"\xff\xfe", "", "BAD_SYNTAX"),
        ("{" * 100_000, "", "NOT_JSON"),
        ('{"a":' * 100_000, None, "NESTED_TOO_DEEP"),
        ("a: " + "[" * 50_000, None, "NESTED_TOO_DEEP"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", None, "NESTED_TOO_DEEP"),
        ("x" * (16 * 1024 * 1024 + 1), "", "TOO_LARGE"),
    ],
)
def test_a_bad_text_is_refused_with_its_place(text: str | bytes, pointer: str | None, code: str) -> None:
    """Each kind of trouble has its code, and a pointer where there is a place to point at."""
    found = problems(text)[0]
    assert found.code == code
    if pointer is not None:
        assert found.pointer == pointer


def test_an_alias_bomb_is_refused() -> None:
    """Nine levels of ten aliases would be a billion values; nothing of the sort is built."""
    lines = ["a0: &a0 [" + ",".join("x" * 10) + "]"]
    lines += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    assert problems("\n".join(lines))[0].code == "TOO_LARGE"


def test_all_bad_values_are_told_at_once() -> None:
    """One answer names every place."""
    found = problems('{"a": NaN, "b": "\\u0000", "c": [1e999], "c": [1e999]}')
    assert [(problem.pointer, problem.code) for problem in found] == [
        ("/a", "NOT_JSON"),
        ("/b", "NOT_JSON"),
        ("/c", "DUPLICATE_KEY"),
        ("/c/0", "NOT_JSON"),
    ]
