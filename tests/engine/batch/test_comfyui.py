"""Batches on ComfyUI servers: a graph over files, from the upload to the file in its place."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from engine.access import LOCAL
from engine.comfyui.following import Pace
from engine.engine import Engine
from flow.errors import Invalid
from flow.servers import ServerStatus, ServerType
from flow.tasks import RunSpec
from tests.comfyui_double import ComfyUI, served
from tests.engine.batch.doubles import ended, item_rows, project

GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "Gate", "inputs": {"source": ["1", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out"}},
}
NODE = {
    "id": "prompt",
    "type": "comfyui/prompt",
    "parameters": {"graph": GRAPH, "inputs": {"9.inputs.filename_prefix": "{{ filename }}"}},
}
NAMES = [f"{folder}/{number}.png" for folder in ("a", "中文") for number in range(6)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that a server doesn't know is given up soon."""
    monkeypatch.setattr("engine.comfyui.following.PACE", Pace(first=0.01, slowest=0.1, unknown=0.2))


async def registered(engine: Engine, server: ComfyUI, name: str) -> str:
    """The id of the server, which is ONLINE and takes two items."""
    made = await engine.servers.register(LOCAL, name=name, url=server.url, type=ServerType.COMFYUI, batch_size=2)
    await engine.servers.status_set(LOCAL, made.server_id, ServerStatus.ONLINE)
    return made.server_id


async def test_a_server_that_is_restarted_in_between_costs_nothing(engine: Engine, tmp_path: Path) -> None:
    """Two servers share the files; one loses its queue and what it has done: every file lands once, in its place."""
    one, two = ComfyUI(), ComfyUI(jobs=True)
    async with AsyncExitStack() as stack:
        servers = []
        for number, server in enumerate((one, two)):
            await stack.enter_async_context(served(server))
            servers.append(await registered(engine, server, f"gpu-{number}"))
        spec = await project(engine, tmp_path, NAMES, nodes=[NODE], servers=tuple(servers), output_root="out")
        started = await engine.tasks.batch_start(LOCAL, spec)
        await one.entered.wait()
        await two.entered.wait()
        one.restart()
        for server in (one, two):
            server.gate.set()
        row = await ended(engine, started)
    errors = [item.error for item in await item_rows(engine, started)]
    assert (row.status, row.done, row.failed) == ("COMPLETED", len(NAMES), 0), errors
    root = tmp_path / "files" / "out"
    placed = {path.read_text(): path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert sorted(placed) == sorted(NAMES)
    assert all(str(place.parent) == content.partition("/")[0] for content, place in placed.items())
    assert one.begun
    assert two.begun


async def test_a_workflow_that_no_comfyui_can_run_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Before the start, and not once for each file."""
    double = ComfyUI()
    double.url = "http://127.0.0.1:9"
    server = await registered(engine, double, "gpu")
    spec = await project(engine, tmp_path, NAMES, servers=("local", server))
    with pytest.raises(Invalid) as refusal:
        await engine.tasks.batch_start(LOCAL, spec)
    [problem] = refusal.value.problems
    assert (problem.pointer, problem.code) == ("/servers/1", "COMFYUI_WORKFLOW")
    with pytest.raises(Invalid):
        await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server))


async def test_cancelling_a_batch_stops_its_prompts(engine: Engine, tmp_path: Path) -> None:
    """The one that runs is interrupted, the one that waits is taken from the queue; another client's goes on."""
    async with served(ComfyUI()) as server:
        server_id = await registered(engine, server, "gpu")
        spec = await project(engine, tmp_path, NAMES, nodes=[NODE], servers=(server_id,), output_root="out")
        started = await engine.tasks.batch_start(LOCAL, spec)
        await server.entered.wait()
        await server.until(lambda: len(server.posted("/prompt")) == 2)
        await engine.tasks.cancel(LOCAL, started.task_id)
        row = await ended(engine, started)
        assert (row.status, row.canceled) == ("CANCELED", len(NAMES))
        await server.until(lambda: server.running is None and not server.pending)
        assert all(body["prompt_id"] for body in server.posted("/interrupt"))
