"""Versions: their order, what a change means, and what changed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from flow.definition import Definition
from flow.documents import read
from flow.versions import Bump, ChangeKind, SemVer, bump, diff, input_problems, kind_of_change, same_json
from tests.flow.types import TYPES, document, node

ORDERED = (
    "0.9.9 1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 "
    "1.0.0 1.0.9 1.0.10 1.2.0 1.10.0 2.0.0"
)


def definition(given: dict[str, Any]) -> Definition:
    found, problems = read(given, TYPES)
    assert found is not None, problems
    return found


def test_versions_order_as_semver_says() -> None:
    """Never as strings: 1.0.10 is after 1.0.9; a prerelease before its release (semver.org, section 11)."""
    versions = [SemVer.parse(text) for text in ORDERED.split()]
    for earlier, later in pairwise(versions):
        assert earlier < later
        assert later > earlier
        assert earlier <= later
        assert later >= earlier
        assert earlier != later
    backwards = versions[::-1]
    assert sorted(backwards) == versions
    assert [str(version) for version in versions] == ORDERED.split()


@pytest.mark.parametrize(
    "text", ["", "1", "1.0", "01.0.0", "1.0.0-", "1.0.0-01", "v1.0.0", "1.0.0+build", "1.0.0\n", "١.0.0", "1.0.-1"]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    """With a sentence that shows one."""
    with pytest.raises(ValueError, match=r"1\.2\.3"):
        SemVer.parse(text)


@pytest.mark.parametrize(
    ("version", "kind", "after"),
    [
        ("1.2.3", Bump.MAJOR, "2.0.0"),
        ("1.2.3", Bump.MINOR, "1.3.0"),
        ("1.2.3", Bump.PATCH, "1.2.4"),
        ("2.0.0-rc.1", Bump.MAJOR, "2.0.0"),
        ("2.0.0-rc.1", Bump.PATCH, "2.0.0"),
        ("2.1.1-rc.1", Bump.MINOR, "2.2.0"),
    ],
)
def test_a_bump_resets_what_is_below(version: str, kind: Bump, after: str) -> None:
    """And a prerelease becomes the release that it announced."""
    assert str(bump(SemVer.parse(version), kind)) == after


def inputs(*required: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": list(required), "properties": properties}
    return document(input_schema=schema, output_mapping={"x": "$.nodes.c"})


PLAIN = document(output_mapping={"x": "$.nodes.c"})
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (PLAIN, PLAIN, Bump.PATCH),
        (PLAIN, {**PLAIN, "description": "new"}, Bump.PATCH),
        (inputs(a=TEXT), inputs(), Bump.MAJOR),
        (inputs(a=TEXT), inputs("a", a=TEXT), Bump.MAJOR),
        (PLAIN, inputs("a", a=TEXT), Bump.MAJOR),
        (inputs("a", a=TEXT), inputs(a=TEXT), Bump.PATCH),
        (inputs(a=TEXT), inputs(a=TEXT, b=TEXT), Bump.MINOR),
        (inputs(a=TEXT), inputs(a={"type": "integer"}), Bump.MAJOR),
        (inputs(a={"type": "number"}), inputs(a={"type": "integer"}), Bump.MAJOR),
        (inputs(a={"type": "integer"}), inputs(a={"type": ["number", "null"]}), Bump.PATCH),
        (PLAIN, {**PLAIN, "output_mapping": {"y": "$"}}, Bump.MAJOR),
        (PLAIN, {**PLAIN, "output_mapping": {"x.z": "$", "y": "$"}}, Bump.MINOR),
        (PLAIN, {**PLAIN, "nodes": [*PLAIN["nodes"], {"id": "d", "type": "core/noop"}]}, Bump.MINOR),
        (PLAIN, {**PLAIN, "nodes": PLAIN["nodes"][1:], "edges": PLAIN["edges"][1:]}, Bump.PATCH),
        (document(), {**document(), "edges": document()["edges"][:1]}, Bump.MINOR),
        (document(), document(nodes=document()["nodes"][:2], edges=document()["edges"][:1]), Bump.MAJOR),
    ],
)
def test_the_kind_of_a_change_is_derived(old: dict[str, Any], new: dict[str, Any], kind: Bump) -> None:
    """Breaking for callers: MAJOR; more for them: MINOR; the rest: PATCH."""
    assert kind_of_change(definition(old), definition(new)) is kind


def test_equal_definitions_have_no_difference() -> None:
    """Nor does the mere order of nodes and edges make one."""
    turned = document(nodes=document()["nodes"][::-1], edges=document()["edges"][::-1])
    assert diff(definition(document()), definition(turned)).empty


def test_a_difference_names_every_place() -> None:
    """Nodes, edges, triggers, parameters and settings, each with before and after."""
    old = node(parameters={"a": 1, "b": {"c": True, "d": [1]}}, timeout="1m") | {
        "parameters": {"p": 1, "q": 2},
        "tags": ["x"],
    }
    new = node(parameters={"a": 1, "b": {"c": 1, "d": [1]}}, name="B") | {"parameters": {"q": 3}, "description": "new"}
    new["nodes"] = [*new["nodes"][:2], {"id": "e", "type": "core/noop"}]
    new["edges"] = [{"source": "a", "target": "b", "condition": "ok"}, {"source": "b", "target": "e"}]
    new["triggers"] = [{"id": "by-hand", "type": "api"}]
    found = diff(definition(old), definition(new))
    assert found.bump is Bump.MAJOR
    assert [(change.key, change.kind) for change in found.nodes] == [
        ("b", ChangeKind.CHANGED),
        ("c", ChangeKind.REMOVED),
        ("e", ChangeKind.ADDED),
    ]
    assert [(part.key, part.kind, part.before, part.after) for part in found.nodes[0].parts] == [
        ("/parameters/b/c", ChangeKind.CHANGED, True, 1),
        ("/timeout", ChangeKind.REMOVED, "PT1M", None),
        ("/name", ChangeKind.ADDED, None, "B"),
    ]
    assert [(change.key, change.kind) for change in found.edges] == [
        ("a → b", ChangeKind.CHANGED),
        ("b → c", ChangeKind.REMOVED),
        ("b → e", ChangeKind.ADDED),
    ]
    assert [(change.key, change.kind) for change in found.triggers] == [("by-hand", ChangeKind.CHANGED)]
    assert [(c.key, c.kind, c.before, c.after) for c in found.parameters] == [
        ("/p", ChangeKind.REMOVED, 1, None),
        ("/q", ChangeKind.CHANGED, 2, 3),
    ]
    assert [(c.key, c.kind) for c in found.settings] == [
        ("/tags", ChangeKind.REMOVED),
        ("/description", ChangeKind.ADDED),
    ]


def test_true_is_not_one() -> None:
    """JSON's equality: a boolean differs from a number, 1 equals 1.0, order of keys is nothing."""
    assert not same_json({"a": [True]}, {"a": [1]})
    assert same_json({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
    assert not same_json([1], [1, 2])


SCHEMA = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string"}, "n": {"type": "integer"}, "sub": {"properties": {"k": {"enum": [1]}}}},
    "additionalProperties": False,
}


def test_an_inputs_problems_are_told_at_once() -> None:
    """Each with a pointer under /input."""
    found = input_problems(SCHEMA, {"n": "x", "sub": {"k": 2}, "fil": 1})
    assert [(problem.pointer, problem.code) for problem in found] == [
        ("/input", "BAD_INPUT"),
        ("/input/fil", "BAD_INPUT"),
        ("/input/n", "BAD_INPUT"),
        ("/input/sub/k", "BAD_INPUT"),
    ]
    assert "'file'" in found[1].message
    assert input_problems(SCHEMA, {"file": "a", "n": 1}) == []
    assert input_problems(None, ["anything"]) == []


def test_an_input_that_is_no_json_is_refused() -> None:
    """With or without a schema."""
    for schema in (None, SCHEMA):
        found = input_problems(schema, {"n": float("inf"), "file": "\ud800"})
        assert [(problem.pointer, problem.code) for problem in found] == [
            ("/input/file", "NOT_JSON"),
            ("/input/n", "NOT_JSON"),
        ]


def test_a_template_in_an_input_is_only_text() -> None:
    """Templates stand for values in definitions, not in data."""
    assert [problem.pointer for problem in input_problems(SCHEMA, {"file": "x", "n": "{{ y }}"})] == ["/input/n"]
