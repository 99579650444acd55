"""Every problem a document can have: its code, its place, its remedy, and all of them at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest

from flow.documents import Limits, parse, read
from flow.errors import Invalid, Problem
from flow.problems import MAX_PROBLEMS, ProblemCode
from flow.versions import input_problems
from tests.flow.types import TYPES, document, edges, node

P = ProblemCode


@dataclass(frozen=True)
class Case:
    """A document with one mistake: its code, where it is, and words that the sentence has."""

    code: ProblemCode
    document: Any
    pointer: str
    words: tuple[str, ...] = ()


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"x": value}
    return value


def schedule(**config: Any) -> dict[str, Any]:
    return document(triggers=[{"id": "t", "type": "schedule", "config": config}])


def strict(**parameters: Any) -> dict[str, Any]:
    return node(type="image/preprocess", parameters={"format": "png", **parameters})


CASES = [
    # the shape
    Case(P.WRONG_TYPE, [], "", ("object",)),
    Case(P.WRONG_TYPE, document(description=5), "/description", ("quotes",)),
    Case(P.WRONG_TYPE, document(edges={}), "/edges", ("list",)),
    Case(P.WRONG_TYPE, node(fail_on_error="yes"), "/nodes/1/fail_on_error", ("true nor false",)),
    Case(P.WRONG_TYPE, document(nodes=[*document()["nodes"], 7]), "/nodes/3", ("object",)),
    Case(P.WRONG_TYPE, document(name=" x"), "/name", ("space",)),
    Case(P.UNKNOWN_KEY, document(descripton="x"), "/descripton", ("Did you mean 'description'",)),
    Case(P.UNKNOWN_KEY, node(retry={"facter": 1}), "/nodes/1/retry/facter", ("Did you mean 'factor'",)),
    Case(P.MISSING_KEY, node(type=...), "/nodes/1", ("'type'",)),
    Case(P.MISSING_KEY, document(triggers=[{"id": "x"}]), "/triggers/0", ("'type'",)),
    Case(P.MISSING_KEY, node(cache={"key": "k"}), "/nodes/1/cache", ("'ttl'",)),
    Case(P.UNKNOWN_VALUE, edges("a>b", "b>c", on="failed"), "/edges/1/on", ("failure",)),
    Case(P.UNKNOWN_VALUE, node(on_lost="ignore"), "/nodes/1/on_lost", ("retry or fail",)),
    Case(P.OUT_OF_RANGE, node(retry={"jitter": 1.5}), "/nodes/1/retry/jitter", ("0 and 1",)),
    Case(P.OUT_OF_RANGE, node(retry={"max": -1}), "/nodes/1/retry/max"),
    Case(P.OUT_OF_RANGE, node(resources={"cpu": 0}), "/nodes/1/resources/cpu"),
    Case(P.MISSING_NAME, document(name=...), "/name", ("add 'name'",)),
    Case(P.MISSING_NAME, document(name="  "), "/name"),
    Case(P.NO_TRIGGER, document(triggers=[]), "/triggers", ("manual",)),
    Case(P.NO_TRIGGER, document(triggers=...), "/triggers"),
    Case(P.NO_NODE, document(nodes=[], edges=[]), "/nodes", ("at least one",)),
    Case(P.BAD_ID, node(name="kept", id="b/c") | {"edges": []}, "/nodes/1/id", ("letters",)),
    Case(P.BAD_ID, document(triggers=[{"id": "", "type": "manual"}]), "/triggers/0/id"),
    Case(
        P.DUPLICATE_ID,
        document(nodes=[*document()["nodes"], {"id": "a", "type": "core/noop"}]),
        "/nodes/3/id",
        ("'a'",),
    ),
    Case(
        P.DUPLICATE_ID, document(triggers=[{"id": "t", "type": "manual"}, {"id": "t", "type": "api"}]), "/triggers/1/id"
    ),
    Case(P.UNKNOWN_JOIN, node(join="al"), "/nodes/1/join", ("Did you mean 'all'", "none_failed")),
    Case(P.UNKNOWN_ERROR_CATEGORY, node(retry={"retry_on": ["TIMEOUTS"]}), "/nodes/1/retry/retry_on/0", ("'TIMEOUT'",)),
    Case(P.UNKNOWN_ERROR_CATEGORY, node(retry={"never_on": ["timeout"]}), "/nodes/1/retry/never_on/0"),
    Case(P.BAD_DURATION, node(timeout="5 minutes"), "/nodes/1/timeout", ("PT1H",)),
    Case(P.BAD_DURATION, node(timeout=0), "/nodes/1/timeout", ("longer than zero",)),
    Case(P.BAD_DURATION, node(cache={"ttl": "P1Y"}), "/nodes/1/cache/ttl"),
    Case(P.NESTED_TOO_DEEP, node(parameters=nested(17)), "/nodes/1/parameters" + "/x" * 16, ("16",)),
    Case(P.NESTED_TOO_DEEP, document(metadata=nested(17)), "/metadata" + "/x" * 16),
    Case(P.TOO_LARGE, document(description="x" * 20_001), "/description", ("20,000",)),
    Case(P.NOT_JSON, node(parameters={"x": float("nan")}), "/nodes/1/parameters/x", ("NaN",)),
    Case(P.NOT_JSON, node(parameters={"x": "\ud800"}), "/nodes/1/parameters/x", ("surrogate",)),
    Case(P.NOT_JSON, node(parameters={"x": {1, 2}}), "/nodes/1/parameters/x", ("set",)),
    # what it refers to
    Case(P.UNKNOWN_TYPE, node(type="core/nop"), "/nodes/1/type", ("Did you mean 'core/noop'",)),
    Case(
        P.UNKNOWN_TRIGGER_TYPE,
        document(triggers=[{"id": "t", "type": "shedule"}]),
        "/triggers/0/type",
        ("Did you mean 'schedule'",),
    ),
    Case(P.BAD_PARAMETERS, strict(width="wide"), "/nodes/1/parameters/width", ("integer",)),
    Case(P.BAD_PARAMETERS, strict(widht=5), "/nodes/1/parameters/widht", ("Did you mean 'width'",)),
    Case(P.BAD_PARAMETERS, node(type="image/preprocess"), "/nodes/1/parameters", ("'format'",)),
    Case(P.BAD_PARAMETERS, strict(width="w{{ n }}"), "/nodes/1/parameters/width", ("integer",)),
    Case(P.BAD_PARAMETERS, strict(tasks=["a", "z"]), "/nodes/1/parameters/tasks/1"),
    Case(P.BAD_CRON, schedule(cron="61 * * * *"), "/triggers/0/config/cron", ("minute 61",)),
    Case(P.BAD_CRON, schedule(timezone="UTC"), "/triggers/0/config/cron", ("needs 'cron'",)),
    Case(
        P.BAD_TIME_ZONE,
        schedule(cron="@daily", timezone="Europe/Berln"),
        "/triggers/0/config/timezone",
        ("Did you mean 'Europe/Berlin'",),
    ),
    Case(P.BAD_TIME_ZONE, schedule(cron="@daily", timezone="../../etc/passwd"), "/triggers/0/config/timezone"),
    Case(P.BAD_TIME_ZONE, schedule(cron="@daily", timezone="Europe"), "/triggers/0/config/timezone"),
    Case(P.BAD_INPUT_SCHEMA, document(input_schema={"type": "objekt"}), "/input_schema/type", ("'object'",)),
    Case(P.BAD_INPUT_SCHEMA, document(input_schema={"$ref": "http://x/y"}), "/input_schema/$ref", ("$defs",)),
    Case(P.BAD_INPUT_SCHEMA, document(input_schema={"$ref": "#/nope"}), "/input_schema", ("nowhere",)),
    Case(P.BAD_INPUT_SCHEMA, document(input_schema={"$ref": "#"}), "/input_schema", ("without end",)),
    Case(
        P.BAD_INPUT_SCHEMA,
        document(input_schema={"properties": {"a": {"pattern": "("}}}),
        "/input_schema/properties/a/pattern",
    ),
    Case(P.BAD_INPUT_SCHEMA, document(input_schema={"$schema": "http://nope"}), "/input_schema/$schema", ("draft",)),
    # the graph
    Case(P.UNKNOWN_NODE, edges("a>b", "b>c", "b>d"), "/edges/2/target", ("'d'",)),
    Case(P.UNKNOWN_NODE, edges("a>b", "b>c", "d>c"), "/edges/2/source"),
    Case(P.DUPLICATE_EDGE, edges("a>b", "b>c", "a>b"), "/edges/2", ("a → b",)),
    Case(P.SELF_LOOP, edges("a>b", "b>c", "b>b"), "/edges/2", ("loop node",)),
    Case(P.CYCLE, edges("a>b", "b>c", "c>b"), "/edges/2", ("b → c → b",)),
    # expressions
    Case(P.BAD_EXPRESSION, edges("a>b", "b>c", condition="x >"), "/edges/1/condition", ("ends too early",)),
    Case(P.BAD_EXPRESSION, edges("a>b", "b>c", condition="{{ x }}"), "/edges/1/condition", ("without the braces",)),
    Case(P.BAD_EXPRESSION, edges("a>b", "b>c", mapping={"x": "$.a-b"}), "/edges/1/mapping/x", ('"a-b"',)),
    Case(P.BAD_EXPRESSION, node(parameters={"x": ["{{ a.. }}"]}), "/nodes/1/parameters/x/0", ("character 3",)),
    Case(P.BAD_EXPRESSION, node(parameters={"x": "{{ a"}), "/nodes/1/parameters/x", ("not closed",)),
    Case(P.BAD_EXPRESSION, node(cache={"ttl": 1, "key": "{{ a.. }}"}), "/nodes/1/cache/key"),
    Case(
        P.BAD_EXPRESSION,
        document(triggers=[{"id": "t", "type": "manual", "input_mapping": {"x": "$.."}}]),
        "/triggers/0/input_mapping/x",
    ),
    Case(P.BAD_EXPRESSION, document(output_mapping={"x": "$.nodes.a-b"}), "/output_mapping/x", ('nodes."a-b"',)),
    Case(P.BAD_MAPPING, edges("a>b", "b>c", mapping={"x..y": "$.a"}), "/edges/1/mapping/x..y", ("dots",)),
    Case(P.BAD_MAPPING, edges("a>b", "b>c", mapping={"x": "{{ a }}"}), "/edges/1/mapping/x", ("$.path",)),
    Case(
        P.TEMPLATE_UNKNOWN_NODE,
        node(parameters={"x": "{{ nodes.aa.output }}"}),
        "/nodes/1/parameters/x",
        ("'aa'", "Did you mean 'a'"),
    ),
    Case(P.TEMPLATE_UNKNOWN_NODE, document(output_mapping={"x": "$.nodes.z.y"}), "/output_mapping/x", ("'z'",)),
    Case(
        P.TEMPLATE_LATER_NODE, node(parameters={"x": "{{ nodes.c.output }}"}), "/nodes/1/parameters/x", ("'c'", "'b'")
    ),
    Case(P.TEMPLATE_LATER_NODE, node(parameters={"x": "{{ nodes.b.output }}"}), "/nodes/1/parameters/x", ("itself",)),
    Case(
        P.SECRETS_UNAVAILABLE, node(parameters={"x": "{{ secrets.key }}"}), "/nodes/1/parameters/x", ("not available",)
    ),
]

#: Codes whose mistake can't be made alone, or not in a document: tested on their own below.
ELSEWHERE = {
    P.NO_ENTRY_NODE,
    P.UNREACHABLE_NODE,
    P.TOO_MANY_NODES,
    P.BAD_SYNTAX,
    P.DUPLICATE_KEY,
    P.BAD_INPUT,
}


def problems(given: Any, **limits: int) -> list[Problem]:
    definition, found = read(given, TYPES, Limits(**limits))
    assert (definition is None) == bool(found)
    return found


def codes(given: Any) -> list[str]:
    return [problem.code for problem in problems(given)]


def test_the_base_document_is_valid() -> None:
    """So that each case below has its one mistake only."""
    assert problems(document()) == []
    assert problems(strict()) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.pointer}")
def test_one_mistake_is_one_problem(case: Case) -> None:
    """The right code at the right place, with a sentence that names the remedy, and nothing else."""
    before = copy.deepcopy(case.document)
    found = problems(case.document)
    assert [(problem.code, problem.pointer) for problem in found] == [(case.code, case.pointer)]
    for word in case.words:
        assert word in found[0].message
    assert found[0].message.endswith((".", "…", "?"))
    assert repr(case.document) == repr(before)


def test_every_code_has_a_test() -> None:
    """A code that is added without a test fails here."""
    assert {case.code for case in CASES} | ELSEWHERE == set(ProblemCode)
    assert not {case.code for case in CASES} & ELSEWHERE


def test_no_entry_node() -> None:
    """A ring has no node to start with; its cycle is told too."""
    found = problems(edges("a>b", "b>c", "c>a"))
    assert [(problem.code, problem.pointer) for problem in found] == [
        ("CYCLE", "/edges/2"),
        ("NO_ENTRY_NODE", "/nodes"),
    ]
    assert "a → b → c → a" in found[0].message


def test_unreachable_nodes() -> None:
    """An island of a cycle and what follows it can never start."""
    nodes = [{"id": name, "type": "core/noop"} for name in "abcd"]
    found = problems(edges("b>c", "c>b", "c>d") | {"nodes": nodes})
    assert [(problem.code, problem.pointer) for problem in found] == [
        ("CYCLE", "/edges/1"),
        ("UNREACHABLE_NODE", "/nodes/1"),
        ("UNREACHABLE_NODE", "/nodes/2"),
        ("UNREACHABLE_NODE", "/nodes/3"),
    ]


def test_bad_text_and_bad_input_have_their_codes() -> None:
    """The codes that belong to a text, and to an instance's input."""
    for text, code in [("{", P.BAD_SYNTAX), ('{"a": 1, "a": 2}', P.DUPLICATE_KEY)]:
        with pytest.raises(Invalid) as caught:
            parse(text)
        assert caught.value.problems[0].code == code
    assert [problem.code for problem in input_problems({"required": ["a"]}, {})] == [P.BAD_INPUT]


def test_ten_mistakes_are_ten_problems_at_once() -> None:
    """Nothing stops at the first, and nothing hides another."""
    found = problems(
        {
            "scenario": 1,
            "triggers": [{"id": "t", "type": "schedule", "config": {"cron": "x", "timezone": "Mars/Base"}}],
            "input_schema": {"type": 5},
            "nodes": [
                {"id": "a", "type": "core/nope", "timeout": "soon"},
                {"id": "b", "type": "core/noop", "join": "some", "parameters": {"x": "{{ nodes.c.output }} {{ y.. }}"}},
                {"id": "c", "type": "core/noop"},
                {"id": "c", "type": "core/noop"},
            ],
            "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}, {"source": "b", "target": "zz"}],
        }
    )
    assert {problem.code for problem in found} == {
        "MISSING_NAME",
        "WRONG_TYPE",
        "BAD_CRON",
        "BAD_TIME_ZONE",
        "BAD_INPUT_SCHEMA",
        "UNKNOWN_TYPE",
        "BAD_DURATION",
        "UNKNOWN_JOIN",
        "TEMPLATE_LATER_NODE",
        "BAD_EXPRESSION",
        "DUPLICATE_ID",
        "UNKNOWN_NODE",
    }
    assert len(found) == 12


def test_problems_come_in_the_documents_order() -> None:
    """Sorted by pointer, with numbers as numbers: node 2 before node 10."""
    nodes = [{"id": f"n{place}", "type": "core/noop", "timeout": "x"} for place in range(12)]
    pointers = [problem.pointer for problem in problems(document(nodes=nodes, edges=[]))]
    assert pointers == [f"/nodes/{place}/timeout" for place in range(12)]


def test_templates_fit_any_type_that_is_not_known_yet() -> None:
    """One template stands for any value, a text with templates for any text."""
    assert problems(strict(width="{{ n }}", format="{{ f }}", tasks="{{ t }}", size="{{ s }}", path="x/{{ p }}")) == []
    assert problems(strict(tasks=["a", "{{ t }}"], size={"w": "{{ s }}"})) == []


def test_a_template_may_name_any_ancestor() -> None:
    """Not only the direct source; and ``nodes.*`` names none."""
    nodes = document()["nodes"]
    nodes[2]["parameters"] = {"x": "{{ nodes.a.output.y }} {{ nodes.*.status }} {{ nodes.b.z }}"}
    assert problems(document(nodes=nodes)) == []


def test_two_edges_between_two_nodes_may_differ() -> None:
    """By outcome or condition; only the very same edge twice is a mistake."""
    given = edges("a>b", "b>c", "a>b", on="failure")
    assert problems(given) == []
    given["edges"].append({"source": "a", "target": "b", "condition": "x"})
    assert problems(given) == []


def test_each_cycle_is_told_once() -> None:
    """Two separate cycles are two problems; a knot of several is one."""
    nodes = [{"id": name, "type": "core/noop"} for name in "sabcde"]
    found = problems(edges("s>a", "a>b", "b>a", "b>c", "c>d", "d>c", "d>e", "e>c") | {"nodes": nodes})
    assert [problem.message.split(":")[1].split(".")[0] for problem in found] == [" a → b → a", " c → d → c"]


def test_a_chain_of_the_greatest_size_is_checked_whole() -> None:
    """5,000 nodes, each naming the first: no recursion, no quadratic search."""
    nodes = [
        {
            "id": f"n{place}",
            "type": "core/noop",
            "parameters": {"x": f"{{{{ nodes.n{place - 1}.y }}}}"} if place else {},
        }
        for place in range(5_000)
    ]
    chain = [{"source": f"n{place}", "target": f"n{place + 1}"} for place in range(4_999)]
    assert problems(document(nodes=nodes, edges=chain)) == []
    ring = [*chain, {"source": "n4999", "target": "n0"}]
    found = problems(document(nodes=nodes, edges=ring))
    assert [problem.code for problem in found] == ["CYCLE", "NO_ENTRY_NODE"]
    assert len(found[0].message) < 1_000


def test_too_many_nodes_are_told_without_looking_at_each() -> None:
    """One problem for 6,000 bad nodes; what is beside them is still checked."""
    nodes = [{"id": "same", "tpye": "x"} for _ in range(6_000)]
    found = problems(document(nodes=nodes, edges=[], name=...))
    assert [problem.code for problem in found] == ["MISSING_NAME", "TOO_MANY_NODES"]
    assert "6,000" in found[1].message
    assert [problem.code for problem in problems(document(), max_nodes=2)] == ["TOO_MANY_NODES"]


def test_an_answer_is_bounded() -> None:
    """Twenty thousand mistakes are not twenty thousand sentences."""
    assert len(problems(document() | {f"key{number}": 1 for number in range(20_000)})) == MAX_PROBLEMS


def test_depth_never_overflows_the_stack() -> None:
    """Ten thousand levels as Python values: told, not raised."""
    assert P.NESTED_TOO_DEEP in codes(node(parameters=nested(10_000)))
    assert P.NESTED_TOO_DEEP in codes(document(input_schema=nested(10_000)))
    assert P.NESTED_TOO_DEEP in codes(nested(10_000))


@pytest.mark.parametrize("key", ["triggers", "nodes", "edges", "input_schema", "parameters", "output_mapping", "tags"])
@pytest.mark.parametrize(
    "value", [0, "x", True, [None], [[]], {"x": None}, {"x": {"y": []}}, [{"id": {}}], [{"id": "a"}]]
)
def test_wrong_shapes_are_problems_and_never_exceptions(key: str, value: Any) -> None:
    """Whatever stands where, the answer is a list of problems or a definition."""
    problems(document(**{key: value}))
