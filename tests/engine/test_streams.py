"""Streams over a bus that tells late, twice, out of order, nonsense, or nothing but "look"."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from db.store import changes
from db.store import instances as store
from engine import clock
from engine.access import DEFAULT_PROJECT, LOCAL
from engine.bus import LocalBus, Message
from engine.engine import Engine
from flow import events as e
from flow.errors import Category, Failure
from tests.engine.conftest import chain, document, history, started
from tests.engine.nodes import gate

PATIENCE_S = 20.0


class Mischief:
    """Stands between the tellers and the listeners of a bus."""

    def __init__(self, bus: LocalBus, seed: int) -> None:
        self._bus = bus
        self._tell = bus.publish
        self._random = random.Random(seed)

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        loop = asyncio.get_running_loop()
        shuffled = self._random.sample(messages, len(messages))
        match self._random.randrange(6):
            case 0:
                self._tell(topic, [*messages, *messages])
            case 1:
                loop.call_later(self._random.random() / 50, self._tell, topic, messages)
            case 2:
                self._tell(topic, shuffled)
            case 3:
                self._tell(topic, messages)
                loop.call_later(self._random.random() / 20, self._tell, topic, shuffled)
            case 4:
                self._tell(topic, ["nonsense"])
            case 5:
                self.look(topic)

    def look(self, topic: str) -> None:
        self._bus._listeners.overflow(topic)


async def stored(engine: Engine, instance_id: str) -> list[tuple[int, str]]:
    events = await engine.database.read(store.events, instance_id, 0, 10_000)
    return [(recorded.seq, recorded.type) for recorded in events]


@pytest.mark.parametrize("seed", range(8))
async def test_each_event_once_in_order(engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever the bus does, a watcher gets every event once, in order, to the end, as long as it is told to look."""
    assert isinstance(engine.bus, LocalBus)
    mischief = Mischief(engine.bus, seed)
    monkeypatch.setattr(engine.bus, "publish", mischief.publish)
    monkeypatch.setattr(engine.bus, "wanted", lambda topic: True)
    newest = -1

    async def watch_changes() -> None:
        nonlocal newest
        async for number in engine.streams.changes(LOCAL):
            assert number > newest
            newest = number

    watching = asyncio.create_task(watch_changes())
    ids = [await started(engine, chain(*["core/noop"] * 6)) for _ in range(3)]
    watchers = [asyncio.create_task(history(engine, id)) for id in ids * 2]

    async def looking() -> None:
        while True:
            await asyncio.sleep(0.02)
            for topic in [*ids, DEFAULT_PROJECT]:
                mischief.look(topic)

    looks = asyncio.create_task(looking())
    seen = await asyncio.gather(*watchers)
    last = await engine.database.read(changes.newest, DEFAULT_PROJECT)
    async with asyncio.timeout(PATIENCE_S):
        while newest < last:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for task in (looks, watching):
        task.cancel()
    for id, events in zip(ids * 2, seen, strict=True):
        assert [(recorded.seq, recorded.type) for recorded in events] == await stored(engine, id)
        assert isinstance(events[-1].event, e.InstanceCompleted)


async def test_a_cursor_beyond_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that has seen more than there is ends with the run, though it was only told to look."""
    assert isinstance(engine.bus, LocalBus)
    monkeypatch.setattr(engine.bus, "publish", lambda topic, messages: None)
    id = await started(engine, chain("core/noop", "core/noop"))
    events: list[Any] = []

    async def watch() -> None:
        async for recorded in engine.streams.events(LOCAL, id, 10_000):
            events.append(recorded)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(PATIENCE_S):
        while not watching.done():
            await asyncio.sleep(0.01)
            engine.bus._listeners.overflow()
    await watching
    assert events == []


async def test_old_news_of_an_end(engine: Engine) -> None:
    """News of an end that was undone since, told late, does not end a watcher that is beyond it."""
    waits = {"id": "a", "type": "test/gate", "parameters": {"gate": "open"}}
    id = await started(engine, document([waits]))
    entered, go = gate("open")
    await entered.wait()
    watching = asyncio.create_task(history(engine, id))
    await asyncio.sleep(0)
    engine.bus.publish(id, [e.Recorded(1, clock.now(), e.InstanceFailed(Failure("X", Category.CODE, "once")), 1)])
    asyncio.get_running_loop().call_later(0.05, go.set)
    assert [(recorded.seq, recorded.type) for recorded in await watching] == await stored(engine, id)
    assert [recorded.type for recorded in await watching][-1] == "instance.completed"
