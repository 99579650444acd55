"""The bus: who is interested hears, at once, what was committed.

It is only a hint. Whoever misses a message, because it came late or reads too slowly, reads the database; a message
costs nothing when nobody listens. ``LocalBus`` is one process's own; ``engine.redis_bus`` joins many.

Topics for watchers: an instance's id (its ``Recorded`` events), a project's id (its change numbers), ``workers`` (ids
of workers that changed), a task's id and ``tasks:<project>`` (ids of tasks that changed), ``servers:<project>`` (ids of
servers that changed). Topics for workers, each with an id to look at, or nothing: ``worker:<id>`` (instances),
``offered`` (attempts for others to make), ``drain:<worker>``, ``tasks`` (something is due), ``<task>:asked`` (somebody
wants something of it), ``servers`` (one that is to be checked).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from flow import events as e

#: A subscriber that has this many messages waiting is too slow: its buffer is dropped and it reads the database.
BUFFER = 1_000

Message: TypeAlias = e.Recorded | int | str


class Subscription:
    """One listener's buffer. Close it when done."""

    __slots__ = ("_leave", "_messages", "_waiter", "overflowed", "topic")

    def __init__(self, topic: str, leave: Callable[[Subscription], object]) -> None:
        self.topic = topic
        self._leave = leave
        self._messages: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        #: Messages may be missing: what was missed is in the database. The reader sets it back.
        self.overflowed = False

    def put(self, messages: Sequence[Message]) -> None:
        """Add to what waits; if that is too much, drop it all."""
        if len(self._messages) + len(messages) > BUFFER:
            self._messages.clear()
            self.overflowed = True
        else:
            self._messages.extend(messages)
        self._wake()

    def overflow(self) -> None:
        """Messages may have been missed: have the reader look into the database."""
        self.overflowed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Any]:
        """All that waits, as soon as there is something; it may be nothing where messages were missed."""
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
        self._leave(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Bus(Protocol):
    """Topics and their listeners."""

    def subscribe(self, topic: str) -> Subscription:
        """Listen from now on."""

    def wanted(self, topic: str) -> bool:
        """Whether somebody may listen: making a message for nobody is work for nothing."""

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Give the messages to everybody who listens. Never blocks, never raises."""

    def listeners(self) -> int:
        """How many subscriptions are open in this process."""

    async def start(self) -> None:
        """Begin to hear from others."""

    async def close(self) -> None:
        """Hear and tell nothing more."""


class Listeners:
    """The subscriptions of one process, by topic."""

    def __init__(self) -> None:
        self._by_topic: dict[str, set[Subscription]] = {}

    def add(self, subscription: Subscription) -> bool:
        """Whether it is the first of its topic."""
        of_topic = self._by_topic.setdefault(subscription.topic, set())
        of_topic.add(subscription)
        return len(of_topic) == 1

    def remove(self, subscription: Subscription) -> bool:
        """Whether it was the last of its topic. Removing it again changes nothing."""
        of_topic = self._by_topic.get(subscription.topic, set())
        if subscription not in of_topic:
            return False
        of_topic.remove(subscription)
        if not of_topic:
            del self._by_topic[subscription.topic]
        return not of_topic

    def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Give the messages to every subscription of the topic."""
        for subscription in self._by_topic.get(topic, ()):
            subscription.put(messages)

    def overflow(self, topic: str | None = None) -> None:
        """Have every reader of the topic, or every reader, look into the database."""
        for each in self._by_topic if topic is None else (topic,):
            for subscription in self._by_topic.get(each, ()):
                subscription.overflow()

    def __contains__(self, topic: object) -> bool:
        return topic in self._by_topic

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_topic)

    def __len__(self) -> int:
        return sum(map(len, self._by_topic.values()))


class LocalBus:
    """The bus of a process that works alone."""

    def __init__(self) -> None:
        self._listeners = Listeners()

    def subscribe(self, topic: str) -> Subscription:
        subscription = Subscription(topic, self._listeners.remove)
        self._listeners.add(subscription)
        return subscription

    def wanted(self, topic: str) -> bool:
        return topic in self._listeners

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        self._listeners.put(topic, messages)

    def listeners(self) -> int:
        return len(self._listeners)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass
