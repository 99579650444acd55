"""The clocks of one attempt: its timeout, and the longest silence between two signs of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.calls import Call
from engine.invoke import silent, timed_out
from flow.errors import Failure


class Watch:
    """Calls ``expired`` once, with the failure, when the attempt has run out of time. Ask ``failure`` afterwards."""

    __slots__ = ("_beaten", "_call", "_expired", "_heartbeat", "_loop", "_timers", "failure")

    def __init__(self, call: Call, expired: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._expired = expired
        self._timers: list[asyncio.TimerHandle] = []
        self._heartbeat = call.heartbeat_timeout.total_seconds() if call.heartbeat_timeout else None
        self._beaten = self._loop.time()
        self.failure: Failure | None = None

    def start(self) -> None:
        """Begin to count."""
        self._beaten = self._loop.time()
        self._timers.append(self._loop.call_later(self._call.timeout.total_seconds(), self._expire, timed_out))
        if self._heartbeat is not None:
            self._timers.append(self._loop.call_later(self._heartbeat, self._listen))

    def beat(self) -> None:
        """The handler gave a sign of life."""
        self._beaten = self._loop.time()

    def stop(self) -> None:
        """Count no more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _listen(self) -> None:
        assert self._heartbeat is not None
        left = self._beaten + self._heartbeat - self._loop.time()
        if left <= 0:
            self._expire(silent)
        else:
            self._timers[-1] = self._loop.call_later(left, self._listen)

    def _expire(self, why: Callable[[Call], Failure]) -> None:
        if self.failure is None:
            self.failure = why(self._call)
            self._expired()
