"""The in-process queue of wake-ups: "look at instance X".

A wake-up carries nothing but an id and may be lost or doubled without harm: what an instance has to do is in the
database, and a sweep finds whoever was forgotten.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import count

from engine import clock

#: One step of priority is worth as much as having waited this long; so nobody waits for ever.
AGEING_S = 10.0


class Queue:
    """Ids to wake, urgent and old ones first. Waking an id that waits already changes nothing."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._waiting: set[str] = set()
        self._order = count()
        self._filled = asyncio.Event()

    def wake(self, instance_id: str, priority: int = 5) -> None:
        """Have somebody look at the instance soon."""
        if instance_id in self._waiting:
            return
        self._waiting.add(instance_id)
        rank = clock.monotonic() - priority * AGEING_S
        heapq.heappush(self._heap, (rank, next(self._order), instance_id))
        self._filled.set()

    async def filled(self) -> None:
        """Return as soon as some id waits."""
        await self._filled.wait()

    def take(self, most: int) -> list[str]:
        """The next ids, at most so many."""
        taken = [heapq.heappop(self._heap)[2] for _ in range(min(most, len(self._heap)))]
        self._waiting.difference_update(taken)
        if not self._heap:
            self._filled.clear()
        return taken

    def __len__(self) -> int:
        return len(self._heap)
