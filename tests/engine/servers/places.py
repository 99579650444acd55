"""A server of each type, with the means to decide what becomes of its work, for the contract's tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from engine.access import LOCAL
from engine.engine import Engine
from engine.nodes.contract import Context, NodeError, node, node_type
from engine.servers.contract import ServerAddress, ServerClient, Work
from engine.servers.http import Http
from engine.servers.mirrorflow import Mirrorflow
from engine.servers.registry import opens
from flow.definition import Definition
from flow.errors import Category
from flow.servers import ServerType
from mirrorflow import embedded, settings
from mirrorflow.observability import metrics_registry
from tests.engine.conftest import document, engine_on
from tests.engine.nodes import gate
from tests.engine.servers.double import doubled
from tests.graph.serving import served

PORT_OF_NOBODY = "http://127.0.0.1:1"
CONTENT = b"\x89PNG of a picture"
REASON = "the picture is upside down"


def ignored(fraction: float | None, message: str) -> None:
    """What is told on the way."""


class Place(ABC):
    """A server. ``work`` makes work that goes on until the test says ``finish`` or ``fail``."""

    content = CONTENT
    reason = REASON
    unknown = "nobody"
    bad_locators: list[dict[str, Any]] = []

    @abstractmethod
    def client(self) -> ServerClient:
        """A client made anew, as after a restart."""

    @abstractmethod
    def work(self, id: str) -> Work:
        """Work that gives one file."""

    @abstractmethod
    async def started(self, id: str, ref: str) -> None:
        """Returns when the server has begun with the work."""

    @abstractmethod
    async def finish(self, id: str, ref: str) -> None:
        """The work is done."""

    @abstractmethod
    async def fail(self, id: str, ref: str) -> None:
        """The work fails, for ``reason``."""

    @abstractmethod
    async def count(self) -> int:
        """How many works the server has begun."""

    @abstractmethod
    def check_output(self, output: Any) -> None:
        """Asserts that it is what a finished work gives."""

    def faulty(self, fault: str) -> ServerClient:
        """A client of a server of this type that has this fault (see ``Double``)."""
        raise NotImplementedError

    def gone(self) -> ServerClient:
        """A client of a server that does not listen."""
        raise NotImplementedError


# ---- Mirrorflow: this engine, and another one -----------------------------------------------------------------


@node("test/decided", title="Ends as the test decides")
async def decided(ctx: Context[Any]) -> Any:
    """Waits for the gate named in its parameters; fails if the gate `<name>!` is open too."""
    name = ctx.parameters["gate"]
    entered, go = gate(name)
    entered.set()
    await go.wait()
    if gate(f"{name}!")[1].is_set():
        raise NodeError(REASON, category=Category.VALIDATION)
    artifact = ctx.artifacts.put_bytes(CONTENT, "image/png")
    return {"artifact": artifact.id, "sha256": artifact.sha256, "size": artifact.size, "media_type": "image/png"}


DECIDED = node_type(decided)
DOCUMENT = document(
    [{"id": "wait", "type": "test/decided", "parameters": {"gate": "{{ gate }}"}, "retry": {"max": 0}}],
    name="decided",
    input_schema={"type": "object", "properties": {"gate": {"type": "string"}}, "required": ["gate"]},
)


class _Instances(Place):
    """Work is an instance whose node waits for a gate of the test."""

    unknown = "inst-unknown"
    bad_locators = [{"artifact": "art-none"}, {"artifact": "../../etc/passwd"}, {"path": "/etc/passwd"}, {}]

    def __init__(self, engine: Engine, runs_on: Engine) -> None:
        self.engine = engine
        self.runs_on = runs_on
        self.workflow_id = self.version_id = ""
        self.definition: Definition | None = None

    async def prepare(self) -> None:
        """The workflow is stored in the engine that gives the work."""
        found = await self.engine.workflows.named(LOCAL, "decided")
        if found is None:
            await self.engine.workflows.create(LOCAL, DOCUMENT)
            found = await self.engine.workflows.named(LOCAL, "decided")
        assert found is not None
        self.workflow_id, self.version_id = found.id, found.current_version_id or ""
        self.definition = (await self.engine.workflows.version(self.version_id)).definition

    def work(self, id: str) -> Work:
        assert self.definition is not None
        place = LOCAL.project_id
        return Work(id, place, self.workflow_id, self.version_id, self.definition, {"gate": f"{id}-{self.key}"})

    @property
    def key(self) -> str:
        return type(self).__name__

    async def started(self, id: str, ref: str) -> None:
        await gate(f"{id}-{self.key}")[0].wait()

    async def finish(self, id: str, ref: str) -> None:
        gate(f"{id}-{self.key}")[1].set()

    async def fail(self, id: str, ref: str) -> None:
        gate(f"{id}-{self.key}!")[1].set()
        gate(f"{id}-{self.key}")[1].set()

    async def count(self) -> int:
        return await self.runs_on.database.read(_instances)

    def check_output(self, output: Any) -> None:
        assert output["wait"]["media_type"] == "image/png", output


def _instances(conn: Any) -> int:
    from sqlalchemy import func, select

    from db.models import Instance

    return int(conn.execute(select(func.count()).select_from(Instance)).scalar_one())


class LocalPlace(_Instances):
    """This engine."""

    def client(self) -> ServerClient:
        engine = self.engine
        make = opens(
            engine.database,
            engine.instances,
            engine.streams,
            engine.workflows.version,
            engine.runner.surroundings,
            engine.storage_check,
        )[ServerType.LOCAL]
        return make(address(ServerType.LOCAL, "http://localhost"))


async def local(engine: Engine, folder: Path, stack: AsyncExitStack) -> Place:
    assert DECIDED is not None
    engine.registry.add(DECIDED)
    place = LocalPlace(engine, engine)
    await place.prepare()
    return place


class MirrorflowPlace(_Instances):
    """Another engine, with its whole HTTP application."""

    def __init__(self, engine: Engine, other: Engine, url: str, token: str, double: Any) -> None:
        super().__init__(engine, other)
        self.url = url
        self.token = token
        self.double = double

    def client(self, token: str | None = None) -> ServerClient:
        return self._client(self.url, token or self.token)

    def _client(self, url: str, token: str) -> ServerClient:
        around = self.engine.runner.surroundings
        return Mirrorflow(address(ServerType.MIRRORFLOW, url, token), around.outbound.server_client, around.files)

    def faulty(self, fault: str) -> ServerClient:
        self.double.fault = fault
        return self._client(self.double.url, "x" * 20)

    def gone(self) -> ServerClient:
        return self._client(PORT_OF_NOBODY, "x" * 20)


async def mirrorflow(engine: Engine, folder: Path, stack: AsyncExitStack) -> MirrorflowPlace:
    assert DECIDED is not None
    if engine.registry.get(DECIDED.name) is None:
        engine.registry.add(DECIDED)
    there = folder / "other"
    there.mkdir()
    other = await stack.enter_async_context(engine_on(there))
    other.registry.add(DECIDED)
    token = await other.access.token_create(LOCAL, "batch", ["editor"])
    app = embedded._application(settings.load(data_dir=there), other, metrics_registry())
    url = await stack.enter_async_context(served(app))
    place = MirrorflowPlace(engine, other, url, token.text, await stack.enter_async_context(doubled()))
    await place.prepare()
    return place


# ---- HTTP -----------------------------------------------------------------------------------------------------


class HttpPlace(Place):
    """The double."""

    bad_locators = [{"path": None}, {"path": "/files/none"}, {"path": "//evil/x"}, {"path": "http://evil/x"}, {}]

    def __init__(self, engine: Engine, double: Any, other: Any) -> None:
        self.engine = engine
        self.double = double
        self.other = other
        self.clients: list[Http] = []

    def _client(self, url: str) -> ServerClient:
        client = Http(address(ServerType.HTTP, url), self.engine.runner.surroundings.outbound.server_client)
        self.clients.append(client)
        return client

    def client(self) -> ServerClient:
        return self._client(self.double.url)

    def work(self, id: str) -> Work:
        definition = Definition("any", (), ())
        return Work(id, LOCAL.project_id, "wf-1", "wfv-1", definition, {"n": id})

    async def started(self, id: str, ref: str) -> None:
        assert id in self.double.works

    async def finish(self, id: str, ref: str) -> None:
        self.double.files["a.png"] = CONTENT
        files = [{"name": "../../a.png", "url": "/files/a.png", "media_type": "image/png", "size": len(CONTENT)}]
        self.double.finish(id, {"n": id}, files)

    async def fail(self, id: str, ref: str) -> None:
        self.double.fail(id, {"code": "UPSIDE_DOWN", "message": REASON})

    async def count(self) -> int:
        return len(self.double.works)

    def check_output(self, output: Any) -> None:
        assert output == {"n": "w1"}

    def faulty(self, fault: str) -> ServerClient:
        self.other.fault = fault
        return self._client(self.other.url)

    def gone(self) -> ServerClient:
        return self._client(PORT_OF_NOBODY)

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


async def http(engine: Engine, folder: Path, stack: AsyncExitStack) -> HttpPlace:
    double, other = await stack.enter_async_context(doubled()), await stack.enter_async_context(doubled())
    place = HttpPlace(engine, double, other)
    stack.push_async_callback(place.close)
    return place


def address(kind: ServerType, url: str, token: str | None = None) -> ServerAddress:
    """A server ``there``."""
    return ServerAddress("srv-1", LOCAL.project_id, "there", kind, url, 5, token)


async def comfyui(engine: Engine, folder: Path, stack: AsyncExitStack) -> Place:
    from tests.engine.servers.comfy import comfyui

    return await comfyui(engine, folder, stack)


PLACES: Mapping[str, Callable[[Engine, Path, AsyncExitStack], Awaitable[Place]]] = {
    "local": local,
    "http": http,
    "mirrorflow": mirrorflow,
    "comfyui": comfyui,
}
