"""What a drive must survive: stops at odd moments, places that come free for others, storage that can't be read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from db.store import instances as store
from db.store import letters
from engine import clock
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.errors import StorageUnavailable
from tests.engine.conftest import document, engine_on, history, started, types
from tests.engine.nodes import gate


def gated(id: str, name: str, **parameters: Any) -> dict[str, Any]:
    """A node that waits for the gate of this name."""
    return {"id": id, "type": "test/gate", "parameters": {"gate": name, **parameters}}


async def until(engine: Engine, instance_id: str, kind: type[e.Event]) -> None:
    """Wait for the instance's first event of this kind."""
    events = engine.streams.events(LOCAL, instance_id)
    async with asyncio.timeout(10), aclosing(events):  # type: ignore[type-var]
        async for recorded in events:
            if isinstance(recorded.event, kind):
                return


async def test_a_node_stopped_as_it_is_launched_ends(tmp_path: Path) -> None:
    """A sibling fails while the start of b is being committed: b is cancelled, and its place is free again."""
    _, open_a = gate("launched a")
    _, open_c = gate("launched c")

    def meanwhile(entries: int, seconds: float) -> None:
        if any("b" in drive.run.snapshot.running for drive in engine.executor._drives.values()):
            open_c.set()

    async with engine_on(tmp_path, observe_commit=meanwhile) as engine:
        nodes = [gated("a", "launched a"), gated("b", "launched b"), gated("c", "launched c", fails=True)]
        id = await started(engine, document(nodes, [{"source": "a", "target": "b"}]))
        open_a.set()
        events = await history(engine, id)
        assert types(events)[-3:] == ["node.failed c", "node.canceled b", "instance.failed"]
        assert engine.executor.running["async"] == 0


async def test_cleaning_up_is_not_disturbed(engine: Engine) -> None:
    """A node is stopped once, whatever happens while its handler cleans up."""
    entered, tidied = gate("tidied")
    id = await started(engine, document([{"id": "a", "type": "test/tidy", "parameters": {"gate": "tidied"}}]))
    await entered.wait()
    await engine.instances.cancel(LOCAL, id)
    assert types(await history(engine, id))[-3:] == ["node.log a", "node.canceled a", "instance.canceled"]
    assert tidied.is_set()


async def test_a_place_is_offered_to_an_instance_that_has_nodes_running(engine: Engine) -> None:
    """An instance hears of a free place also while others of its nodes run on."""
    engine.executor.places._room["async"] = 2
    first_in, first_go = gate("place 1")
    second_in, _ = gate("place 2")
    third_in, _ = gate("place 3")
    await started(engine, document([gated("x", "place 1")], name="one"))
    await first_in.wait()
    await started(engine, document([gated("a", "place 2"), gated("b", "place 3")], name="two"))
    await second_in.wait()
    assert not third_in.is_set()
    first_go.set()
    async with asyncio.timeout(5):
        await third_in.wait()


async def test_a_place_is_offered_to_who_waits_for_one_of_its_kind(engine: Engine) -> None:
    """Who stands first in line for another kind of place doesn't keep it from the next."""
    engine.executor.places._room |= {"async": 1, "thread": 0}
    entered, go = gate("kind 1")
    other_in, _ = gate("kind 2")
    await started(engine, document([gated("x", "kind 1")], name="one"))
    await entered.wait()
    fib = {"id": "f", "type": "bench/fib", "parameters": {"n": 1}}
    await until(engine, await started(engine, document([fib], name="two")), e.InstanceStarted)
    await until(engine, await started(engine, document([gated("y", "kind 2")], name="three")), e.InstanceStarted)
    assert not other_in.is_set()
    go.set()
    async with asyncio.timeout(5):
        await other_in.wait()


async def test_a_deadline_holds_while_a_retry_lacks_room(engine: Engine) -> None:
    """A retry that is overdue, for want of a place, doesn't hide the instance's timeout."""
    engine.executor.places._room["async"] = 2
    entered, _ = gate("deadline 1")
    other_in, _ = gate("deadline 2")
    retry = {"max": 5, "base": "50ms", "jitter": 0}
    flaky = {"id": "a", "type": "test/flaky", "parameters": {"succeeds_at": 9}, "retry": retry}
    definition = document([flaky, gated("b", "deadline 1")], name="one")
    id = await started(engine, definition, timeout=timedelta(milliseconds=500))
    await until(engine, id, e.NodeRetrying)
    await started(engine, document([gated("x", "deadline 2")], name="two"))
    await entered.wait()
    await other_in.wait()
    assert types(await history(engine, id))[-1] == "instance.timed_out"


async def test_a_letter_is_read_when_the_database_answers_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the inbox can't be read for a moment neither loses the letter nor the drive's work."""
    entered, _ = gate("unread")
    id = await started(engine, document([gated("a", "unread")]))
    await entered.wait()
    read = engine.database.read
    refused: list[object] = []

    async def refuse_once(query: Any, *args: Any) -> Any:
        if query is store.inbox and not refused:
            refused.append(query)
            raise StorageUnavailable("The database can't be used now.")
        return await read(query, *args)

    monkeypatch.setattr(engine.database, "read", refuse_once)
    await engine.instances.cancel(LOCAL, id)
    assert types(await history(engine, id))[-2:] == ["node.canceled a", "instance.canceled"]
    assert refused


async def test_a_letter_that_nobody_was_told_of_is_found(tmp_path: Path) -> None:
    """A process died between storing a cancel request and waking the instance, which waits for a distant retry."""
    retry = {"max": 5, "base": "1h", "jitter": 0}
    async with engine_on(tmp_path) as engine:
        flaky = {"id": "a", "type": "test/flaky", "parameters": {"succeeds_at": 3}, "retry": retry}
        id = await started(engine, document([flaky]))
        await until(engine, id, e.NodeRetrying)
        await asyncio.gather(*engine.executor._driving)
        await engine.database.write(letters.put, id, e.CancelRequested(), clock.now())
    async with engine_on(tmp_path) as engine:
        assert types(await history(engine, id))[-1] == "instance.canceled"


async def test_an_instance_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    """An event that this server can't read keeps its own instance back, not those that are claimed with it."""
    async with engine_on(tmp_path) as engine:
        entered, go = gate("unreadable")
        spoilt = await started(engine, document([gated("a", "unreadable")], name="one"))
        await entered.wait()
        good = await started(engine, document([gated("a", "unreadable")], name="two"))

        def spoil(connection: Connection) -> None:
            broken = text('UPDATE events SET data = \'{"type": "unheard.of"}\' WHERE instance_id = :id AND seq = 2')
            connection.execute(broken, {"id": spoilt})

        await engine.database.write(spoil)
    go.set()
    async with engine_on(tmp_path) as engine:
        assert types(await history(engine, good))[-1] == "instance.completed"


async def test_urgent_instances_go_first_when_the_server_is_full(engine: Engine) -> None:
    """Instances that had to wait for the server are taken by priority, not in the order in which they came."""
    engine.executor._max_instances = 1
    entered, go = gate("full")
    await started(engine, document([gated("a", "full")], name="one"))
    await entered.wait()
    engine.executor._check_space()
    noop = document([{"id": "a", "type": "core/noop"}], name="two")
    ids = [await started(engine, noop, priority=priority) for priority in (1, 5, 10)]
    go.set()
    began = [(await history(engine, id))[1].at for id in ids]
    assert began == sorted(began, reverse=True)


async def test_a_cursor_beyond_the_end_ends_with_the_instance(engine: Engine) -> None:
    """Nothing can follow it, so the stream doesn't stay open for ever."""
    entered, go = gate("beyond")
    id = await started(engine, document([gated("a", "beyond")]))
    await entered.wait()
    stream = asyncio.create_task(anext(aiter(engine.streams.events(LOCAL, id, after=1_000)), None))
    await until(engine, id, e.NodeStarted)
    go.set()
    async with asyncio.timeout(5):
        assert await stream is None


async def test_a_start_is_checked_against_the_newest_version(engine: Engine) -> None:
    """What was known of the workflow before it changed refuses nobody."""
    strict = document([{"id": "a", "type": "core/noop"}], input_schema={"type": "object", "required": ["n"]})
    id = await started(engine, strict, input={"n": 1})
    workflow = await engine.workflows.named(LOCAL, "test")
    assert workflow is not None
    assert workflow.current_version_id is not None
    await engine.workflows.update(
        LOCAL, workflow.id, workflow.current_version_id, {**strict, "input_schema": {"type": "object"}}
    )
    second = await engine.instances.start(LOCAL, workflow_id=workflow.id, input={})
    await history(engine, id)
    await history(engine, second.instance_id)
    await engine.workflows.delete(LOCAL, workflow.id, permanent=True)
    await started(engine, strict, input={"n": 1})
