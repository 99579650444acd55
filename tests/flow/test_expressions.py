"""Expressions and templates: what they see, what they give, and how they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.errors import Category
from flow.expressions import (
    ExpressionError,
    Nodes,
    compiled,
    expressions_in,
    node_view,
    render,
    scope,
    search,
    templates,
    truthy,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

VIEWS = {
    "preprocess-01": node_view({"path": "a.jpg", "status": "mine"}, "COMPLETED"),
    "plain": node_view([1, 2], "COMPLETED"),
    "left": node_view(None, "SKIPPED", skipped=True),
}
SCOPE = scope(
    input={"filename": "x.jpg", "n": 3, "trigger": "hidden"},
    trigger={"date": "2026-11-21"},
    nodes=Nodes(VIEWS.keys(), VIEWS.get),
    parameters={"bucket": "photos"},
    instance={"id": "inst-1"},
    project={"name": "default"},
)


def refused(expression: str) -> ExpressionError:
    with pytest.raises(ExpressionError) as caught:
        compiled(expression)
    return caught.value


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ filename }}", "x.jpg"),
        ("{{n}}", 3),
        ("{{ input }}", {"filename": "x.jpg", "n": 3, "trigger": "hidden"}),
        ("{{ trigger.date }}", "2026-11-21"),
        ('{{ nodes."preprocess-01".output.path }}', "a.jpg"),
        ('{{ nodes."preprocess-01".path }}', "a.jpg"),
        ('{{ nodes."preprocess-01".status }}', "COMPLETED"),
        ("{{ nodes.plain.output[1] }}", 2),
        ("{{ nodes.left.skipped }}", True),
        ("{{ nodes.left.output }}", None),
        ("{{ keys(nodes) }}", ["preprocess-01", "plain", "left"]),
        ("{{ nodes.*.status | length(@) }}", 3),
        ("{{ length(nodes) }}", 3),
        ("{{ parameters.bucket }}-{{ n }}", "photos-3"),
        ("{{ {a: {b: n}} }}", {"a": {"b": 3}}),
        ("{{ {a: {b: n}}}}", {"a": {"b": 3}}),
        ("<{{ {a: [n]} }}>", '<{"a":[3]}>'),
        ("{{ '}}' }}", "}}"),
        ("{{ '{{' }}x", "{{x"),
        ("{{ title || 'untitled' }}!", "untitled!"),
        ("{{ nope }}", None),
        ("{{ n == `3` }} and {{ `null` || `1.5` }}", "true and 1.5"),
        ("no template", "no template"),
        ("{ single }", "{ single }"),
    ],
)
def test_a_template_is_resolved_on_the_scope(template: str, value: Any) -> None:
    """One template keeps the value's type; within a text it is written as text, an object as JSON."""
    result = render(template, SCOPE)
    assert result == value
    assert type(result) is type(value)


def test_templates_are_resolved_anywhere_in_a_value() -> None:
    """Lists and objects are walked; keys and what is no template stay."""
    value = {"{{ n }}": ["{{ n }}", {"deep": "{{ filename }}"}], "k": 1, "none": None}
    assert render(value, SCOPE) == {"{{ n }}": [3, {"deep": "x.jpg"}], "k": 1, "none": None}


def test_a_rendered_value_is_not_rendered_again() -> None:
    """Data that looks like a template stays data."""
    assert render("{{ text }}", scope(input={"text": "{{ n }}", "n": 1})) == "{{ n }}"
    assert render("<{{ text }}>", scope(input={"text": "{{ n }}", "n": 1})) == "<{{ n }}>"


@given(JSON.filter(lambda value: not any(templates(value))))
def test_a_value_without_template_is_returned_as_it_is(value: Any) -> None:
    """Nothing is copied where nothing changes."""
    assert render(value, SCOPE) is value


@given(JSON)
def test_one_template_gives_the_very_value(value: Any) -> None:
    """No value of the scope is changed by passing through a template."""
    assert render({"x": ["{{ input }}"]}, scope(input=value)) == {"x": [value]}


def test_null_inside_a_text_is_an_error_that_names_the_scope() -> None:
    """EXPRESSION_UNRESOLVED names the expression, the scope's keys and the remedy."""
    with pytest.raises(ExpressionError) as caught:
        render("a {{ missing.thing }} b", SCOPE)
    error = caught.value
    assert error.code == "EXPRESSION_UNRESOLVED"
    assert "missing.thing" in error.message
    assert "filename, input, instance, n, nodes" in error.message
    assert "|| ''" in error.message
    failure = error.failure("node-a")
    assert (failure.code, failure.category, failure.node_id) == (error.code, Category.EXPRESSION, "node-a")


def test_the_fixed_names_cover_the_inputs_keys() -> None:
    """An input key called ``trigger`` is found as ``input.trigger`` only."""
    assert search("trigger.date", SCOPE) == "2026-11-21"
    assert search("input.trigger", SCOPE) == "hidden"


def test_item_and_index_exist_in_a_loop_only() -> None:
    """``item`` of the scope may be null and is still there."""
    assert "item" not in SCOPE
    assert {"item", "index"} <= scope(item=None, index=0).keys()
    assert search("index", scope(item="x", index=2)) == 2


def test_a_scope_does_not_look_at_nodes_that_are_not_asked_for() -> None:
    """One expression on one of ten thousand nodes looks one node up."""
    asked: list[str] = []

    def lookup(id: str) -> dict[str, Any]:
        asked.append(id)
        return node_view({"n": 1}, "COMPLETED")

    nodes = Nodes([f"n{number}" for number in range(10_000)], lookup)
    assert render("{{ nodes.n7.n }}", scope(nodes=nodes)) == 1
    assert asked == ["n7"]


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        (None, False),
        (False, False),
        ("", False),
        ([], False),
        ({}, False),
        (0, True),
        (0.0, True),
        ("0", True),
        ([0], True),
    ],
)
def test_truth_is_that_of_jmespath(value: Any, truth: bool) -> None:
    """Empty and null are false; zero is true."""
    assert truthy(value) is truth


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("nodes.preprocess-01.output", ["character 17", 'write nodes."preprocess-01"']),
        ("nodes.处理.output", ["character 7", 'write nodes."处理"']),
        ("a..b", ["unexpected '.'", "character 3"]),
        ("a.", ["ends too early"]),
        ("foo(", ["ends too early"]),
        ("", ["empty"]),
        ("score >= 0.4", ["`0.4`", "backticks"]),
        ("`abc`", ["not JSON", "'abc'"]),
        ("`NaN`", ["not JSON"]),
        ("`1e999`", ["not JSON"]),
        ("'open", ["Unclosed"]),
        ("lenght(a)", ["lenght()", "length"]),
        ("length()", ["0 arguments", "takes 1"]),
        ("x" * 2_001, ["2,001 characters", "2,000"]),
        ("(" * 900 + "a", ["nested too deeply"]),
        ("!" * 900 + "a", ["nested too deeply"]),
        ("||".join(["a"] * 60), ["nested deeper than 50"]),
        ("|".join(["[@,@]"] * 11), ["1,000 times larger"]),
    ],
)
def test_an_unreadable_expression_says_where_and_what_to_write(expression: str, words: list[str]) -> None:
    """The message names the place in words, and the remedy where there is one."""
    error = refused(expression)
    assert error.code == "EXPRESSION_INVALID"
    for word in words:
        assert word in error.message


def test_an_open_template_is_refused() -> None:
    """``{{`` without its end is an error, not text."""
    with pytest.raises(ExpressionError, match="not closed"):
        render("a {{ b", {})


def test_one_bad_expression_does_not_hide_the_others() -> None:
    """All of a template's expressions are found, and all of its errors."""
    found, errors = expressions_in("{{ a }} {{ b-1 }} {{ nodes.c }} {{ d.. }}")
    assert [expression.text for expression in found] == ["a", "nodes.c"]
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'a' < `1`", None),
        ("contains('abc', `1`)", False),
        ("to_number('nan')", None),
        ("to_number('1e999')", None),
        ("to_number('1_0')", None),
        ("to_number('-1.5e2')", -150.0),
        ("to_string(@)", '{"a":"é"}'),
        ("[99999999999999999999]", None),
    ],
)
def test_python_does_not_show_through(expression: str, value: Any) -> None:
    """Where Python would raise or give what isn't JSON, JMESPath gives null, false or a number."""
    assert search(expression, {"a": "é"}) == value


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("sort([`1`, 'a'])", "EXPRESSION_FAILED"),
        ("abs('x')", "EXPRESSION_FAILED"),
        ("@.x[::0]", "EXPRESSION_FAILED"),
        ("sum([`1e308`, `1e308`])", "EXPRESSION_TOO_LARGE"),
        ("x | [@,@][] | [@,@][] | [@,@][] | [@,@][] | [@,@][]", "EXPRESSION_TOO_LARGE"),
        ("join('', [s, s, s, s])", "EXPRESSION_TOO_LARGE"),
        ("[s, s, s, s]", "EXPRESSION_TOO_LARGE"),
        ("to_string([s, s, s, s])", "EXPRESSION_TOO_LARGE"),
    ],
)
def test_what_can_not_be_evaluated_is_a_named_error(expression: str, code: str) -> None:
    """Wrong types and results beyond the bounds are ExpressionErrors, never Python's own."""
    data = {"x": list(range(100_000)), "s": "s" * 5_000_000}
    with pytest.raises(ExpressionError) as caught:
        search(expression, data)
    assert caught.value.code == code
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize(
    ("expression", "names", "nodes"),
    [
        ("a.b", {"a"}, set()),
        ('nodes."x-1".output || nodes.y', {"nodes"}, {"x-1", "y"}),
        ("nodes.{a: b, c: d}", {"nodes"}, {"b", "d"}),
        ("nodes | x.output", {"nodes"}, {"x"}),
        ("(nodes).x[0]", {"nodes"}, {"x"}),
        ("items[?nodes.x]", {"items"}, set()),
        ("map(&nodes.x, items)", {"items"}, set()),
        ("length(nodes.q.output)", {"nodes"}, {"q"}),
        ("nodes.*.output", {"nodes"}, set()),
        ("[secrets.a, {b: parameters.c}]", {"secrets", "parameters"}, set()),
        ("a[1:2].nodes.x", {"a"}, set()),
        ("@.nodes.x", {"nodes"}, {"x"}),
    ],
)
def test_references_are_read_from_the_tree(expression: str, names: set[str], nodes: set[str]) -> None:
    """Only names at the scope's top count, and only ids directly under ``nodes``."""
    references = compiled(expression).references
    assert references.names == names
    assert references.nodes == nodes
