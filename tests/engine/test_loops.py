"""Loops through the whole engine: what is stored of them, and what isn't kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from tests.engine.conftest import document, engine_on, history, started


def loop(body: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return {"id": "loop", "type": "core/loop", "parameters": {"body": {"nodes": body}, **parameters}}


async def test_a_loop_that_only_decides_is_stored_in_pieces(engine: Engine) -> None:
    """Thousands of iterations without a handler neither block the server nor make one huge append."""
    decide = {"id": "if", "type": "core/condition", "parameters": {"cases": [{"name": "even", "when": "item"}]}}
    id = await started(
        engine, document([loop([decide], items="input.list", concurrency=10)]), input={"list": [1] * 1500}
    )
    events = await history(engine, id)
    assert isinstance(events[-1].event, e.InstanceCompleted)
    assert len(events) > 3_000


async def test_a_large_output_of_a_loop_goes_to_the_artifact_store(tmp_path: Path) -> None:
    """The event carries the reference; a new process goes on with the value."""
    async with engine_on(tmp_path) as engine:
        large = {"id": "l", "type": "test/large", "parameters": {"size": 30_000}}
        wait = {"id": "wait", "type": "core/wait-signal", "parameters": {"name": "go"}}
        take = {"id": "take", "type": "core/transform", "parameters": {"output": "{{ length(nodes.loop.items) }}"}}
        edges = [{"source": "loop", "target": "wait"}, {"source": "wait", "target": "take"}]
        definition = document([loop([large], items="input.list"), wait, take], edges)
        id = await started(engine, definition, input={"list": [1, 2, 3]})
        async for recorded in engine.streams.events(LOCAL, id):
            if isinstance(recorded.event, e.NodeCompleted) and recorded.event.path == "loop":
                assert recorded.event.artifact is not None
                assert recorded.event.output is None
            if isinstance(recorded.event, e.NodeWaiting):
                break
    async with engine_on(tmp_path) as engine:
        await engine.instances.signal(LOCAL, id, "go", None)
        events = await history(engine, id)
        assert events[-1].event == e.InstanceCompleted(output={"take": 3})
