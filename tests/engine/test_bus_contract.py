"""The contract of the bus, on every implementation: for Redis, teller and listener are different processes' buses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from engine import clock
from engine.bus import BUFFER, Bus, LocalBus, Subscription
from engine.redis_bus import RedisBus
from flow import events as e
from tests.redis import RedisServer

PATIENCE_S = 10.0


class Buses(NamedTuple):
    """Where messages are told, and where they are heard."""

    teller: Bus
    listener: Bus


@pytest.fixture(params=["local", "redis"])
async def buses(request: pytest.FixtureRequest) -> AsyncIterator[Buses]:
    async with AsyncExitStack() as stack:

        async def started(bus: Bus) -> Bus:
            await bus.start()
            stack.push_async_callback(bus.close)
            return bus

        if request.param == "local":
            bus = await started(LocalBus())
            yield Buses(bus, bus)
        else:
            server: RedisServer = request.getfixturevalue("redis_for_all")
            prefix = server.prefix()
            yield Buses(
                await started(RedisBus(server.url, prefix=prefix)), await started(RedisBus(server.url, prefix=prefix))
            )


async def listening(buses: Buses, topic: str) -> Subscription:
    """A subscription whose messages come from now on."""
    subscription = buses.listener.subscribe(topic)
    async with asyncio.timeout(PATIENCE_S):
        messages: list[object] = []
        while "ready" not in messages:
            buses.teller.publish(topic, ["ready"])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    messages += await subscription.take()
            subscription.overflowed = False
        buses.teller.publish(topic, ["steady"])
        while "steady" not in messages:
            messages += await subscription.take()
            subscription.overflowed = False
    return subscription


async def told_to_look(subscription: Subscription) -> None:
    """Return when the subscription has been sent to the database."""
    async with asyncio.timeout(PATIENCE_S):
        while not subscription.overflowed:
            await subscription.take()
    subscription.overflowed = False


async def heard(subscription: Subscription, enough: Callable[[list[object]], bool]) -> list[object]:
    """What was heard, as soon as it is enough."""
    messages: list[object] = []
    async with asyncio.timeout(PATIENCE_S):
        while not enough(messages):
            messages += await subscription.take()
            assert not subscription.overflowed
    return messages


def event(text: str) -> e.Recorded:
    return e.Recorded(7, clock.now(), e.NodeLog(path="a", attempt=1, level="info", message=text), 9)


async def test_messages_arrive_in_order(buses: Buses) -> None:
    """Who listens hears numbers, ids and events as they were told, in their order."""
    with await listening(buses, "t") as subscription:
        told = [event("one"), 2, "three", *range(100)]
        for message in told:
            buses.teller.publish("t", [message])
        assert await heard(subscription, lambda messages: len(messages) >= len(told)) == told


async def test_every_listener_hears_and_others_do_not(buses: Buses) -> None:
    """All subscriptions of a topic hear its messages, those of another topic and closed ones nothing."""
    first, second = await listening(buses, "t"), buses.listener.subscribe("t")
    other, closed = await listening(buses, "other"), buses.listener.subscribe("t")
    closed.close()
    closed.close()
    assert buses.listener.listeners() == 3
    buses.teller.publish("t", [1])
    buses.teller.publish("other", [2])
    for subscription, message in ((first, 1), (second, 1), (other, 2)):
        assert await heard(subscription, bool) == [message]
        subscription.close()
    assert buses.listener.listeners() == 0


async def test_own_messages_are_heard_once(buses: Buses) -> None:
    """Who tells and listens hears its own messages, each once."""
    with await listening(buses, "t") as there, buses.teller.subscribe("t") as here:
        await listening(Buses(buses.listener, buses.teller), "t")
        await here.take()
        here.overflowed = False
        buses.teller.publish("t", [1])
        assert (await heard(there, lambda messages: 1 in messages))[-1] == 1
        buses.listener.publish("t", ["end"])
        assert await heard(here, lambda messages: "end" in messages) == [1, "end"]


async def test_wanted_while_somebody_listens(buses: Buses) -> None:
    """A topic with a listener is wanted wherever its messages are told."""
    with await listening(buses, "t"):
        assert buses.teller.wanted("t")


async def test_a_slow_reader_is_sent_to_the_database(buses: Buses) -> None:
    """More messages than the buffer holds are dropped, and the reader is told so, once."""
    with await listening(buses, "t") as subscription:
        for number in range(3 * BUFFER):
            buses.teller.publish("t", [number])
        await told_to_look(subscription)


async def test_a_large_message_reaches_the_reader(buses: Buses) -> None:
    """Messages too large for the bus still tell the reader that there is something to read."""
    with await listening(buses, "t") as subscription:
        buses.teller.publish("t", [event("x" * 100_000)])
        async with asyncio.timeout(PATIENCE_S):
            messages = await subscription.take()
        assert messages or subscription.overflowed


async def test_a_listener_may_come_and_go(buses: Buses) -> None:
    """A topic that was left by its last listener is heard by the next one."""
    for number in range(5):
        with await listening(buses, "t") as subscription:
            buses.teller.publish("t", [number])
            assert await heard(subscription, bool) == [number]


async def test_a_closed_bus_takes_everything(buses: Buses) -> None:
    """Telling and listening on a bus that is closed, or closing it again, harms nothing."""
    await buses.teller.close()
    await buses.teller.close()
    buses.teller.publish("t", [1])
    buses.teller.subscribe("t").close()
