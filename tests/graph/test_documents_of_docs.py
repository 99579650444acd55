"""``docs/operations`` holds an example of every operation of the schema, and each of them works as it stands there.

A document begins with what it does, as a comment, and with its variables; ``{…}`` in them stands for the id of
something that ``World`` makes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graphql import FieldNode, OperationDefinitionNode, OperationType, parse

from db.store.tasks import tasks
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.servers import ServerType
from flow.states import WorkflowStatus
from flow.tasks import BatchSpec, RunSpec
from graph.schema import build_schema
from tests.engine.conftest import document, history, started
from tests.engine.nodes import gate
from tests.graph.conftest import Asker
from tests.graph.working import files, finished

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
DOCUMENTS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.graphql"))}

HELLO = document(
    [{"id": "greet", "type": "core/transform", "parameters": {"output": {"greeting": "Hello {{ who }}"}}}],
    name="hello",
)


def two(first: dict[str, Any], name: str) -> dict[str, Any]:
    """A node ``a`` and a node ``b`` behind it."""
    return document(
        [{"id": "a", **first}, {"id": "b", "type": "core/noop"}], [{"source": "a", "target": "b"}], name=name
    )


class World:
    """What the examples are about; made when an example asks for it."""

    def __init__(self, engine: Engine, gate: str) -> None:
        self.engine = engine
        self.gate = gate
        self.token: str | None = None

    async def id(self, name: str) -> str:
        """The id of the thing that the examples call by this name."""
        make: Callable[[], Awaitable[str]] = getattr(self, name.replace("-", "_"))
        return await make()

    # -- workflows

    async def workflow(self) -> str:
        known = await self.engine.workflows.named(LOCAL, "hello")
        return known.id if known else (await self.engine.workflows.create(LOCAL, HELLO)).workflow_id

    async def draft(self) -> str:
        return (
            await self.engine.workflows.create(LOCAL, HELLO | {"name": "draft"}, status=WorkflowStatus.DRAFT)
        ).workflow_id

    async def version(self) -> str:
        return (await self.engine.workflows.get(LOCAL, await self.workflow())).current_version_id or ""

    async def newer(self) -> str:
        changed = HELLO | {"description": "greets", "parameters": {"loud": True}}
        made = await self.engine.workflows.update(LOCAL, await self.workflow(), await self.version(), changed)
        return made.version_id or ""

    async def inactive(self) -> str:
        return (await self.engine.workflows.deactivate(LOCAL, await self.workflow())).workflow_id

    async def hidden(self) -> str:
        return (await self.engine.workflows.hide(LOCAL, await self.workflow())).workflow_id

    async def deleted(self) -> str:
        id = await self.workflow()
        await self.engine.workflows.delete(LOCAL, id)
        return id

    # -- runs

    async def done(self) -> str:
        await self.workflow()
        id = await started(self.engine, HELLO, input={"who": "Ada"})
        await history(self.engine, id)
        return id

    async def other(self) -> str:
        id = await started(self.engine, HELLO, input={"who": "Bob"})
        await history(self.engine, id)
        return id

    async def logged(self) -> str:
        node = {"id": "say", "type": "core/log", "parameters": {"message": "hello"}}
        id = await started(self.engine, document([node], name="logged"))
        await history(self.engine, id)
        return id

    async def running(self) -> str:
        entered, _ = gate(self.gate)
        id = await started(self.engine, two({"type": "test/gate", "parameters": {"gate": self.gate}}, "gated"))
        await entered.wait()
        return id

    async def gated_workflow(self) -> str:
        await self.running()
        found = await self.engine.workflows.named(LOCAL, "gated")
        assert found is not None
        return found.id

    async def paused(self) -> str:
        id = await self.running()
        await self.engine.instances.pause(LOCAL, id)
        await self._reached(id, e.InstancePaused)
        return id

    async def waiting(self) -> str:
        node = {"type": "core/wait-signal", "parameters": {"name": "go"}}
        return await self._waits(two(node, "waiting"))

    async def asking(self) -> str:
        form = {"type": "object", "properties": {"amount": {"type": "integer"}}}
        node = {"id": "ask", "type": "core/approval", "parameters": {"title": "Pay this?", "form": form}}
        return await self._waits(document([node], name="asking"))

    async def stopped(self) -> str:
        debug = e.Debug(breakpoints=(e.Breakpoint("b"),))
        id = await started(self.engine, two({"type": "core/noop"}, "debugged"), input={"who": "Ada"}, debug=debug)
        await self._reached(id, e.InstancePaused)
        return id

    async def failed(self) -> str:
        node = {"id": "a", "type": "core/fail", "parameters": {"message": "no"}}
        id = await started(self.engine, document([node], name="failing"))
        await history(self.engine, id)
        return id

    async def failed_node(self) -> str:
        return f"node-{(await self.failed()).removeprefix('inst-')}.a"

    async def failing_workflow(self) -> str:
        await self.failed()
        found = await self.engine.workflows.named(LOCAL, "failing")
        assert found is not None
        return found.id

    # -- workers

    async def worker(self) -> str:
        return self.engine.worker

    # -- servers

    async def server(self) -> str:
        local = await self.engine.servers.named(LOCAL, "local")
        assert local is not None
        return local.id

    async def runner(self) -> str:
        known = await self.engine.servers.named(LOCAL, "runner")
        if known is not None:
            return known.id
        made = await self.engine.servers.register(
            LOCAL, name="runner", url="http://127.0.0.1:9", type=ServerType.HTTP, enabled=False
        )
        return made.server_id

    async def _waits(self, definition: dict[str, Any]) -> str:
        id = await started(self.engine, definition)
        await self._reached(id, e.NodeWaiting)
        return id

    # -- tasks

    async def unstarted(self) -> str:
        spec = RunSpec(type="workflow", workflow_id=await self.workflow(), input={"who": "Ada"})
        return (await self.engine.tasks.create(LOCAL, spec, start=False)).task_id

    async def batch(self) -> str:
        return await self._over_pictures(await self.workflow())

    async def failed_batch(self) -> str:
        return await self._over_pictures(await self.failing_workflow())

    async def execution(self) -> str:
        return await self._execution_of(await self.batch())

    async def held_execution(self) -> str:
        made = await self.engine.tasks.create(LOCAL, RunSpec(type="workflow", workflow_id=await self.gated_workflow()))
        self.token = made.token
        return made.execution_id or ""

    async def held_token(self) -> str:
        return self.token or ""

    async def _over_pictures(self, workflow: str) -> str:
        files(self.engine, "holiday/a.jpg")
        spec = BatchSpec(target_folders=("pictures",), workflow_id=workflow, item_retries=0)
        made = await self.engine.tasks.batch_start(LOCAL, spec)
        await finished(Asker(self.engine), made.task_id)
        return made.task_id

    async def _execution_of(self, task: str) -> str:
        rows = await self.engine.database.read(tasks, LOCAL.project_id, [task])
        return str(rows[task].execution_id)

    async def _reached(self, id: str, kind: type[e.Event]) -> None:
        async for recorded in self.engine.streams.events(LOCAL, id):
            if isinstance(recorded.event, kind):
                return


def operation(text: str) -> OperationDefinitionNode:
    [found] = [node for node in parse(text).definitions if isinstance(node, OperationDefinitionNode)]
    return found


async def variables_of(text: str, world: World) -> dict[str, Any]:
    """The variables in the document's first comment, with the ids of what they name."""
    comment = "\n".join(line.removeprefix("#").strip() for line in text.split("\n\n", 1)[0].splitlines())
    _, _, written = comment.partition("Variables:")
    for name in dict.fromkeys(re.findall(r"\"\{([\w-]+)\}\"", written)):
        written = written.replace(f"{{{name}}}", await world.id(name))
    return json.loads(written) if written else {}


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_the_example_works(ask: Asker, name: str) -> None:
    """It is answered without an error, and by what was asked for, not by a refusal."""
    text = DOCUMENTS[name]
    asked = operation(text)
    async with asyncio.timeout(20):
        world = World(ask.engine, gate=f"docs-{name}")
        await world.workflow()
        files(ask.engine, "holiday/a.jpg")
        variables = await variables_of(text, world)
    if asked.operation is OperationType.SUBSCRIPTION:
        stream = ask.stream(text, **variables)
        data = await anext(stream)
        await stream.aclose()
    else:
        data = await ask(text, **variables)
    answer = data[name]
    assert answer is not None
    if isinstance(answer, dict) and "__typename" in answer and asked.operation is OperationType.MUTATION:
        assert answer["__typename"].endswith("Payload"), answer


def root_fields() -> Iterator[str]:
    schema = build_schema()._schema
    for kind in (schema.query_type, schema.mutation_type, schema.subscription_type):
        assert kind is not None
        yield from kind.fields


def test_every_operation_has_an_example() -> None:
    """A file by the name of each root field, which asks for that field, says what it is for, and no file besides."""
    assert list(DOCUMENTS) == sorted(root_fields())
    for name, text in DOCUMENTS.items():
        [selection] = operation(text).selection_set.selections
        assert isinstance(selection, FieldNode)
        assert selection.name.value == name
        assert text.startswith("# ")
