"""ComfyUI's graphs, names and answers, and what is imported of them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.comfyui.prompt import Prompt
from engine.nodes.comfyui import comfyui_prompt
from engine.nodes.contract import node_type
from flow import comfyanswers as answers
from flow import comfyui, older, versions
from flow.comfyui import MappingError, Place, Produced
from flow.definition import Definition, TypeInfo
from flow.documents import export, parse, problem_lines, read
from flow.errors import Category
from tests.flow.types import TYPES

ID = "6f1cf1f6-5c3b-5f0e-9d53-0a6f6d8e2b11"
GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0]}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "57:8": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
}
_KIND = node_type(comfyui_prompt)
assert _KIND is not None
ALL = {**TYPES, "comfyui/prompt": TypeInfo("comfyui/prompt", _KIND.parameters_schema)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


# ---- places and mappings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3.inputs.seed", Place("3", "seed")),
        ("57:8.inputs.images", Place("57:8", "images")),
        ("3.inputs.a.b", Place("3", "a.b")),
        ("3.seed", None),
        ("inputs.seed", None),
        (".inputs.seed", None),
        (7, None),
    ],
)
def test_a_place_is_a_nodes_input(text: Any, found: Place | None) -> None:
    """``node.inputs.field``; ids of nodes in groups have a colon, fields may have dots."""
    assert comfyui.place(text) == found


def test_a_mapping_may_be_written_either_way() -> None:
    """Place to source, or source to place, as older definitions have it."""
    assert comfyui.mapped({"3.inputs.seed": "seed", "picture": "4.inputs.image"}, {"seed": 5, "picture": "a.png"}) == {
        "3.inputs.seed": 5,
        "4.inputs.image": "a.png",
    }


def test_sources_are_names_paths_and_values() -> None:
    """A path is JMESPath, ``$$`` begins a text with a dollar, what isn't text is meant as it stands."""
    scope = {"a": {"b": [1, 2]}, "n": 0}
    mapping = {"3.inputs.p": "$.a.b[1]", "3.inputs.t": "$$x", "3.inputs.n": "n", "3.inputs.v": 2.5, "3.inputs.no": None}
    assert list(comfyui.mapped(mapping, scope).values()) == [2, "$x", 0, 2.5, None]


@pytest.mark.parametrize("source", ["title", "$.title", "file"])
def test_what_is_not_given_is_an_error_at_its_place(source: str) -> None:
    """The graph's sample value never stays in silently."""
    with pytest.raises(MappingError) as caught:
        comfyui.mapped({"3.inputs.text": source}, {"titel": "x"})
    assert caught.value.place == "3.inputs.text"
    assert "titel" in str(caught.value)


def test_a_filled_graph_is_a_new_one() -> None:
    """Only what is named changes; the given graph stays as it was, for the next item."""
    before = copy.deepcopy(GRAPH)
    filled = comfyui.filled(GRAPH, {"3.inputs.seed": 9, "3.inputs.new": [1]})
    assert filled["3"] == {"class_type": "KSampler", "inputs": {"seed": 9, "model": ["4", 0], "new": [1]}}
    assert filled["4"] is GRAPH["4"]
    assert before == GRAPH


def test_a_place_that_the_graph_does_not_have_is_told() -> None:
    """With the nearest id."""
    with pytest.raises(MappingError, match=r"no node '57:9' for '57:9.inputs.x'. Did you mean '57:8'\?"):
        comfyui.filled(GRAPH, {"57:9.inputs.x": 1})


def test_one_loader_is_the_place_for_a_file() -> None:
    """Two are a choice that somebody must make."""
    assert comfyui.loader(GRAPH) == Place("4", "image")
    assert comfyui.loader({**GRAPH, "5": GRAPH["4"]}) is None
    assert comfyui.loader({}) is None


# ---- outputs --------------------------------------------------------------------------------------------------


def test_files_of_any_key_once_each_and_texts() -> None:
    """Flags and nonsense are no files; a mesh may be named by its filename alone."""
    picture = {"filename": "a.png", "subfolder": "x", "type": "output"}
    outputs: dict[str, Any] = {
        "9": {"images": [picture, picture, None, 7, {"filename": ""}, {"filename": 3}], "animated": [True]},
        "10": {"gifs": [{"filename": "b.gif"}], "text": ["one", "two"]},
        "11": {"result": ["mesh.GLB", "note"]},
        "12": "nonsense",
    }
    found = comfyui.produced(outputs)
    assert [(file.node, file.key, file.subfolder, file.type, file.name) for file in found.files] == [
        ("9", "images", "x", "output", "a.png"),
        ("10", "gifs", "", "output", "b.gif"),
        ("11", "result", "", "output", "mesh.GLB"),
    ]
    assert found.texts == {"10": ("one", "two"), "11": ("note",)}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_outputs_of_any_shape_are_read(outputs: dict[str, Any]) -> None:
    """Whatever a server says, the names that come of it are plain."""
    for file in comfyui.produced(outputs).files:
        assert file.name
        assert not set(file.name) & set("/\\\0")


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1))
def test_a_display_name_is_a_plain_filename(text: str) -> None:
    """Never empty, hidden, a folder or longer than file systems take."""
    name = comfyui.display_name(text)
    assert 0 < len(name.encode()) <= 150
    assert name.isprintable()
    assert name not in (".", "..")
    assert not set(name) & set('/\\<>:"|?*')


def test_outputs_are_chosen_by_node_and_key() -> None:
    """Everything of a node, or one key of it."""
    file = Produced("9", "images", "a", "", "output", "a")
    other = Produced("9", "gifs", "b", "", "output", "b")
    outputs = comfyui.Outputs((file, other), {"9": ("t",)})
    assert comfyui.chosen(outputs, {"all": "9", "one": "9.outputs.gifs", "said": "9.text", "none": "8"}) == {
        "all": (file, other, "t"),
        "one": (other,),
        "said": ("t",),
        "none": (),
    }


# ---- answers --------------------------------------------------------------------------------------------------


def history(status: str, *messages: Any, outputs: Any = None) -> dict[str, Any]:
    return {ID: {"outputs": outputs or {}, "status": {"status_str": status, "messages": list(messages)}}}


def test_the_history_tells_how_a_prompt_ended() -> None:
    """An interrupt reads "error" too, and is told by its message."""
    assert answers.in_history(ID, {}) == answers.Unknown()
    assert answers.in_history(ID, history("success", outputs={"9": {}})) == answers.Succeeded({"9": {}}, {})
    interrupted = answers.in_history(ID, history("error", ["execution_interrupted", {"node_id": "3"}]))
    assert isinstance(interrupted, answers.Broken)
    assert interrupted.failure.category is Category.CANCELED
    failed = answers.in_history(ID, history("error", ["execution_error", {"exception_message": "x"}]))
    assert isinstance(failed, answers.Broken)
    assert failed.failure.category is Category.CODE
    assert answers.in_history(ID, history("error")) == answers.Broken(
        failed.failure.__class__(
            "COMFYUI_FAILED",
            Category.CODE,
            "ComfyUI failed: it gave no reason.",
            details={"node_id": "", "node_type": "", "exception_type": ""},
        )
    )


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_answers_of_any_shape_are_judged(body: Any) -> None:
    """Nothing that a server says raises; what isn't ComfyUI's is None or unknown."""
    for value in (body, {ID: body}, {"id": ID, "status": body}, {"queue_running": [body], "queue_pending": body}):
        answers.in_history(ID, value)
        answers.in_jobs(ID, value)
        if answers.is_queue(value):
            answers.in_queue(ID, value)
            answers.queued_for(ID, value)
        answers.accepted(value)
        answers.rejected(400, value)
        tally = answers.Tally(ID)
        tally.take({"type": "progress_state", "data": {"prompt_id": ID, "nodes": value}})
        tally.take({"type": "execution_cached", "data": {"prompt_id": ID, "nodes": value}})
        tally.take(value)


def test_the_queue_tells_how_many_are_ahead() -> None:
    """By number, since a prompt may be put in front; other ids are not ours."""
    body = {"queue_running": [[1, "a", {}]], "queue_pending": [[5, ID, {}], [3, "b", {}], [9, "c", {}]]}
    assert answers.in_queue(ID, body) == answers.Pending(2)
    assert answers.in_queue("a", body) == answers.Running(0)
    assert answers.in_queue("d", body) == answers.Unknown()


def test_progress_counts_nodes_and_their_parts() -> None:
    """A node that begins ends the one before; another prompt's events are not ours."""
    tally = answers.Tally(ID)

    def say(type: str, **data: Any) -> float | None:
        tally.take({"type": type, "data": {"prompt_id": ID, **data}})
        return tally.share

    assert say("executing", node="1") is None
    tally.nodes = 4
    assert say("execution_cached", nodes=["2"]) == 0.25
    assert say("progress", node="1", value=5, max=10) == 0.375
    assert say("executing", node="3") == 0.5
    assert say("progress", node="3", value=1, max=0) == 0.5
    assert tally.take({"type": "execution_success", "data": {"prompt_id": "other"}}) is None
    assert tally.take({"type": "execution_success", "data": {"prompt_id": ID}}) is True


# ---- import ---------------------------------------------------------------------------------------------------


def imported(document: Any) -> Definition:
    found, problems = read(document, ALL)
    assert found is not None, problem_lines(problems)
    return found


OLDER: dict[str, Any] = {
    "id": 4,
    "name": "测试工作流",
    "description": "d",
    "scenario": "图像处理",
    "version": "2.3.1",
    "workflow_config": GRAPH,
    "node_config": {"nodes": [{"a": None}]},
    "input_mapping": {"4.inputs.image": "file", "3.inputs.seed": "seed"},
    "output_mapping": {"pictures": "57:8.images"},
    "parameters": {"seed": 7},
    "parent_id": 3,
    "status": "hidden",
    "created_at": "2024-03-27T10:00:00",
}


@pytest.mark.parametrize("document", [GRAPH, OLDER, {"name": "n", "workflow_config": GRAPH, "input_mapping": {}}])
def test_an_import_of_an_export_changes_nothing(document: dict[str, Any]) -> None:
    """However it was spelled first; and the given document is not changed."""
    before = copy.deepcopy(document)
    first = imported(document)
    assert imported(export(first)) == first
    assert export(imported(export(first))) == export(first)
    assert document == before


def test_a_graph_becomes_a_workflow_of_one_prompt() -> None:
    """As it stands."""
    [node] = imported(GRAPH).nodes
    assert (node.type, node.parameters) == ("comfyui/prompt", {"graph": GRAPH})


def test_an_older_definition_runs_and_reads_as_it_was() -> None:
    """Its mappings are the node's; everything it said is found again under its older name."""
    found = imported(OLDER)
    [node] = found.nodes
    assert node.parameters == {
        "graph": GRAPH,
        "input_mapping": OLDER["input_mapping"],
        "defaults": "{{ parameters }}",
        "outputs": OLDER["output_mapping"],
    }
    document = export(found)
    for key, value in OLDER.items():
        assert older.field(document, key) == value, key
    assert older.hidden(document)
    assert str(versions.first_number(document)) == "2.3.1"


@pytest.mark.parametrize("version", ["v1", "1.0", "1.0.0-rc.1", "99999999999.0.0", 2, None])
def test_a_version_that_is_none_here_begins_at_one(version: Any) -> None:
    """It is kept as it was given all the same."""
    document = export(imported({**OLDER, "version": version}))
    assert versions.first_number(document) == versions.FIRST
    assert older.field(document, "version") == version


def test_an_output_mapping_of_another_kind_is_only_kept() -> None:
    """It can't choose outputs; nothing is lost."""
    document = export(imported({**OLDER, "output_mapping": {"pictures": "77.images"}}))
    assert "outputs" not in document["nodes"][0]["parameters"]
    assert older.field(document, "output_mapping") == {"pictures": "77.images"}


@pytest.mark.parametrize(
    ("more", "pointer", "code"),
    [
        ({"input_mapping": {"77.inputs.x": "a"}}, "/input_mapping/77.inputs.x", "BAD_MAPPING"),
        ({"input_mapping": {"x": "a"}}, "/input_mapping/x", "BAD_MAPPING"),
        ({"input_mapping": {"3.inputs.x": "$.["}}, "/input_mapping/3.inputs.x", "BAD_EXPRESSION"),
        ({"inputs": {"3.x": 1}}, "/inputs/3.x", "BAD_MAPPING"),
        ({"outputs": {"a": "77.images"}}, "/outputs/a", "BAD_MAPPING"),
        ({"graph": {"nodes": [], "links": []}}, "/graph", "BAD_PARAMETERS"),
        ({"keep": "nowhere"}, "/keep", "BAD_PARAMETERS"),
    ],
)
def test_what_does_not_fit_the_graph_is_told_when_it_is_stored(more: dict[str, Any], pointer: str, code: str) -> None:
    """With the place in the document; what only a template gives is left to the run."""
    node = {"id": "a", "type": "comfyui/prompt", "parameters": {"graph": GRAPH, **more}}
    document = {"name": "n", "triggers": [{"type": "manual"}], "nodes": [node]}
    _, problems = read(document, ALL)
    assert [(each.pointer, each.code) for each in problems] == [(f"/nodes/0/parameters{pointer}", code)]
    templates = {
        "graph": "{{ input.graph }}",
        "inputs": {"3.inputs.x": "{{ input.x }}"},
        "outputs": {"a": "{{ input.o }}"},
    }
    node["parameters"] = templates
    assert read(document, ALL)[1] == []


def test_problems_of_an_older_definition_point_into_it() -> None:
    """Not into the node that was made of it."""
    _, problems = read({**OLDER, "input_mapping": {"4.inputs.image": "{{ nope("}}, ALL)
    assert [problem.pointer for problem in problems] == ["/input_mapping/4.inputs.image"]


def test_the_parameters_of_the_node_and_of_the_server_are_one() -> None:
    """What a batch reads is what the type declares."""
    assert _KIND is not None
    assert _KIND.parameters_type is Prompt


def test_the_example_of_the_page_is_valid() -> None:
    """As people copy it."""
    text = (Path(__file__).parents[2] / "docs/comfyui.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert imported(parse(example, "yaml")).nodes[0].type == "comfyui/prompt"
