"""A ComfyUI for the contract's tests, and for its own: graphs that wait for a gate of the test."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from engine.access import LOCAL
from engine.comfyui.client import prompt_id
from engine.comfyui.following import Pace
from engine.engine import Engine
from engine.servers.comfyui import Comfy
from engine.servers.contract import ServerAddress, ServerClient, Work
from flow.definition import Definition, Node, TriggerSpec
from flow.servers import ServerType
from tests import comfyui_double
from tests.engine.servers.double import Double, doubled
from tests.engine.servers.places import CONTENT, PORT_OF_NOBODY, Place

PACE = Pace(first=0.01, slowest=0.05, unknown=0.1)
GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "Gate", "inputs": {"source": ["1", 0], "name": "unset"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}


def definition(graph: dict[str, Any] = GRAPH, **parameters: Any) -> Definition:
    """A workflow of one prompt."""
    node = Node("prompt", "comfyui/prompt", parameters={"graph": graph, **parameters})
    return Definition("comfy", (TriggerSpec("manual", "manual"),), (node,), parameters={"seed": 7})


class ComfyPlace(Place):
    """The double, and something else that answers in its place."""

    bad_locators = [
        {"filename": "../../etc/passwd", "subfolder": "", "type": "output"},
        {"filename": "none.png", "subfolder": "", "type": "output"},
        {"filename": 7, "subfolder": "", "type": "output"},
        {},
    ]

    def __init__(self, engine: Engine, folder: Path, double: comfyui_double.ComfyUI, other: Double) -> None:
        self.engine = engine
        self.folder = folder
        self.double = double
        self.other = other

    def _client(self, url: str) -> ServerClient:
        address = ServerAddress("srv-1", LOCAL.project_id, "there", ServerType.COMFYUI, url, 5)
        return Comfy(address, self.engine.runner.surroundings.outbound.server_client, PACE)

    def client(self) -> ServerClient:
        return self._client(self.double.url)

    def faulty(self, fault: str) -> ServerClient:
        self.other.fault = fault
        return self._client(self.other.url)

    def gone(self) -> ServerClient:
        return self._client(PORT_OF_NOBODY)

    def work(self, id: str) -> Work:
        file = self.folder / f"{id}.png"
        file.write_bytes(CONTENT)
        asked = definition(input_mapping={"1.inputs.image": "file", "2.inputs.name": "$.gate"})
        given = {"file_path": str(file), "gate": id}
        return Work(id, LOCAL.project_id, "wf-1", "wfv-1", asked, given, file)

    async def started(self, id: str, ref: str) -> None:
        await self.double.until(lambda: prompt_id(id) in self.double.begun)

    async def finish(self, id: str, ref: str) -> None:
        self.double.gate_of(id).set()

    async def fail(self, id: str, ref: str) -> None:
        self.double.failing[id] = self.reason
        self.double.gate_of(id).set()

    async def count(self) -> int:
        return len(self.double.begun)

    def check_output(self, output: Any) -> None:
        [file] = output["files"]
        assert (file["node"], file["key"]) == ("9", "images")


async def comfyui(engine: Engine, folder: Path, stack: AsyncExitStack) -> ComfyPlace:
    double = await stack.enter_async_context(comfyui_double.served(comfyui_double.ComfyUI()))
    return ComfyPlace(engine, folder, double, await stack.enter_async_context(doubled()))
