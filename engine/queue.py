"""The queue of wake-ups: "look at instance X".

A wake-up carries nothing but an id and may be lost or doubled without harm: what an instance has to do is in the
database, and a sweep finds whoever was forgotten. ``LocalQueue`` is one process's own; ``engine.arq_queue`` shares
one among many.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Collection
from itertools import count
from typing import Protocol

from engine import clock

#: One step of priority is worth as much as having waited this long; so nobody waits for ever.
AGEING_S = 10.0
NO_LABELS: frozenset[str] = frozenset()


class Queue(Protocol):
    """Ids to look at, urgent and old ones first. Waking an id that waits already changes nothing."""

    def wake(self, id: str, priority: int = 5, *, fence: int = 0, labels: frozenset[str] = NO_LABELS) -> None:
        """Have some worker look at it soon: any, or one with exactly these labels. Never blocks, never raises."""

    def wake_here(self, id: str, priority: int = 5) -> None:
        """Have this process look at it soon."""

    async def filled(self) -> None:
        """Return as soon as some id waits in this process."""

    def take(self, most: int) -> list[str]:
        """The next ids, at most so many."""

    def __len__(self) -> int:
        """How many ids wait in this process."""

    async def start(self) -> None:
        """Begin to hear from others."""

    def drain(self) -> None:
        """Hear of nothing more: what waits here is for others."""

    async def close(self) -> None:
        """Hand back what was not taken; nothing is woken any more."""


class LocalQueue:
    """The queue of a process that works alone: whatever is woken is looked at here."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._waiting: set[str] = set()
        self._order = count()
        self._filled = asyncio.Event()

    def wake(self, id: str, priority: int = 5, *, fence: int = 0, labels: frozenset[str] = NO_LABELS) -> None:
        self.add(id, priority * AGEING_S)

    def wake_here(self, id: str, priority: int = 5) -> None:
        self.add(id, priority * AGEING_S)

    def add(self, id: str, urgency_s: float) -> None:
        """Let the id wait as one that came so many seconds ago with no priority."""
        if id in self._waiting:
            return
        self._waiting.add(id)
        heapq.heappush(self._heap, (clock.monotonic() - urgency_s, next(self._order), id))
        self._filled.set()

    def remove(self, ids: Collection[str]) -> None:
        """Let these ids wait no longer."""
        self._heap = [entry for entry in self._heap if entry[2] not in ids]
        heapq.heapify(self._heap)
        self._waiting.difference_update(ids)
        if not self._heap:
            self._filled.clear()

    async def filled(self) -> None:
        await self._filled.wait()

    def take(self, most: int) -> list[str]:
        taken = [heapq.heappop(self._heap)[2] for _ in range(min(most, len(self._heap)))]
        self._waiting.difference_update(taken)
        if not self._heap:
            self._filled.clear()
        return taken

    def __len__(self) -> int:
        return len(self._heap)

    async def start(self) -> None:
        pass

    def drain(self) -> None:
        pass

    async def close(self) -> None:
        pass
