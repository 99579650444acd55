"""Instants that something is due at, with the earliest at hand however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime


class Timers:
    """One instant for each key. Asking costs what is found, not what is kept."""

    __slots__ = ("_due", "_heap", "_number")

    def __init__(self) -> None:
        self._due: dict[str, datetime] = {}
        #: Entries that are no longer true are left in it until they come to its top, or are half of it.
        self._heap: list[tuple[datetime, int, str]] = []
        self._number = 0

    def add(self, key: str, due: datetime) -> None:
        """The key is due then, and not at any instant said earlier."""
        self._due[key] = due
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, key))
        self._prune()

    def discard(self, key: str) -> None:
        """The key is not due any more."""
        if self._due.pop(key, None) is None:
            return
        self._prune()
        if len(self._heap) > 2 * len(self._due) + 16:
            self._heap = [entry for entry in self._heap if self._true(entry)]
            heapq.heapify(self._heap)

    def due(self, now: datetime) -> list[str]:
        """The keys that are due by now, the earliest first."""
        found = [entry for entry in self._until(now) if self._true(entry)]
        return list(dict.fromkeys(key for _, _, key in sorted(found)))

    def after(self, instant: datetime | None) -> datetime | None:
        """The first instant after this one (or of all) that something is due at."""
        if instant is None:
            return self._heap[0][0] if self._heap else None
        stack, first = [0], None
        while stack:
            place = stack.pop()
            if place >= len(self._heap):
                continue
            entry = self._heap[place]
            if entry[0] > instant and self._true(entry):
                first = entry[0] if first is None else min(first, entry[0])
            elif first is None or entry[0] < first:
                stack += (2 * place + 1, 2 * place + 2)
        return first

    def _prune(self) -> None:
        while self._heap and not self._true(self._heap[0]):
            heapq.heappop(self._heap)

    def _true(self, entry: tuple[datetime, int, str]) -> bool:
        return self._due.get(entry[2]) == entry[0]

    def _until(self, now: datetime) -> Iterator[tuple[datetime, int, str]]:
        stack = [0]
        while stack:
            place = stack.pop()
            if place < len(self._heap) and self._heap[place][0] <= now:
                yield self._heap[place]
                stack += (2 * place + 1, 2 * place + 2)
