"""Forks: a new run from a point of an old one, with what was known by then."""

from __future__ import annotations

from typing import Any

import pytest

from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.errors import Conflict, Invalid, NotFound
from tests.engine.conftest import document, history, started, types
from tests.engine.following import row


def sums() -> dict[str, Any]:
    """a > b > c, each adding its name to the path that it got."""
    nodes = [
        {"id": id, "type": "core/transform", "parameters": {"output": {"path": f"{{{{ {source} }}}}-{id}"}}}
        for id, source in (("a", "start"), ("b", "path"), ("c", "path"))
    ]
    return document(nodes, [{"source": "a", "target": "b"}, {"source": "b", "target": "c"}])


async def ended(engine: Engine, instance_id: str) -> tuple[list[str], Any]:
    """Which nodes really started, and the output."""
    events = await history(engine, instance_id)
    last = events[-1].event
    begun = [recorded.event.path for recorded in events if isinstance(recorded.event, e.NodeStarted)]
    return begun, last.output if isinstance(last, e.InstanceCompleted) else last


async def test_a_fork_at_a_node_keeps_what_was_before_it(engine: Engine) -> None:
    """Only the node and what follows it run; the rest is as it was, and says ``cached``."""
    old = await started(engine, sums(), input={"start": "x"})
    assert await ended(engine, old) == (["a", "b", "c"], {"c": {"path": "x-a-b-c"}})
    fork = await engine.instances.fork(LOCAL, old, node="b")
    assert await ended(engine, fork.instance_id) == (["b", "c"], {"c": {"path": "x-a-b-c"}})
    completed = [r.event for r in await history(engine, fork.instance_id) if isinstance(r.event, e.NodeCompleted)]
    assert [event.cached for event in completed] == [True, False, False]
    assert (await row(engine, fork.instance_id))["fork_of"] == old


async def test_a_fork_with_other_pins_input_and_parameters(engine: Engine) -> None:
    """A pin stands for the node's own output; what was completed keeps the old input's result."""
    old = await started(engine, sums(), input={"start": "x"})
    await history(engine, old)
    pinned = await engine.instances.fork(LOCAL, old, node="c", pins={"b": {"path": "given"}})
    assert await ended(engine, pinned.instance_id) == (["c"], {"c": {"path": "given-c"}})
    from_start = await engine.instances.fork(LOCAL, old, seq=1, input={"start": "y"})
    assert await ended(engine, from_start.instance_id) == (["a", "b", "c"], {"c": {"path": "y-a-b-c"}})


async def test_a_fork_of_a_failed_run_on_another_version(engine: Engine) -> None:
    """The repaired version goes on where the old one failed, and a node that it no longer has is left out."""
    broken = sums()
    broken["nodes"][2] = {"id": "c", "type": "core/fail", "parameters": {"message": "broken"}}
    old = await started(engine, broken, input={"start": "x"})
    assert types(await history(engine, old))[-1] == "instance.failed"
    workflow = (await row(engine, old))["workflow_id"]
    current = (await engine.workflows.get(LOCAL, workflow)).current_version_id
    assert current is not None
    await engine.workflows.update(LOCAL, workflow, document=sums(), base_version_id=current)
    repaired = (await engine.workflows.get(LOCAL, workflow)).current_version_id
    fork = await engine.instances.fork(LOCAL, old, version_id=repaired)
    assert await ended(engine, fork.instance_id) == (["c"], {"c": {"path": "x-a-b-c"}})


async def test_a_fork_of_a_fork(engine: Engine) -> None:
    """What the first fork had pinned and passed is pinned again."""
    old = await started(engine, sums(), input={"start": "x"})
    await history(engine, old)
    first = await engine.instances.fork(LOCAL, old, node="b", pins={"a": {"path": "A"}})
    assert (await ended(engine, first.instance_id))[1] == {"c": {"path": "A-b-c"}}
    second = await engine.instances.fork(LOCAL, first.instance_id, node="c")
    assert await ended(engine, second.instance_id) == (["c"], {"c": {"path": "A-b-c"}})


async def test_a_fork_keeps_a_finished_loop_as_one(engine: Engine) -> None:
    """Its iterations are not run again, nor pinned one by one; those of an unfinished loop are."""
    body = {"nodes": [{"id": "t", "type": "core/transform", "parameters": {"output": "{{ item }}"}}], "edges": []}
    loop = {"id": "each", "type": "core/loop", "parameters": {"items": "input.items", "body": body}}
    definition = document([loop, {"id": "end", "type": "core/noop"}], [{"source": "each", "target": "end"}])
    old = await started(engine, definition, input={"items": [1, 2, 3]})
    events = await history(engine, old)
    fork = await engine.instances.fork(LOCAL, old, node="end")
    created = (await history(engine, fork.instance_id))[0].event
    assert isinstance(created, e.InstanceCreated)
    assert [pin.path for pin in created.pins] == ["each"]
    assert (await ended(engine, fork.instance_id))[0] == ["end"]
    middle = next(r.seq for r in events if isinstance(r.event, e.NodeCompleted) and r.event.path == "each[1]/t")
    half = await engine.instances.fork(LOCAL, old, seq=middle)
    begun, output = await ended(engine, half.instance_id)
    assert begun == ["each", "each[2]/t", "end"]
    assert output == {"end": {"items": [1, 2, 3], "failed": []}}


async def test_a_large_output_is_pinned_as_it_was(engine: Engine) -> None:
    """What is in the artifact store is part of the new run."""
    nodes = [{"id": "l", "type": "test/large", "parameters": {"size": 100_000}}]
    nodes.append({"id": "s", "type": "core/transform", "parameters": {"output": "{{ length(text) }}"}})
    old = await started(engine, document(nodes, [{"source": "l", "target": "s"}]))
    await history(engine, old)
    fork = await engine.instances.fork(LOCAL, old, node="s")
    assert await ended(engine, fork.instance_id) == (["s"], {"s": 100_000})


async def test_what_can_not_be_forked_is_refused(engine: Engine) -> None:
    """No such event, no such node, one that never started, both at once, an unknown pin, somebody else's version."""
    definition = sums()
    definition["edges"][1]["condition"] = "`false`"
    old = await started(engine, definition, input={"start": "x"})
    length = len(await history(engine, old))
    for seq in (0, -1, length + 1):
        with pytest.raises(NotFound, match="event"):
            await engine.instances.fork(LOCAL, old, seq=seq)
    with pytest.raises(NotFound):
        await engine.instances.fork(LOCAL, old, node="z")
    with pytest.raises(Conflict, match="never started"):
        await engine.instances.fork(LOCAL, old, node="c")
    with pytest.raises(Invalid):
        await engine.instances.fork(LOCAL, old, seq=1, node="a")
    with pytest.raises(Invalid) as refusal:
        await engine.instances.fork(LOCAL, old, pins={"aa": 1})
    assert refusal.value.problems[0].pointer == "/pins/0/path"
    other = await engine.workflows.create(LOCAL, document([{"id": "x", "type": "core/noop"}], name="other"))
    version = (await engine.workflows.get(LOCAL, other.workflow_id)).current_version_id
    with pytest.raises(NotFound):
        await engine.instances.fork(LOCAL, old, version_id=version)
    with pytest.raises(NotFound):
        await engine.instances.fork(LOCAL, "inst-none")
    await engine.workflows.archive(LOCAL, (await row(engine, old))["workflow_id"])
    with pytest.raises(Conflict, match="ARCHIVED"):
        await engine.instances.fork(LOCAL, old)
