"""What only a server of type ``comfyui`` does: graphs filled for a work, by one node's parameters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.comfyui.client import prompt_id
from engine.engine import Engine
from engine.servers.contract import Done, Failed, ServerFailed, Work
from flow.definition import Definition, Node, TypeInfo
from flow.documents import read
from flow.errors import Category
from flow.servers import CheckOutcome
from tests.engine.servers.comfy import ComfyPlace, comfyui, definition
from tests.engine.servers.places import CONTENT, ignored

TEXT: dict[str, Any] = {
    "1": {"class_type": "Text", "inputs": {"text": "sample"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "8": {"class_type": "ShowText", "inputs": {"source": ["1", 0]}},
}
COPY: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "10": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@pytest.fixture
async def place(engine: Engine, tmp_path: Path) -> AsyncIterator[ComfyPlace]:
    async with AsyncExitStack() as stack:
        yield await comfyui(engine, tmp_path, stack)


def text_work(place: ComfyPlace, input: Any = None, **parameters: Any) -> Work:
    """Work without a file."""
    return replace(place.work("w1"), definition=definition(TEXT, **parameters), input=input, file=None)


def copy_work(place: ComfyPlace, **parameters: Any) -> Work:
    return replace(place.work("w1"), definition=definition(COPY, **parameters))


async def done(place: ComfyPlace, work: Work) -> Done:
    client = place.client()
    ended = await client.follow(await client.submit(work), ignored)
    assert isinstance(ended, Done), ended
    return ended


async def refusal(place: ComfyPlace, work: Work) -> Failed:
    with pytest.raises(ServerFailed) as caught:
        await place.client().submit(work)
    return caught.value.failed


def sent(place: ComfyPlace) -> dict[str, Any]:
    """The inputs of every node of the only graph that was sent."""
    [body] = place.double.posted("/prompt")
    return {id: node["inputs"] for id, node in body["prompt"].items()}


async def test_a_check_tells_of_the_machine(place: ComfyPlace) -> None:
    """The build, and each device with its memory."""
    checked = await place.client().check()
    assert checked.outcome is CheckOutcome.OK
    assert checked.capabilities == {
        "version": "0.3.60",
        "os": "posix",
        "devices": [{"name": "cuda:0 Test", "type": "cuda", "vram_mb": 8192, "vram_free_mb": 6144}],
    }


async def test_the_only_loader_takes_the_file(place: ComfyPlace) -> None:
    """A graph as ComfyUI exports it needs no mapping; every output comes back, previews too."""
    ended = await done(place, copy_work(place))
    name = f"mirrorflow/{prompt_id('w1')}.png"
    assert place.double.inputs == {name: CONTENT}
    assert sent(place)["1"] == {"image": name}
    assert [file.locator["type"] for file in ended.files] == ["output", "temp"]


@pytest.mark.parametrize("source", ["file", "file_path", "$.file_path"])
async def test_a_path_of_ours_is_never_sent(place: ComfyPlace, source: str) -> None:
    """However the mapping calls the file, the graph gets what was uploaded."""
    mapping = {"1.inputs.image": source, "9.inputs.note": "$.file_path"}
    await done(place, copy_work(place, input_mapping=mapping))
    name = f"mirrorflow/{prompt_id('w1')}.png"
    assert (sent(place)["1"]["image"], sent(place)["9"]["note"]) == (name, name)
    assert str(place.folder) not in str(place.double.posted("/prompt"))


async def test_values_come_from_the_input_the_batch_and_the_definition(place: ComfyPlace) -> None:
    """In this order; templates and fixed values too. What the graph has otherwise stays."""
    mapping = {"1.inputs.text": "title", "9.inputs.seed": "seed", "9.inputs.steps": "steps", "9.inputs.strong": True}
    inputs = {"9.inputs.filename_prefix": "{{ title }}-{{ parameters.seed }}"}
    work = text_work(place, {"title": "a cat"}, input_mapping=mapping, inputs=inputs)
    ended = await done(place, replace(work, parameters={"steps": 20}))
    assert sent(place) == {
        "1": {"text": "a cat"},
        "8": {"source": ["1", 0]},
        "9": {"images": ["1", 0], "seed": 7, "steps": 20, "strong": True, "filename_prefix": "a cat-7"},
    }
    assert ended.output["texts"] == {"8": ["a cat"]}


async def test_only_the_outputs_that_are_asked_for_come_back(place: ComfyPlace) -> None:
    """Also to another process, which knows the reference only."""
    work = copy_work(place, outputs={"picture": "9.images"})
    ref = await place.client().submit(work)
    ended = await place.client().follow(ref, ignored)
    assert isinstance(ended, Done)
    [file] = ended.files
    assert ended.output["outputs"] == {"picture": [file.name]}
    assert file.locator["node"] == "9"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"input_mapping": {"1.inputs.text": "titel"}}, "'1.inputs.text' takes 'titel', which is not given"),
        ({"input_mapping": {"7.inputs.text": "title"}}, "The graph has no node '7' for '7.inputs.text'"),
        ({"input_mapping": {"text": "title"}}, "names no place of the graph"),
        ({"input_mapping": {"1.inputs.text": "$.["}}, "The input mapping of '1.inputs.text' can't be read"),
        ({"inputs": {"nowhere": 1}}, "'nowhere' is no place of a graph"),
        ({"outputs": {"a": "77"}}, "The output 'a' is taken from '77', which is no node"),
    ],
)
async def test_a_mapping_that_does_not_fit_is_told_with_its_place(
    place: ComfyPlace, parameters: dict[str, Any], said: str
) -> None:
    """Before anything is sent; the work is at fault."""
    failed = await refusal(place, text_work(place, {"title": "a"}, **parameters))
    assert (failed.failure.code, failed.failure.category) == ("COMFYUI_MAPPING", Category.VALIDATION)
    assert said in failed.failure.message
    assert failed.failure.details["place"]
    assert not failed.server_lost
    assert place.double.asked == []


async def test_a_file_that_the_graph_does_not_take_is_refused(place: ComfyPlace) -> None:
    """A batch that worked on the sample picture again and again would be worse."""
    failed = await refusal(place, replace(copy_work(place), definition=definition(TEXT)))
    assert failed.failure.code == "COMFYUI_MAPPING"
    failed = await refusal(place, replace(copy_work(place, input_mapping={"1.inputs.image": "file"}), file=None))
    assert failed.failure.code == "COMFYUI_MAPPING"


async def test_other_workflows_are_refused(place: ComfyPlace) -> None:
    """More than one node, another type, a graph of the editor's own format: each says what would help."""
    node = definition().nodes[0]
    for nodes in ((node, replace_id(node)), (Node("a", "core/noop"),)):
        other = Definition("x", (), nodes)
        failed = await refusal(place, replace(copy_work(place), definition=other))
        assert (failed.failure.code, failed.server_lost) == ("COMFYUI_WORKFLOW", False)
        assert "local or mirrorflow" in failed.failure.message
    failed = await refusal(place, replace(copy_work(place), definition=definition({"nodes": [], "links": []})))
    assert failed.failure.code == "COMFYUI_GRAPH"
    failed = await refusal(place, text_work(place, seeds=3))
    assert failed.failure.code == "PARAMETERS_INVALID"


def replace_id(node: Node) -> Node:
    return Node("other", node.type, parameters=node.parameters)


async def test_an_older_batch_definition_runs_as_it_did(place: ComfyPlace) -> None:
    """Its graph under ``workflow_config``, its mappings and parameters beside it."""
    given = {
        "name": "older",
        "scenario": "图像处理",
        "workflow_config": {**COPY, "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}},
        "node_config": {},
        "input_mapping": {"1.inputs.image": "file", "9.inputs.seed": "seed"},
        "output_mapping": {"pictures": "9.images"},
        "parameters": {"seed": 11},
        "status": "normal",
    }
    found, problems = read(given, {"comfyui/prompt": TypeInfo("comfyui/prompt")})
    assert found is not None, problems
    ended = await done(place, replace(copy_work(place), definition=found))
    assert sent(place)["9"]["seed"] == 11
    assert list(ended.output["outputs"]) == ["pictures"]
    assert len(ended.files) == 1


async def test_a_restarted_server_is_lost_to_the_work(place: ComfyPlace) -> None:
    """Its queue and history are gone: the item goes to another server."""
    work = place.work("w1")
    ref = await place.client().submit(work)
    await place.started("w1", ref)
    place.double.restart()
    ended = await place.client().follow(ref, ignored)
    assert isinstance(ended, Failed)
    assert (ended.failure.code, ended.server_lost) == ("COMFYUI_PROMPT_LOST", True)
