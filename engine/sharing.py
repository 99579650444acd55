"""Which of the nodes that wait for a place here are offered to others: ``flow.placing.shared``, asked now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from engine import clock
from engine.drive import Drive
from engine.places import Places
from engine.workers import Workers
from flow import placing
from flow.planner import Run

LOOK_ROUND_S = 0.5
ANY_NUMBER = 1_000_000


class Sharing:
    """``places`` are those of this ``worker``."""

    def __init__(self, places: Places, workers: Workers, worker: str) -> None:
        #: How many other workers there are.
        self.others = 0
        self._places = places
        self._workers = workers
        self._worker = worker
        #: By lane, how many nodes without a place may be offered to others.
        self._lent: dict[str, int] = {}
        #: The lanes in which somebody waited when was last looked.
        self._waited: set[str] = set()
        #: When was last looked, and how many places had become free by then.
        self._looked: tuple[float, dict[str, int]] = (clock.monotonic(), {})

    async def looking_round(self) -> None:
        """Look round again and again."""
        while True:
            await asyncio.sleep(LOOK_ROUND_S)
            self.look_round()

    def look_round(self) -> None:
        """Let those who wait for a place offer nodes to others, as many as would wait long."""
        others = [one for one in self._workers.live() if one.id != self._worker and one.state == "ONLINE"]
        self.others = len(others)
        now, vacated = clock.monotonic(), dict(self._places.vacated)
        since, before = self._looked
        self._looked = now, vacated
        self._lent = {}
        waited, self._waited = self._waited, set()
        for lane in self._places.slots:
            drives = [waiter for waiter in self._places.in_line(lane) if isinstance(waiter, Drive)]
            waiting = sum(drive.run.ready(lane) for drive in drives)
            if waiting:
                self._waited.add(lane)
            if lane not in waited:  # the rate says nothing yet about those who have just come
                continue
            rate = (vacated[lane] - before.get(lane, 0)) / max(0.001, now - since)
            elsewhere = sum(max(0, other.free(lane)) for other in others)
            if (lent := placing.shared(waiting, rate, elsewhere, len(others))) > 0:
                self._lent[lane] = lent
                for drive in drives:
                    drive.knock()

    def room_for(self, run: Run) -> Mapping[str, int]:
        """How many of the run's nodes may be started now, by lane: here, or by those who have places."""
        room = {**self._places.room(), placing.OFFERED: ANY_NUMBER}
        for lane, most in self._lent.items():
            free = max(0, room[lane])
            lent = max(0, min(most, run.ready(lane) - free))
            room[lane] = free + lent
            self._lent[lane] = most - lent
        return room
