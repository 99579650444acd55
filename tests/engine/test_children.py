"""Child instances: started with their parent's event, ended into it, and stopped with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from db.store.keyset import All
from engine import drive
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.errors import StorageUnavailable
from tests.engine.conftest import document, engine_on, history, started, types
from tests.engine.following import resting, row, until
from tests.engine.nodes import gate


def calls(workflow: str, **parameters: Any) -> dict[str, Any]:
    """A node that starts a child."""
    return {"id": "child", "type": "core/workflow", "parameters": {"workflow": workflow, **parameters}}


async def child_of(engine: Engine, instance_id: str, path: str = "child") -> str:
    """The child that the node waits for, once it does."""
    waiting = await until(engine, instance_id, e.NodeWaiting, path)
    assert isinstance(waiting.awaited, e.ForChild)
    return waiting.awaited.instance_id


def behind(name: str) -> dict[str, Any]:
    """A workflow of one gate."""
    return document([{"id": "g", "type": "test/gate", "parameters": {"gate": name}}], name=name)


async def instances_of(engine: Engine, workflow: str) -> int:
    def count(connection: Connection) -> int:
        query = "SELECT count(*) FROM instances i JOIN workflows w ON w.id = i.workflow_id WHERE w.name = :name"
        return int(connection.execute(text(query), {"name": workflow}).scalar_one())

    return await engine.database.read(count)


async def failure_of(engine: Engine, instance_id: str) -> tuple[str, str]:
    """The code and the message that the run failed with."""
    last = (await history(engine, instance_id))[-1].event
    assert isinstance(last, e.InstanceFailed)
    return last.error.code, last.error.message


async def test_a_child_runs_with_the_given_input_and_gives_its_output(engine: Engine) -> None:
    """The parent holds no lease meanwhile; child and parent know each other."""
    entered, go = gate("plain-child")
    await engine.workflows.create(LOCAL, behind("plain-child"))
    parent = await started(engine, document([calls("plain-child", input={"x": "{{ n }}"})]), input={"n": 7}, priority=8)
    child = await child_of(engine, parent)
    await entered.wait()
    await resting(engine, parent)
    found = await row(engine, child)
    assert (found["parent_id"], found["parent_path"], found["input"], found["priority"]) == (
        parent,
        "child",
        '{"x":7}',
        8,
    )
    go.set()
    events = await history(engine, parent)
    assert types(events)[2:] == [
        "node.started child",
        "node.waiting child",
        "child.ended",
        "node.completed child",
        "instance.completed",
    ]
    assert events[-1].event == e.InstanceCompleted(output={"child": {"g": {"passed": "plain-child"}}})


async def test_a_child_that_fails_fails_its_node(engine: Engine) -> None:
    """The node's failure tells of the child's."""
    await engine.workflows.create(
        LOCAL, document([{"id": "f", "type": "core/fail", "parameters": {"message": "broken"}}], name="fails")
    )
    code, message = await failure_of(engine, await started(engine, document([calls("fails")])))
    assert "broken" in message
    assert code


async def test_without_wait_the_node_gives_the_childs_id_at_once(engine: Engine) -> None:
    """The parent completes while the child runs on, and its completion stops nobody."""
    entered, go = gate("no-wait")
    await engine.workflows.create(LOCAL, behind("no-wait"))
    events = await history(engine, await started(engine, document([calls("no-wait", wait=False)])))
    assert isinstance(events[-1].event, e.InstanceCompleted)
    child = events[-1].event.output["child"]["instance_id"]
    await entered.wait()
    go.set()
    assert types(await history(engine, child))[-1] == "instance.completed"


async def test_cancelling_a_parent_cancels_its_children_and_theirs(engine: Engine) -> None:
    """Down to the last of them, unless they are abandoned."""
    entered, _ = gate("grandchild")
    kept_entered, kept_go = gate("kept")
    await engine.workflows.create(LOCAL, behind("grandchild"))
    await engine.workflows.create(LOCAL, behind("kept"))
    await engine.workflows.create(LOCAL, document([calls("grandchild")], name="middle"))
    abandoned = {**calls("kept", on_parent_end="abandon"), "id": "kept"}
    parent = await started(engine, document([calls("middle"), abandoned]))
    middle = await child_of(engine, parent)
    kept = await child_of(engine, parent, "kept")
    await entered.wait()
    await kept_entered.wait()
    grandchild = await child_of(engine, middle)
    await engine.instances.cancel(LOCAL, parent)
    for id in (parent, middle, grandchild):
        assert types(await history(engine, id))[-1] == "instance.canceled"
    kept_go.set()
    assert types(await history(engine, kept))[-1] == "instance.completed"


async def test_a_parent_that_fails_cancels_the_children_it_did_not_wait_for(engine: Engine) -> None:
    """An early end is an early end, however it came about."""
    await engine.workflows.create(LOCAL, behind("left-behind"))
    fails = {"id": "f", "type": "core/fail", "parameters": {"message": "x"}}
    definition = document([calls("left-behind", wait=False), fails], [{"source": "child", "target": "f"}])
    events = await history(engine, await started(engine, definition))
    assert types(events)[-1] == "instance.failed"
    done = next(r.event for r in events if isinstance(r.event, e.NodeCompleted))
    assert types(await history(engine, done.output["instance_id"]))[-1] == "instance.canceled"


async def test_a_workflow_that_starts_itself_is_refused(engine: Engine) -> None:
    """Directly, or through another: WORKFLOW_CYCLE, and nothing was started."""
    code, message = await failure_of(engine, await started(engine, document([calls("test")])))
    assert code == "WORKFLOW_CYCLE"
    assert "loop" in message
    await engine.workflows.create(LOCAL, document([calls("outer")], name="inner"))
    parent = await started(engine, document([calls("inner")], name="outer"))
    await history(engine, parent)
    code, _ = await failure_of(engine, await child_of(engine, parent))
    assert code == "WORKFLOW_CYCLE"
    assert await instances_of(engine, "outer") == 1


async def test_children_nest_sixteen_deep(engine: Engine) -> None:
    """The seventeenth is refused: CHILD_TOO_DEEP."""
    await engine.workflows.create(LOCAL, document([{"id": "end", "type": "core/noop"}], name="level-18"))
    for level in range(17, 0, -1):
        await engine.workflows.create(LOCAL, document([calls(f"level-{level + 1}")], name=f"level-{level}"))
    started_at = await engine.instances.start(LOCAL, workflow_name="level-2", input=None)
    assert types(await history(engine, started_at.instance_id))[-1] == "instance.completed"
    too_deep = await engine.instances.start(LOCAL, workflow_name="level-1", input=None)
    assert types(await history(engine, too_deep.instance_id))[-1] == "instance.failed"
    assert await instances_of(engine, "level-18") == 1


async def test_what_can_not_be_started_fails_the_node(engine: Engine) -> None:
    """No such workflow, no such version, the wrong input, a workflow that may not be run."""
    needs = document(
        [{"id": "a", "type": "core/noop"}], name="needs", input_schema={"type": "object", "required": ["x"]}
    )
    made = await engine.workflows.create(LOCAL, needs)
    codes = []
    for number, parameters in enumerate(
        ({"workflow": "nobody"}, {"workflow": "needs", "version": "9.9.9"}, {"workflow": "needs", "input": {}})
    ):
        node = {"id": "child", "type": "core/workflow", "parameters": parameters}
        codes.append((await failure_of(engine, await started(engine, document([node], name=f"p{number}"))))[0])
    await engine.workflows.archive(LOCAL, made.workflow_id)
    codes.append((await failure_of(engine, await started(engine, document([calls("needs")], name="p9"))))[0])
    assert codes == ["CHILD_NOT_FOUND", "CHILD_NOT_FOUND", "CHILD_INVALID", "CHILD_NOT_RUNNABLE"]
    assert await instances_of(engine, "needs") == 0


async def test_a_child_gives_a_large_output_through_the_artifact_store(engine: Engine) -> None:
    """The letter and the events carry a reference; the parent's nodes see the value."""
    large = document([{"id": "l", "type": "test/large", "parameters": {"size": 100_000}}], name="large")
    await engine.workflows.create(LOCAL, large)
    shrink = {"id": "s", "type": "core/transform", "parameters": {"output": "{{ length(l.text) }}"}}
    definition = document([calls("large"), shrink], [{"source": "child", "target": "s"}])
    events = await history(engine, await started(engine, definition))
    assert events[-1].event == e.InstanceCompleted(output={"s": 100_000})
    ended = next(recorded.event for recorded in events if isinstance(recorded.event, e.ChildEnded))
    assert ended.output is None
    assert ended.artifact is not None


async def test_a_child_in_each_iteration(engine: Engine) -> None:
    """A loop of children keeps the order of its items."""
    double = {"id": "d", "type": "core/transform", "parameters": {"output": "{{ n }}"}}
    await engine.workflows.create(LOCAL, document([double], name="double"))
    loop = {
        "id": "each",
        "type": "core/loop",
        "parameters": {
            "items": "input.items",
            "concurrency": 3,
            "body": {"nodes": [calls("double", input={"n": "{{ item }}"})], "edges": []},
        },
    }
    events = await history(engine, await started(engine, document([loop]), input={"items": list(range(10))}))
    assert isinstance(events[-1].event, e.InstanceCompleted)
    assert events[-1].event.output["each"]["items"] == [{"d": n} for n in range(10)]


async def test_a_child_is_neither_lost_nor_doubled_by_a_restart(tmp_path: Path) -> None:
    """The parent that died while its child ran goes on when the child ends, in another process."""
    _, go = gate("restart-child")
    async with engine_on(tmp_path) as engine:
        await engine.workflows.create(LOCAL, behind("restart-child"))
        parent = await started(engine, document([calls("restart-child")]))
        child = await child_of(engine, parent)
    async with engine_on(tmp_path) as engine:
        go.set()
        assert types(await history(engine, parent))[-1] == "instance.completed"
        assert (await row(engine, child))["status"] == "COMPLETED"
        assert await instances_of(engine, "restart-child") == 1


async def test_many_parents_and_children_end_whoever_is_faster(engine: Engine) -> None:
    """200 parents cancelled while their children end: everybody ends once, nobody waits for ever."""
    await engine.workflows.create(LOCAL, document([{"id": "n", "type": "core/noop"}], name="quick"))
    parents = [await started(engine, document([calls("quick")])) for _ in range(200)]
    await engine.instances.cancel_many(LOCAL, All())
    ends = await asyncio.gather(*(history(engine, id) for id in parents))
    assert {types(events)[-1] for events in ends} <= {"instance.completed", "instance.canceled"}

    def open_(connection: Connection) -> int:
        return int(connection.execute(text("SELECT count(*) FROM instances WHERE completed_at IS NULL")).scalar_one())

    async with asyncio.timeout(10):
        while await engine.database.read(open_):  # noqa: ASYNC110  (children end after their parents)
            await asyncio.sleep(0.005)


async def test_a_child_is_made_when_the_database_can_be_asked_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs beside goes on meanwhile, and may end in that very moment."""
    _, go = gate("beside")
    monkeypatch.setattr(drive, "READ_AGAIN_S", 0.01)
    await engine.workflows.create(LOCAL, document([{"id": "a", "type": "core/noop"}], name="late"))
    create, refusals = engine.executor.children.create, iter(range(3))

    async def refuses(*call: Any) -> Any:
        if next(refusals, None) is not None:
            raise StorageUnavailable("Not now.")
        go.set()
        while any("beside" in each._attempts for each in engine.executor._drives.values()):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0)
        return await create(*call)

    monkeypatch.setattr(engine.executor.children, "create", refuses)
    beside = {"id": "beside", "type": "test/gate", "parameters": {"gate": "beside"}}
    kinds = types(await history(engine, await started(engine, document([calls("late"), beside]))))
    assert kinds[-1] == "instance.completed"
    assert "node.lost beside" not in kinds
