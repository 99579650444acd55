"""``comfyui/prompt`` as a node of a workflow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.access import LOCAL
from engine.calls import Broke, Call, Done, Progress
from engine.comfyui.client import prompt_id
from engine.engine import Engine
from flow.servers import ServerType
from tests import comfyui_double as double
from tests.engine.nodes_bench import Bench, bench
from tests.engine.servers.double import doubled

GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    "10": {"class_type": "SaveGif", "inputs": {"images": ["1", 0]}},
}
WAITING: dict[str, Any] = {
    "1": {"class_type": "Text", "inputs": {"text": "hello"}},
    "2": {"class_type": "Gate", "inputs": {"source": ["1", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}
TYPE = "comfyui/prompt"
KEY = "inst-1/a"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is given up at once."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.0,))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


@pytest.fixture
async def comfy() -> AsyncIterator[double.ComfyUI]:
    async with double.served(double.ComfyUI()) as server:
        yield server


async def test_files_come_back_into_the_work_folder(nodes: Bench, comfy: double.ComfyUI) -> None:
    """The input's file goes in, each file that was made is on disk, and the next node finds the first one."""
    (nodes.files / "a.png").write_bytes(b"picture")
    output = await nodes.done(TYPE, {"path": "a.png"}, server=comfy.url, graph=GRAPH)
    assert output["prompt_id"] == prompt_id(KEY)
    assert [(file["node"], file["key"]) for file in output["files"]] == [("9", "images"), ("10", "gifs")]
    for file in output["files"]:
        path = Path(file["path"])
        assert path.is_relative_to(nodes.files / "work" / "inst-1")
        content = await asyncio.to_thread(path.read_bytes)
        assert (content, path.name, file["size"]) == (b"picture", file["filename"], 7)
    assert output["path"] == output["files"][0]["path"]
    assert any(isinstance(said, Progress) and said.total == 1 for said in nodes.said)


async def test_files_go_where_they_are_told(nodes: Bench, comfy: double.ComfyUI) -> None:
    """Into a folder within the allowed ones, or into the artifact store."""
    asked: dict[str, Any] = {"server": comfy.url, "graph": GRAPH, "file": "a.png", "outputs": {"gif": "10"}}
    (nodes.files / "a.png").write_bytes(b"picture")
    output = await nodes.done(TYPE, None, folder="made", **asked)
    [file] = output["files"]
    assert Path(file["path"]).parent == nodes.files / "made"
    assert output["outputs"] == {"gif": [file]}
    output = await nodes.done(TYPE, None, keep="artifact", **asked)
    assert nodes.runner.surroundings.artifacts.read_bytes(output["files"][0]) == b"picture"
    assert len(comfy.posted("/prompt")) == 1  # the same node asks for it once
    code, _, _ = await nodes.broke(TYPE, None, folder="/etc", **asked)
    assert code == "PATH_NOT_ALLOWED"


@pytest.mark.parametrize("name", ["../../../escape.png", "/tmp/escape.png", "..", "a\0.png", ".", "x" * 400 + ".png"])
async def test_hostile_filenames_stay_in_the_folder(nodes: Bench, comfy: double.ComfyUI, name: str) -> None:
    """Whatever the server calls them."""
    comfy.faults.names = lambda real: name
    graph = {"1": WAITING["1"], "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
    outcome = await nodes.run(TYPE, None, server=comfy.url, graph=graph)
    if "\0" in name:
        assert isinstance(outcome, Broke)
        assert outcome.failure.code == "COMFYUI_FILE_GONE"
        return
    assert isinstance(outcome, Done), outcome
    written = [path for path in nodes.files.rglob("*") if path.is_file()]
    assert [str(path) for path in written] == [outcome.output["path"]]


async def test_two_files_of_one_name_are_both_kept(nodes: Bench, comfy: double.ComfyUI) -> None:
    """A server's folders are not ours."""
    graph = {
        "1": WAITING["1"],
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    comfy.faults.names = lambda real: "a.png"
    output = await nodes.done(TYPE, None, server=comfy.url, graph=graph)
    assert [file["filename"] for file in output["files"]] == ["a.png", "a-2.png"]


async def test_an_attempt_takes_up_the_prompt_of_the_one_before(nodes: Bench, comfy: double.ComfyUI) -> None:
    """Its worker was killed: the prompt went on, and is not sent again."""
    first = asyncio.create_task(nodes.run(TYPE, None, server=comfy.url, graph=WAITING))
    await comfy.entered.wait()
    second = asyncio.create_task(nodes.run(TYPE, None, server=comfy.url, graph=WAITING))
    comfy.gate.set()
    assert isinstance(await second, Done)
    assert isinstance(await first, Done)
    assert len(comfy.posted("/prompt")) == 1


async def test_a_failed_prompt_is_tried_again_as_another_one(nodes: Bench, comfy: double.ComfyUI) -> None:
    """ComfyUI runs an id once; what failed there doesn't come right by looking at it again."""
    graph = {**WAITING, "2": {"class_type": "Gate", "inputs": {"source": ["1", 0], "name": "g"}}}
    comfy.gate_of("g").set()
    comfy.failing["g"] = "no luck"
    code, category, _ = await nodes.broke(TYPE, None, server=comfy.url, graph=graph)
    assert (code, category) == ("COMFYUI_FAILED", "CODE")
    comfy.failing.clear()
    output = await nodes.done(TYPE, None, server=comfy.url, graph=graph)
    assert output["prompt_id"] == prompt_id(f"{KEY}#1")


async def test_stopping_the_node_stops_the_work_there(nodes: Bench, comfy: double.ComfyUI) -> None:
    """A cancellation, or a timeout, which is one too, interrupts the prompt, by its id."""
    running = asyncio.create_task(nodes.run(TYPE, None, server=comfy.url, graph=WAITING))
    await comfy.entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert comfy.posted("/interrupt") == [{"prompt_id": prompt_id(KEY)}]


async def test_an_interrupt_by_somebody_else_is_a_failure(nodes: Bench, comfy: double.ComfyUI) -> None:
    """Told as such, and not tried again by itself."""
    running = asyncio.create_task(nodes.broke(TYPE, None, server=comfy.url, graph=WAITING))
    await comfy.entered.wait()
    comfy._interrupt.set()
    code, _, outcome = await running
    assert (code, outcome.failure.retryable) == ("COMFYUI_INTERRUPTED", False)


async def test_a_lost_server_may_be_back_for_the_next_attempt(nodes: Bench) -> None:
    """So the failure is retried."""
    code, category, outcome = await nodes.broke(TYPE, None, server="http://127.0.0.1:1", graph=WAITING)
    assert (code, category, outcome.failure.retryable) == ("SERVER_UNREACHABLE", "CONNECTION", True)


@pytest.mark.parametrize("fault", ["html", "redirect", "lying", "endless", "404", "500"])
async def test_something_else_at_the_address_is_told(nodes: Bench, fault: str) -> None:
    """Whatever it answers."""
    async with doubled() as other:
        other.fault = fault
        code, _, _ = await nodes.broke(TYPE, None, server=other.url, graph=WAITING)
    assert code == "SERVER_ANSWER_INVALID"


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"graph": {"nodes": []}}, "COMFYUI_GRAPH"),
        ({"graph": GRAPH, "file": "/etc/passwd"}, "PATH_NOT_ALLOWED"),
        ({"graph": GRAPH, "file": "gone.png"}, "FILE_NOT_FOUND"),
        ({"graph": GRAPH, "file": "."}, "FILE_NOT_FOUND"),
        ({"graph": GRAPH, "input_mapping": {"1.inputs.image": "file"}}, "FILE_NOT_NAMED"),
        ({"graph": GRAPH, "input_mapping": {"image": "x"}}, "COMFYUI_MAPPING"),
        ({"graph": WAITING, "inputs": {"7.inputs.x": 1}}, "COMFYUI_MAPPING"),
        ({"graph": WAITING, "server": "gpu"}, "COMFYUI_SERVER_UNKNOWN"),
        ({"graph": WAITING, "server": None}, "COMFYUI_SERVER_UNKNOWN"),
        ({"graph": WAITING, "server": "file:///etc/passwd"}, "SERVER_UNREACHABLE"),
        ({"graph": WAITING, "server": "http://"}, "SERVER_UNREACHABLE"),
        ({"graph": []}, "PARAMETERS_INVALID"),
        ({"graph": WAITING, "keep": "nowhere"}, "PARAMETERS_INVALID"),
    ],
)
async def test_bad_parameters_are_told(
    nodes: Bench, comfy: double.ComfyUI, parameters: dict[str, Any], code: str
) -> None:
    """Each with its code; nothing is sent."""
    found, _, _ = await nodes.broke(TYPE, {}, **{"server": comfy.url, **parameters})
    assert found == code
    assert comfy.posted("/prompt") == []


async def test_a_workflow_runs_on_a_registered_server(engine: Engine, comfy: double.ComfyUI) -> None:
    """By the name that it has in the project, with its token; a name of another type or project is none."""
    await engine.servers.register(LOCAL, name="gpu", url=comfy.url, type=ServerType.COMFYUI, token="s3cret" * 4)
    address = await engine.servers.comfyui(LOCAL.project_id, "gpu")
    assert (address.url, address.token) == (comfy.url, "s3cret" * 4)
    graph = {"1": WAITING["1"], "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}
    parameters = {"server": "gpu", "graph": graph, "keep": "artifact"}
    call = Call(TYPE, "inst-1", LOCAL.project_id, "a", "a", 1, parameters, None, KEY)
    outcome = await engine.runner.run(call, lambda said: None)
    assert isinstance(outcome, Done), outcome
    assert comfy.headers["authorization"] == f"Bearer {'s3cret' * 4}"
    for name, project in (("local", LOCAL.project_id), ("gpu", "proj-other")):
        other = Call(TYPE, "inst-2", project, "a", "a", 1, {**parameters, "server": name}, None, "inst-2/a")
        refused = await engine.runner.run(other, lambda said: None)
        assert isinstance(refused, Broke)
        assert refused.failure.code == "COMFYUI_SERVER_UNKNOWN"
