"""The in-process bus: who is interested hears, at once, what was committed.

It is only a hint. Whoever misses a message, because it came late or reads too slowly, reads the database; a message
costs nothing when nobody listens.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

#: A subscriber that has this many messages waiting is too slow: its buffer is dropped and it reads the database.
BUFFER = 1_000


class Subscription:
    """One listener's buffer. Close it when done."""

    __slots__ = ("_bus", "_messages", "_topic", "_waiter", "overflowed")

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self._messages: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        #: Messages were dropped: what was missed is in the database. The reader sets it back.
        self.overflowed = False

    def _put(self, messages: Sequence[Any]) -> None:
        if len(self._messages) + len(messages) > BUFFER:
            self._messages.clear()
            self.overflowed = True
        else:
            self._messages.extend(messages)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Any]:
        """All that waits, as soon as there is something; empty after an overflow."""
        while not self._messages and not self.overflowed:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def close(self) -> None:
        """Hear nothing more."""
        self._bus._remove(self._topic, self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bus:
    """Topics and their listeners. A topic is an instance's id (its events) or a project's (its change numbers)."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Subscription]] = defaultdict(set)

    def subscribe(self, topic: str) -> Subscription:
        """Listen from now on."""
        subscription = Subscription(self, topic)
        self._listeners[topic].add(subscription)
        return subscription

    def wanted(self, topic: str) -> bool:
        """Whether anybody listens: making a message for nobody is work for nothing."""
        return topic in self._listeners

    def publish(self, topic: str, messages: Sequence[Any]) -> None:
        """Give the messages to everybody who listens now."""
        for subscription in self._listeners.get(topic, ()):
            subscription._put(messages)

    def listeners(self) -> int:
        """How many subscriptions are open."""
        return sum(map(len, self._listeners.values()))

    def _remove(self, topic: str, subscription: Subscription) -> None:
        listeners = self._listeners.get(topic)
        if listeners is not None:
            listeners.discard(subscription)
            if not listeners:
                del self._listeners[topic]
