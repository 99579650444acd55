"""Runs handlers in threads.

A thread can't be stopped from outside. A handler whose attempt is over is told so
(``ctx.cancelled``), its result is dropped, and its thread no longer counts: another takes its
place. The threads are daemons, so that a handler that never ends can't hold up the end of the process
(the reason why this is no ThreadPoolExecutor).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.calls import Call, Done, Outcome, Report
from engine.invoke import broke, broken, context
from engine.nodes.contract import NodeType, Stop, Surroundings
from engine.output import stored
from engine.watch import Watch
from flow.events import Usage


@dataclass(slots=True)
class _Job:
    kind: NodeType
    call: Call
    loop: asyncio.AbstractEventLoop
    settle: Callable[[Outcome], None]
    report: Callable[[Report], None]
    stop: Stop
    started: Callable[[], None]


class ThreadPool:
    """At most ``size`` handlers at once, not counting those whose attempt is over."""

    def __init__(self, surroundings: Surroundings, size: int) -> None:
        self._surroundings = surroundings
        self._room = asyncio.Semaphore(size)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._free = 0  # threads that wait for a job
        self._lock = threading.Lock()
        self._closed = False

    async def run(self, kind: NodeType, call: Call, report: Callable[[Report], None]) -> Outcome:
        """Run the call in a thread; see ``Runner.run``."""
        async with self._room:
            loop = asyncio.get_running_loop()
            outcome: asyncio.Future[Outcome] = loop.create_future()
            stop = Stop()
            watch = Watch(call, lambda: None if outcome.done() else outcome.set_result(Done()))

            def settle(result: Outcome) -> None:
                if not outcome.done():
                    outcome.set_result(result)

            def heard(said: Report) -> None:
                if not outcome.done():
                    watch.beat()
                    report(said)

            def begin() -> None:
                if not outcome.done():
                    watch.start()

            self._start(_Job(kind, call, loop, settle, heard, stop, begin))
            try:
                result = await outcome
            finally:
                watch.stop()
                stop.requested = True
            return result if watch.failure is None else broken(call, watch.failure)

    def close(self) -> None:
        """Let idle threads end; busy ones end after their handler."""
        with self._lock:
            self._closed = True
            for _ in range(self._free):
                self._jobs.put(None)
            self._free = 0

    def _start(self, job: _Job) -> None:
        # Every job in the queue has its thread: one that was free and is free no more, or a new one.
        with self._lock:
            reserved = self._free > 0
            if reserved:
                self._free -= 1
        self._jobs.put(job)
        if not reserved:
            threading.Thread(target=self._work, name="handler", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._perform(job)
            del job
            with self._lock:
                if self._closed:
                    return
                self._free += 1

    def _perform(self, job: _Job) -> None:
        def report(said: Report) -> None:
            _soon(job.loop, job.report, said)

        _soon(job.loop, job.started)
        before = time.thread_time()
        result: Outcome
        try:
            given = context(job.kind, job.call, self._surroundings, report, job.stop)
            output, artifact = stored(job.kind.handler(given), self._surroundings.artifacts)
            result = Done(output, Usage(cpu_seconds=time.thread_time() - before), artifact, given.kept)
        except BaseException as problem:  # a handler that calls sys.exit() ends neither thread nor server
            result = broke(job.call, problem, Usage(cpu_seconds=time.thread_time() - before))
        _soon(job.loop, job.settle, result)


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this result any more
        loop.call_soon_threadsafe(callback, *args)
