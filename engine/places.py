"""Places to run nodes in, by lane, and the lines of those who want one: first come, first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Protocol


class Waiter(Protocol):
    """Who stands in a line."""

    def knock(self) -> None:
        """Look again: a place may be free."""


class Places:
    """``slots`` says how many places each lane has."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        self.slots = dict(slots)
        self._room = dict(slots)
        #: Places given back since the beginning, by lane.
        self.vacated = dict.fromkeys(slots, 0)
        #: By lane, who has a node to start and no place for it.
        self._lines: dict[str, OrderedDict[Waiter, None]] = {lane: OrderedDict() for lane in slots}

    def room(self) -> dict[str, int]:
        """Free places by lane."""
        return self._room

    def occupy(self, lane: str, waiter: Waiter) -> None:
        """Take a place; who wants more of them stands at the end of the line for the next."""
        self._room[lane] -= 1
        if waiter in self._lines[lane]:
            self._lines[lane].move_to_end(waiter)

    def vacate(self, lane: str) -> None:
        """Give a place back; the first in line is told."""
        self._room[lane] += 1
        self.vacated[lane] += 1
        self._call(lane)

    def stand_in_line(self, waiter: Waiter, lanes: Collection[str]) -> None:
        """The waiter lacks room in these lanes, and in no other."""
        for lane, line in self._lines.items():
            if lane in lanes:
                line.setdefault(waiter)
            elif waiter in line:
                del line[waiter]
                self._call(lane)  # it was told of a place, perhaps, and didn't need it any more

    def in_line(self, lane: str) -> list[Waiter]:
        """Who waits for a place in this lane, the first first."""
        return list(self._lines[lane])

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a place."""
        return any(self._lines.values())

    @property
    def running(self) -> dict[str, int]:
        """Nodes that run now, by lane."""
        return {lane: slots - self._room[lane] for lane, slots in self.slots.items()}

    def _call(self, lane: str) -> None:
        if self._lines[lane] and self._room[lane] > 0:
            next(iter(self._lines[lane])).knock()
