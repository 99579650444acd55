"""Instances on a real engine and a real database: they run, they survive, they are watched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from db.session import connect
from db.store import leases
from engine import executor
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.errors import Conflict, Invalid, NotFound, StorageUnavailable
from flow.states import InstanceStatus
from tests.engine.conftest import chain, document, engine_on, history, started, types
from tests.engine.nodes import gate


async def test_a_chain_runs_node_by_node(engine: Engine) -> None:
    """Each node starts when the one before it is done, and the instance's output is the last one's."""
    events = await history(engine, await started(engine, chain("core/noop", "core/noop"), input={"x": 1}))
    assert types(events) == [
        "instance.created",
        "instance.started",
        "node.started n1",
        "node.completed n1",
        "node.started n2",
        "node.completed n2",
        "instance.completed",
    ]
    assert [recorded.seq for recorded in events] == list(range(1, 8))
    assert events[-1].event == e.InstanceCompleted(output={"n2": {"x": 1}})


async def test_the_rows_say_what_the_events_say(engine: Engine) -> None:
    """instances and node_executions are projections of the events, written with them."""
    id = await started(engine, chain("core/noop", "core/noop"), input={"x": 1})
    await history(engine, id)

    def rows(connection: Connection) -> tuple[Any, Any]:
        instance = connection.execute(text("SELECT status, last_seq, owner, lease_until FROM instances")).one()
        nodes = connection.execute(text("SELECT path, status, attempt FROM node_executions ORDER BY ordinal")).all()
        return tuple(instance), [tuple(node) for node in nodes]

    instance, nodes = await engine.database.read(rows)
    assert instance == ("COMPLETED", 7, None, None)
    assert nodes == [("n1", "COMPLETED", 1), ("n2", "COMPLETED", 1)]


async def test_parameters_are_templates_on_the_scope(engine: Engine) -> None:
    """A node's parameters see its input, the trigger, other nodes and the definition's parameters."""
    definition = document(
        [
            {"id": "a", "type": "core/transform", "parameters": {"output": {"n": "{{ input.n }}"}}},
            {
                "id": "b",
                "type": "core/transform",
                "parameters": {"output": {"text": "{{ greeting }} {{ nodes.a.output.n }}", "n": "{{ n }}"}},
            },
        ],
        [{"source": "a", "target": "b", "mapping": {"n": "$.n", "greeting": "hello"}}],
    )
    events = await history(engine, await started(engine, definition, input={"n": 5}))
    assert events[-1].event == e.InstanceCompleted(output={"b": {"text": "hello 5", "n": 5}})


async def test_a_template_that_finds_nothing_fails_its_node(engine: Engine) -> None:
    """The node fails with EXPRESSION_UNRESOLVED, is not retried, and the instance fails with it."""
    definition = document([{"id": "a", "type": "core/log", "parameters": {"message": "to {{ nobody }}"}}])
    events = await history(engine, await started(engine, definition))
    assert types(events)[2:] == ["node.started a", "node.failed a", "instance.failed"]
    assert isinstance(events[-1].event, e.InstanceFailed)
    assert events[-1].event.error.code == "EXPRESSION_UNRESOLVED"
    assert events[-1].event.error.node_id == "a"


async def test_a_retry_waits_for_its_time_and_keeps_its_key(engine: Engine) -> None:
    """Retries are events with due times; the idempotency key stays the same over them."""
    retry = {"max": 5, "base": "10ms", "jitter": 0}
    definition = document([{"id": "a", "type": "test/flaky", "parameters": {"succeeds_at": 3}, "retry": retry}])
    id = await started(engine, definition)
    events = await history(engine, id)
    assert types(events)[2:] == [
        "node.started a",
        "node.retrying a",
        "node.started a",
        "node.retrying a",
        "node.started a",
        "node.completed a",
        "instance.completed",
    ]
    assert events[-1].event == e.InstanceCompleted(output={"a": {"attempt": 3, "key": f"{id}/a"}})
    for one, other in pairwise(events):
        if isinstance(one.event, e.NodeRetrying):
            assert other.at >= one.event.due


async def test_an_attempt_that_takes_too_long_is_stopped(engine: Engine) -> None:
    """The handler is cancelled for real and the node fails with NODE_TIMEOUT."""
    node = {"id": "a", "type": "test/gate", "parameters": {"gate": "never"}, "timeout": "50ms", "retry": {"max": 0}}
    events = await history(engine, await started(engine, document([node])))
    assert isinstance(events[-1].event, e.InstanceFailed)
    assert events[-1].event.error.code == "NODE_TIMEOUT"


async def test_cancel_stops_a_running_node(engine: Engine) -> None:
    """A running node is cancelled, what comes after it is skipped, and the instance is CANCELED; twice is once."""
    entered, _ = gate("cancelled")
    definition = chain("test/gate", "core/noop")
    definition["nodes"][0]["parameters"] = {"gate": "cancelled"}
    id = await started(engine, definition)
    await entered.wait()
    await asyncio.gather(engine.instances.cancel(LOCAL, id, "enough"), engine.instances.cancel(LOCAL, id))
    events = await history(engine, id)
    assert types(events)[3:] == [
        "instance.cancel_requested",
        "node.canceled n1",
        "node.skipped n2",
        "instance.canceled",
    ]
    with pytest.raises(Conflict, match="CANCELED"):
        await engine.instances.cancel(LOCAL, id)


async def test_the_total_timeout_ends_an_instance(engine: Engine) -> None:
    """Past its timeout an instance stops its nodes and is TIMED_OUT."""
    definition = document([{"id": "a", "type": "test/gate", "parameters": {"gate": "timeout"}}])
    events = await history(engine, await started(engine, definition, timeout=timedelta(milliseconds=100)))
    assert types(events)[-2:] == ["node.canceled a", "instance.timed_out"]


async def test_the_same_idempotency_key_gives_the_same_instance(engine: Engine) -> None:
    """However often and however concurrently: one instance."""
    await engine.workflows.create(LOCAL, chain("core/noop"))
    results = await asyncio.gather(
        *(engine.instances.start(LOCAL, workflow_name="test", input=None, idempotency_key="once") for _ in range(20))
    )
    assert len({result.instance_id for result in results}) == 1
    assert sum(result.created is not None for result in results) == 1


async def test_a_large_output_goes_to_the_artifact_store_and_on(engine: Engine) -> None:
    """The event carries a reference; conditions and mappings downstream still see the value."""
    definition = document(
        [{"id": "a", "type": "test/large", "parameters": {"size": 100_000}}, {"id": "b", "type": "core/noop"}],
        [{"source": "a", "target": "b", "condition": "n == `1`", "mapping": {"length": "$.length(text)"}}],
    )
    events = await history(engine, await started(engine, definition))
    completed = next(r.event for r in events if isinstance(r.event, e.NodeCompleted) and r.event.path == "a")
    assert completed.output is None
    assert completed.artifact is not None
    assert engine.artifacts.read_json(completed.artifact)["n"] == 1
    assert events[-1].event == e.InstanceCompleted(output={"b": {"length": 100_000}})


async def test_a_large_instance_output_goes_to_the_artifact_store(engine: Engine) -> None:
    """The instance's own output too is a reference when it is large."""
    definition = document([{"id": "a", "type": "test/large", "parameters": {"size": 100_000}}])
    events = await history(engine, await started(engine, definition))
    last = events[-1].event
    assert isinstance(last, e.InstanceCompleted)
    assert last.output is None
    assert last.artifact is not None
    assert engine.artifacts.read_json(last.artifact)["a"]["n"] == 1


async def test_what_a_handler_says_is_history(engine: Engine) -> None:
    """Log lines and progress are events, in order; a flood of lines is cut with a word about it."""
    definition = document([{"id": "a", "type": "test/talk", "parameters": {"lines": 1_200}}])
    events = await history(engine, await started(engine, definition))
    lines = [r.event for r in events if isinstance(r.event, e.NodeLog)]
    assert lines[0].message == "line 0"
    assert len(lines) == 1_000
    assert "not kept" in lines[-1].message
    assert any(isinstance(r.event, e.NodeProgress) for r in events)


async def test_an_instance_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    """What ran when the process died is lost and made again; what was committed is not repeated."""
    async with engine_on(tmp_path) as first:
        entered, go = gate("taken over")
        definition = chain("core/noop", "test/gate", "core/noop")
        definition["nodes"][1]["parameters"] = {"gate": "taken over"}
        id = await started(first, definition, input={"x": 1})
        await entered.wait()
        await kill(first)
        go.set()
        async with engine_on(tmp_path) as second:
            events = await history(second, id)
    assert types(events)[4:] == [
        "node.started n2",
        "node.lost n2",
        "node.started n2",
        "node.completed n2",
        "node.started n3",
        "node.completed n3",
        "instance.completed",
    ]
    assert [recorded.seq for recorded in events] == list(range(1, len(events) + 1))


async def kill(engine: Engine) -> None:
    """End an engine as a killed process ends: nothing more is written, nothing given back."""
    executor = engine.executor
    for task in [*executor._tasks, *executor._driving, engine.journal._task]:
        if task is not None:
            task.cancel()
    for drive in executor._drives.values():
        for attempt in drive._attempts.values():
            attempt.cancel()
    executor._fences.clear()
    engine.journal._pending.clear()
    await asyncio.sleep(0)


async def test_an_instance_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    """After two deaths without progress it is tried alone, after three more it is FAILED with POISON; others go on."""
    async with engine_on(tmp_path) as engine:
        entered, _ = gate("poison")
        definition = document(
            [{"id": "a", "type": "test/gate", "parameters": {"gate": "poison"}}, {"id": "b", "type": "core/noop"}]
        )
        id = await started(engine, definition)
        await entered.wait()
        await kill(engine)
    database = connect(f"sqlite:///{tmp_path / 'mirrorflow.db'}")
    for suspects in (False, True, True, True):
        await database.write(leases.expire_all)
        assert await database.write(leases.claim, "doomed", [id], 0.0, suspects=not suspects) == []
        assert len(await database.write(leases.claim, "doomed", [id], 0.0, suspects=suspects)) == 1
    await database.close()
    async with engine_on(tmp_path) as engine:
        events = await history(engine, id)
    assert isinstance(events[-1].event, e.InstanceFailed)
    assert events[-1].event.error.code == "POISON"


async def test_stopping_leaves_an_instance_for_the_next_process(tmp_path: Path) -> None:
    """A node that doesn't finish within the grace is lost, its lease given back, and the next process goes on."""
    async with engine_on(tmp_path) as first:
        entered, go = gate("stopped")
        id = await started(first, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "stopped"}}]))
        await entered.wait()
    go.set()
    async with engine_on(tmp_path) as second:
        events = await history(second, id)
    assert types(events)[2:] == [
        "node.started a",
        "node.lost a",
        "node.started a",
        "node.completed a",
        "instance.completed",
    ]


async def test_runs_that_cant_be_claimed_together_are_claimed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their histories may be too long to be read in the time that a transaction has."""
    monkeypatch.setattr(executor, "MAX_CLAIM", 2)
    async with engine_on(tmp_path) as engine:
        claim = engine.executor._claim

        async def limited(ids: Sequence[str], **options: Any) -> Any:
            if len(ids) > 1:
                raise StorageUnavailable("It takes too long.")
            return await claim(ids, **options)

        monkeypatch.setattr(engine.executor, "_claim", limited)
        monkeypatch.setattr(engine.executor, "accepts", lambda: False)
        definitions = [document([{"id": "a", "type": "core/noop"}], name=f"apart{number}") for number in range(2)]
        engine.executor._space.clear()
        ids = [await started(engine, definition) for definition in definitions]
        engine.executor._space.set()
        for id in ids:
            assert types(await history(engine, id))[-1] == "instance.completed"


async def test_a_worker_that_lost_its_lease_writes_nothing(engine: Engine) -> None:
    """When another worker has claimed the instance, the old holder's facts are refused and its work is dropped."""
    entered, go = gate("usurped")
    await started(engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "usurped"}}]))
    await entered.wait()

    def usurp(connection: Connection) -> None:
        connection.execute(text("UPDATE instances SET fence = fence + 1, owner = 'other'"))

    await engine.database.write(usurp)
    go.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*engine.executor._driving)
    events = await engine.database.read(lambda c: c.execute(text("SELECT max(seq) FROM events")).scalar())
    assert events == 3


async def test_every_subscriber_sees_the_same(engine: Engine) -> None:
    """Early, late, from the middle, slow: the same sequence without gap or duplicate."""
    entered, go = gate("watched-in-engine")
    definition = chain("test/talk", "test/gate", "test/talk")
    definition["nodes"][0]["parameters"] = {"lines": 400}
    definition["nodes"][1]["parameters"] = {"gate": "watched-in-engine"}
    definition["nodes"][2]["parameters"] = {"lines": 900}
    id = await started(engine, definition)

    async def slowly() -> list[e.Recorded]:
        seen = []
        async for recorded in engine.streams.events(LOCAL, id):
            seen.append(recorded)
            if recorded.seq == 3:
                go.set()
                await engine.instances.wait(LOCAL, id, timedelta(seconds=10))
        return seen

    early = asyncio.create_task(history(engine, id))
    slow = asyncio.create_task(slowly())
    await entered.wait()
    middle = [r async for r in engine.streams.events(LOCAL, id, after=200)]
    everything = await early
    assert [r.seq for r in everything] == list(range(1, len(everything) + 1))
    assert await slow == everything
    assert middle == everything[200:]
    assert await history(engine, id) == everything
    assert [r async for r in engine.streams.events(LOCAL, id, after=len(everything))] == []


async def test_changes_tell_of_every_commit_in_the_project(engine: Engine) -> None:
    """The number grows with each change; a listener hears the newest."""
    changes = engine.streams.changes(LOCAL)
    before = await anext(changes)
    id = await started(engine, chain("core/noop"))
    events = await history(engine, id)
    async with asyncio.timeout(5):
        async for number in changes:
            if number >= events[-1].change_seq:
                break
    await changes.aclose()  # type: ignore[attr-defined]
    assert events[-1].change_seq > before


async def test_wait_answers_when_the_run_has_ended(engine: Engine) -> None:
    """Or when the time is over, with where it stands then."""
    assert await engine.instances.wait(LOCAL, await started(engine, chain("core/noop")), timedelta(seconds=10)) is (
        InstanceStatus.COMPLETED
    )
    entered, _ = gate("w")
    id = await started(engine, document([{"id": "a", "type": "test/gate", "parameters": {"gate": "w"}}], name="w"))
    await entered.wait()
    assert await engine.instances.wait(LOCAL, id, timedelta(milliseconds=200)) is InstanceStatus.RUNNING


async def test_a_wrong_start_is_refused_with_every_reason(engine: Engine) -> None:
    """Input against the schema, options against their ranges, and a workflow that isn't there."""
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    with pytest.raises(Invalid) as refusal:
        await started(engine, {**chain("core/noop"), "input_schema": schema}, input={"n": "x"}, priority=11)
    assert {problem.pointer for problem in refusal.value.problems} == {"/input/n", "/priority"}
    with pytest.raises(NotFound):
        await engine.instances.start(LOCAL, workflow_id="wf-none", input=None)
    with pytest.raises(NotFound):
        await history(engine, "inst-none")


async def test_a_fan_out_starts_its_join_once(engine: Engine) -> None:
    """A hundred parents that end together start their join once."""
    nodes = [{"id": "s", "type": "core/noop"}, {"id": "j", "type": "core/noop"}]
    nodes += [{"id": f"p{i}", "type": "core/noop"} for i in range(100)]
    edges = [{"source": "s", "target": f"p{i}"} for i in range(100)]
    edges += [{"source": f"p{i}", "target": "j"} for i in range(100)]
    events = await history(engine, await started(engine, document(nodes, edges)))
    assert types(events).count("node.started j") == 1
    assert len([name for name in types(events) if name.startswith("node.completed")]) == 102
