"""Runs attempts where their handlers say: on the event loop, in a thread, or in a child process.

``Runner.run`` is a closed door: whatever a handler does (raise, hang, exit, return nonsense, eat
memory), what comes out is ``Done`` or ``Broke``, and when the caller's task is cancelled or the
attempt's time is over, the work has really stopped before the answer is given.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Generator, Sequence
from pathlib import Path
from types import coroutine
from typing import Any, TypeVar

from engine.artifacts import ArtifactStore
from engine.calls import Broke, Call, Done, LogLine, Outcome, Progress, Report
from engine.files import Files
from engine.invoke import broke, broken, context
from engine.nodes.contract import NodeType, Placement, Stop, Surroundings
from engine.nodes.registry import Registry
from engine.outbound import Outbound
from engine.output import MAX_INLINE, encoded
from engine.process_pool import ProcessPool
from engine.thread_pool import ThreadPool
from engine.watch import Watch
from flow.errors import Category, Failure

__all__ = ["Broke", "Call", "Done", "LogLine", "Outcome", "Placement", "Progress", "Report", "Runner"]

T = TypeVar("T")

GRACE = 10.0  # seconds that a handler has to clean up when it is stopped


class Runner:
    """Runs calls. ``slots`` says how many of each placement go at once; more than that wait their turn inside.

    ``artifacts`` is the folder of the artifact store (None: in ``data_dir``); ``roots`` are the folders that nodes may
    touch.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        data_dir: Path,
        artifacts: Path | None = None,
        roots: Sequence[Path] = (),
        processes: int | None = None,
        threads: int = 16,
        concurrency: int = 1_000,
        grace: float = GRACE,
    ) -> None:
        self.registry = registry
        self.surroundings = Surroundings(Files(roots), ArtifactStore(artifacts or data_dir / "artifacts"), Outbound())
        self.slots: dict[Placement, int] = {
            Placement.ASYNC: concurrency,
            Placement.THREAD: threads,
            Placement.PROCESS: processes or os.cpu_count() or 1,
        }
        self._grace = grace
        self._threads = ThreadPool(self.surroundings, self.slots[Placement.THREAD])
        self._processes = ProcessPool(self.surroundings, self.slots[Placement.PROCESS], grace=grace)

    async def start(self) -> None:
        """Make ready. Threads and children are started when they are first needed."""

    async def close(self) -> None:
        """Stop every child process, forget the threads, close the HTTP clients. Calls under way are stopped."""
        await self._processes.close()
        self._threads.close()
        await self.surroundings.outbound.close()

    async def run(self, call: Call, report: Callable[[Report], None]) -> Outcome:
        """Make the attempt. ``report`` is called on the loop, while the attempt lasts and never after it.

        Raises nothing but CancelledError, and that only when the work has stopped (a thread can't be
        stopped: its result is dropped, and its handler can see that it was cancelled).
        """
        kind = self.registry.get(call.type)
        if kind is None:
            unknown = f"This server has no node type {call.type!r}; is its plugin installed?"
            return broken(call, Failure("UNKNOWN_NODE_TYPE", Category.VALIDATION, unknown))
        if kind.unavailable is not None:
            return broken(call, Failure("NODE_TYPE_UNAVAILABLE", Category.VALIDATION, kind.unavailable))
        match kind.placement:
            case Placement.ASYNC:
                return await self._on_loop(kind, call, report)
            case Placement.THREAD:
                return await self._threads.run(kind, call, report)
            case Placement.PROCESS:
                return await self._processes.run(kind, call, report)
            case Placement.FLOW:
                return broken(call, Failure("INTERNAL", Category.INTERNAL, f"{call.type} has no handler to run."))

    async def _on_loop(self, kind: NodeType, call: Call, report: Callable[[Report], None]) -> Outcome:
        reins = _Reins(call, report, self._grace)
        try:
            given = context(kind, call, self.surroundings, reins.report, reins.stop)
            output = await _driven(kind.handler(given), reins)
        except asyncio.CancelledError as cancelled:
            if reins.settle():
                raise
            # nobody cancelled us: the handler let the cancellation of something of its own escape
            return reins.verdict() or broke(call, cancelled)
        except GeneratorExit:
            raise
        except BaseException as problem:  # SystemExit and KeyboardInterrupt too: a handler doesn't end the server
            if reins.settle():
                raise asyncio.CancelledError from problem
            return reins.verdict() or broke(call, problem)
        if reins.settle():
            raise asyncio.CancelledError
        if (verdict := reins.verdict()) is not None:
            return verdict
        try:
            plain, text = encoded(output)
            if len(text) <= MAX_INLINE:
                return Done(plain, artifacts=given.kept)
            put = self.surroundings.artifacts.put_bytes
            artifact = await asyncio.to_thread(put, text, "application/json")
            return Done(artifact=artifact, artifacts=given.kept)
        except Exception as problem:  # not JSON, or the disk is full
            return broke(call, problem)


class _Reins:
    """How a coroutine on the loop is stopped: cancelled, given a grace to clean up, and then closed.

    Its clocks start only when the coroutine first waits; most handlers that never do cost nothing.
    """

    __slots__ = ("_before", "_call", "_grace", "_mine", "_report", "_task", "_timer", "_watch", "abandoned", "stop")

    def __init__(self, call: Call, report: Callable[[Report], None], grace: float) -> None:
        self._call = call
        self._report: Callable[[Report], None] | None = report
        self._grace = grace
        self._task: asyncio.Task[Any] | None = None
        self._watch: Watch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._mine = 0  # how many of the task's cancellations are ours
        self._before = 0
        self.abandoned = False
        self.stop = Stop()

    def report(self, said: Report) -> None:
        """Pass on what the handler says, as long as anybody is to hear it."""
        if self._watch is not None:
            self._watch.beat()
        if self._report is not None:
            self._report(said)

    def waits(self) -> None:
        """The handler waits for the first time."""
        task = asyncio.current_task()
        assert task is not None, "run() is awaited in a task"
        self._task = task
        self._before = task.cancelling()
        self._watch = Watch(self._call, self._expired)
        self._watch.start()

    def cancelling(self) -> None:
        """A cancellation is about to reach the handler: from here on its grace counts."""
        self.stop.requested = True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._abandon)

    def waits_again(self) -> None:
        """The handler goes on. What cancelled it may have been a timeout or a scope of its own, which it took back."""
        if self._timer is not None and self._task is not None and self._task.cancelling() <= self._before:
            self._timer.cancel()
            self._timer = None
            self.stop.requested = False

    def settle(self) -> bool:
        """The handler is over: stop the clocks, take back our own cancellations. Whether somebody else cancelled us."""
        self._report = None
        if self._task is None or self._watch is None:
            return False
        self._watch.stop()
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(self._mine):
            self._task.uncancel()
        self._mine = 0
        return self._task.cancelling() > self._before

    def verdict(self) -> Broke | None:
        """How the attempt ended if its time was over."""
        if self._watch is None or self._watch.failure is None:
            return None
        return broken(self._call, self._watch.failure)

    def _expired(self) -> None:
        assert self._task is not None
        self._mine += 1
        self._task.cancel()

    def _abandon(self) -> None:
        assert self._task is not None
        self.abandoned = True
        self._mine += 1
        self._task.cancel()


@coroutine
def _driven(handler: Coroutine[Any, None, T], reins: _Reins) -> Generator[Any, None, T]:
    """Await the handler, step by step: ``await`` alone could not leave a coroutine that ignores its cancellation."""
    try:
        awaited = handler.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    reins.waits()
    while True:
        try:
            yield awaited
        except asyncio.CancelledError as cancelled:
            reins.cancelling()
            if reins.abandoned:
                handler.close()
                raise
            thrown: BaseException | None = cancelled
        except BaseException:
            handler.close()
            raise
        else:
            thrown = None
        try:
            awaited = handler.send(None) if thrown is None else handler.throw(thrown)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        reins.waits_again()
