"""Documents: what is read from them, in every spelling, and that an export is read back to the same."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flow import jsonschemas
from flow.definition import (
    Cache,
    Definition,
    Edge,
    Join,
    Node,
    On,
    Position,
    Resources,
    RetryPolicy,
    TriggerSpec,
)
from flow.documents import export, parse, problem_lines, read, to_yaml
from flow.schemas import definition_schema
from tests.flow.types import TYPES, document, node

EXAMPLE = """
name: nas-photo-processing
display_name: NAS 照片智能处理流水线
scenario: 图像处理
input_schema: {type: object, required: [file_path], properties: {file_path: {type: string}}}
parameters: {bucket: processed-photos}
triggers:
  - id: watch
    type: filesystem
    config: {path: ./photos/raw, events: [create]}
    input_mapping: {file_path: "$.file_path"}
  - {id: nightly, type: schedule, config: {cron: "0 3 * * *", timezone: Asia/Shanghai}}
nodes:
  - id: preprocess-01
    type: image/preprocess
    parameters: {format: jpeg}
    timeout: 60s
    retry: {max: 3, base: 1s, factor: 2, cap: 30s, jitter: 0.1, never_on: [HTTP_CLIENT, OUTPUT_TOO_LARGE]}
  - {id: analyze-01, type: core/noop, cache: {ttl: 1h}, position: {x: 10, y: 2.5}}
  - {id: archive-01, type: core/noop, parameters: {path: "archive/{{ trigger.date }}/{{ filename }}"}}
edges:
  - {source: preprocess-01, target: analyze-01}
  - source: analyze-01
    target: archive-01
    condition: "quality.score >= `0.4`"
    mapping: {image: "$.path", "meta.faces": "$.faces"}
  - {source: preprocess-01, target: archive-01, on: failure}
output_mapping: {location: "$.nodes.\\"archive-01\\".location"}
tags: [photos]
"""


def definition(given: Any) -> Definition:
    found, problems = read(given, TYPES)
    assert found is not None, problem_lines(problems)
    return found


# ---- definitions to try: any mixture of every key -------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00{"), max_size=12)
SPANS = st.timedeltas(min_value=timedelta(microseconds=1), max_value=timedelta(days=3_000))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT.filter(lambda text: not text.startswith("$")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=2)
MAPPINGS = st.dictionaries(
    st.sampled_from(["a", "b.c"]), st.sampled_from(["$", "$.x", "$[0]", "text", 1, None]), max_size=2
)
WORDS = st.lists(st.sampled_from(["TIMEOUT", "HTTP_SERVER", "MY_CODE"]), max_size=2).map(tuple)
RETRIES = st.builds(
    RetryPolicy,
    max=st.integers(0, 9),
    base=SPANS,
    factor=st.floats(1, 10),
    cap=SPANS,
    jitter=st.floats(0, 1),
    total_timeout=st.none() | SPANS,
    retry_on=WORDS,
    never_on=WORDS,
)


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """A valid definition with a random DAG; every key is drawn, defaults included."""
    count = draw(st.integers(1, 5))
    nodes = tuple(
        draw(
            st.builds(
                Node,
                id=st.just(f"n-{place}"),
                type=st.just("core/noop"),
                name=st.none() | TEXT,
                parameters=OBJECTS,
                join=st.sampled_from(Join),
                fail_on_error=st.booleans(),
                retry=st.just(RetryPolicy()) | RETRIES,
                timeout=SPANS,
                heartbeat_timeout=st.none() | SPANS,
                cache=st.none() | st.builds(Cache, ttl=SPANS, key=st.none() | TEXT),
                resources=st.none()
                | st.builds(Resources, cpu=st.none() | st.integers(1, 9), gpu=st.none() | st.integers(0, 2)),
                runs_on=st.lists(TEXT, max_size=2).map(tuple),
                on_lost=st.sampled_from(["retry", "fail"]),
                position=st.none() | st.builds(Position, x=st.floats(-9, 9), y=st.integers(-9, 9).map(float)),
            )
        )
        for place in range(count)
    )
    pairs = draw(st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=6))
    edges = tuple(
        Edge(
            source=f"n-{low}",
            target=f"n-{high}",
            on=draw(st.sampled_from(On)),
            condition=draw(st.none() | st.sampled_from(["a.b", "x == `1`"])),
            mapping=draw(MAPPINGS),
        )
        for low, high in sorted(pairs)
        if low < high
    )
    return draw(
        st.builds(
            Definition,
            name=st.sampled_from(["photos", "照片", "on", "1.0", "a b"]),
            triggers=st.just(
                (TriggerSpec("by-hand", "manual"), TriggerSpec("hook", "webhook", {"path": "/x"}, {"a": "$"}))
            ),
            nodes=st.just(nodes),
            edges=st.just(edges),
            display_name=st.none() | TEXT,
            description=st.none() | TEXT,
            scenario=st.none() | TEXT,
            input_schema=st.none() | st.just({}) | st.just({"type": "object", "required": ["a"]}),
            parameters=OBJECTS,
            output_mapping=MAPPINGS,
            tags=st.lists(TEXT, max_size=2).map(tuple),
            metadata=OBJECTS,
        )
    )


@settings(max_examples=60)
@given(definitions())
def test_an_export_is_read_back_to_the_same_definition(given_definition: Definition) -> None:
    """``read(export(d)) == d``, also through YAML, and the export of that changes nothing."""
    exported = export(given_definition)
    assert definition(exported) == given_definition
    assert definition(parse(to_yaml(exported), "yaml")) == given_definition
    assert export(definition(exported)) == exported
    assert list(export(definition(exported))) == list(exported)


VALIDATORS = [jsonschemas.validator(schema) for schema in (definition_schema(), definition_schema(TYPES))]


@settings(max_examples=40)
@given(definitions())
def test_every_export_fits_the_published_schema(given_definition: Definition) -> None:
    """What the engine writes, an editor that knows the schema accepts."""
    exported = export(given_definition)
    for validator in VALIDATORS:
        validator.validate(exported)


def test_the_example_is_read_with_every_default() -> None:
    """Durations, policies and keys that aren't given."""
    found = definition(parse(EXAMPLE))
    first = found.nodes[0]
    assert first.timeout == timedelta(minutes=1)
    assert first.retry == RetryPolicy(cap=timedelta(seconds=30), never_on=("HTTP_CLIENT", "OUTPUT_TOO_LARGE"))
    assert found.nodes[1].cache == Cache(timedelta(hours=1))
    assert found.nodes[2] == Node(
        "archive-01", "core/noop", parameters={"path": "archive/{{ trigger.date }}/{{ filename }}"}
    )
    assert [edge.on for edge in found.edges] == [On.SUCCESS, On.SUCCESS, On.FAILURE]


def test_an_export_leaves_defaults_out() -> None:
    """The canonical form says only what isn't so anyway, in the order of the design."""
    exported = export(definition(parse(EXAMPLE)))
    assert list(exported) == [
        "name",
        "display_name",
        "scenario",
        "input_schema",
        "parameters",
        "triggers",
        "nodes",
        "edges",
        "output_mapping",
        "tags",
    ]
    assert exported["nodes"][0] == {
        "id": "preprocess-01",
        "type": "image/preprocess",
        "parameters": {"format": "jpeg"},
        "retry": {"cap": "PT30S", "never_on": ["HTTP_CLIENT", "OUTPUT_TOO_LARGE"]},
        "timeout": "PT1M",
    }
    assert exported["edges"][0] == {"source": "preprocess-01", "target": "analyze-01"}


def test_the_example_fits_the_published_schema() -> None:
    """As written by hand, with short durations; and a slip is caught by the schema too."""
    schema = definition_schema(TYPES)
    assert jsonschemas.schema_fault(schema) is None
    jsonschema.validate(parse(EXAMPLE), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(node(tpye="x"), schema)


def test_null_means_absent() -> None:
    """A key that is null is as if it weren't there, as clients send it."""
    assert definition(document(description=None, output_mapping=None, tags=None)) == definition(document())
    assert definition(node(name=None, timeout=None, retry=None)) == definition(document())


def test_triggers_without_id_are_called_after_their_type() -> None:
    """Older documents name none; two of a type are told apart, and a given name is kept."""
    found = definition(document(triggers=[{"type": "manual"}, {"type": "api", "id": "manual-2"}, {"type": "manual"}]))
    assert [trigger.id for trigger in found.triggers] == ["manual", "manual-2", "manual-3"]


# ---- older spellings ------------------------------------------------------------------------------------------


def test_older_keys_of_nodes_and_edges() -> None:
    """``node_id``, ``node_type``, ``from``, ``to`` read as the canonical keys; the document isn't changed."""
    old = document(
        nodes=[{"node_id": name, "node_type": "core/noop"} for name in "abc"],
        edges=[{"from": "a", "to": "b"}, {"from": "b", "target": "c"}],
    )
    before = copy.deepcopy(old)
    assert definition(old) == definition(document())
    assert old == before


def test_problems_point_into_the_document_as_it_was_given() -> None:
    """Not into the canonical form that nobody has seen."""
    old = {
        "name": "x",
        "workflow_config": {
            "nodes": [{"node_id": "a", "node_type": "core/nope", "timeout": "x"}],
            "edges": [{"from": "a", "to": "b"}],
        },
    }
    assert [problem.pointer for problem in read(old, TYPES)[1]] == [
        "/workflow_config/edges/0/to",
        "/workflow_config/nodes/0/node_type",
        "/workflow_config/nodes/0/timeout",
    ]


def test_two_spellings_that_differ_are_a_problem() -> None:
    """``id`` and ``node_id`` may both be there if they agree."""
    assert definition(node(node_id="b")) == definition(document())
    found = read(node(node_id="z"), TYPES)[1]
    assert [(problem.code, problem.pointer) for problem in found] == [("UNKNOWN_KEY", "/nodes/1/node_id")]


def test_the_batch_form_loses_nothing() -> None:
    """A definition under ``workflow_config``; what has no place in a definition is kept in the metadata."""
    batch = {
        "id": 1,
        "name": "测试工作流",
        "description": "d",
        "scenario": "图像处理",
        "version": "1.0.0",
        "workflow_config": {"nodes": [{"node_id": "a", "node_type": "core/noop"}], "tags": ["x"]},
        "node_config": {"nodes": [{"a": 1}]},
        "input_mapping": {"3.inputs.image": "file"},
        "output_mapping": {"images": "9.images"},
        "parameters": {"seed": 7},
        "parent_id": None,
        "status": "normal",
    }
    found = definition(batch)
    assert (found.name, found.description, found.scenario) == ("测试工作流", "d", "图像处理")
    assert found.parameters == {"seed": 7}
    assert found.tags == ("x",)
    assert [trigger.type for trigger in found.triggers] == ["manual"]
    kept = ("id", "version", "node_config", "input_mapping", "output_mapping", "parent_id", "status")
    assert found.metadata == {"legacy": {key: batch[key] for key in kept}}
    assert definition(export(found)) == found


def test_a_comfyui_graph_becomes_one_node() -> None:
    """Its type is not registered here, so it reads as a draft with that one problem."""
    graph = {
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}},
        "4": {"class_type": "Load", "inputs": {}},
    }
    found, problems = read(graph, TYPES)
    assert found is None
    assert [(problem.code, problem.pointer) for problem in problems] == [("UNKNOWN_TYPE", "")]
    comfy = {**TYPES, "comfyui/prompt": TYPES["core/noop"]}
    found, problems = read(graph, comfy)
    assert found is not None
    assert found.nodes == (Node("prompt", "comfyui/prompt", parameters={"graph": graph}),)
    assert read(export(found), comfy) == (found, [])
    wrapped, _ = read({"name": "n", "workflow_config": graph, "status": "normal"}, comfy)
    assert wrapped is not None
    assert wrapped.nodes == found.nodes
    assert wrapped.metadata == {"legacy": {"status": "normal"}}


def test_yaml_has_no_anchors() -> None:
    """A value that stands in two places is written twice, as a person would."""
    shared = {"x": [1]}
    assert "&" not in to_yaml({"a": shared, "b": shared})
