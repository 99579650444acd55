"""A pool of warm child processes for handlers that must be killable, limited and measured.

Each child leads a session of its own, so that stopping it stops everything it started: SIGTERM,
a grace to clean up, then SIGKILL for the whole group. A child that was stopped, or died, is
never used again. A child whose parent is gone notices the end of the pipe, and ends its group itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from engine.calls import Beat, Broke, Call, Done, LogLine, Outcome, Progress, Report
from engine.invoke import broken, out_of_memory
from engine.nodes.contract import NodeType, Surroundings, plain_text
from engine.pipe import CantSay, FromChild, Hello, Invoke, ToChild, frame, from_child
from engine.watch import Watch
from flow.errors import Category, Failure
from flow.events import Usage

IDLE = 60.0  # seconds without work after which a child is let go
SAMPLING = 0.2  # seconds between two looks at a child's memory
_MB = 1024 * 1024


class ProcessPool:
    """At most ``size`` children; each is started when it is first needed."""

    def __init__(self, surroundings: Surroundings, size: int, *, grace: float, idle: float = IDLE) -> None:
        self._surroundings = surroundings
        self._room = asyncio.Semaphore(size)
        self._grace = grace
        self._idle_limit = idle
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._reaping: set[asyncio.Task[int]] = set()
        self._timers: dict[_Child, asyncio.TimerHandle] = {}

    async def run(self, kind: NodeType, call: Call, report: Callable[[Report], None]) -> Outcome:
        """Run the call in a child; see ``Runner.run``."""
        async with self._room:
            try:
                child = self._take() or await self._started()
            except OSError as problem:
                failure = Failure("NO_PROCESS", Category.RESOURCE, f"A child process could not be started: {problem}")
                return broken(call, failure)
            self._busy.add(child)
            try:
                return await _Attempt(child, kind, call, report, self._grace).made()
            finally:
                self._busy.discard(child)
                if child.usable:
                    self._keep(child)

    async def close(self) -> None:
        """Kill every child and wait until it is gone."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        children = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(child.kill() for child in children), *self._reaping)

    async def _started(self) -> _Child:
        """A new child. If we are cancelled meanwhile, it is kept for the next call, not lost half started."""
        starting = asyncio.get_running_loop().create_task(_Child.start(self._surroundings))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await _over(starting)
            if not starting.cancelled() and starting.exception() is None:
                self._keep(starting.result())
            raise

    def _take(self) -> _Child | None:
        while self._idle:
            child = self._idle.pop()
            self._timers.pop(child).cancel()
            if child.alive:
                return child
            self._reap(child)
        return None

    def _keep(self, child: _Child) -> None:
        self._idle.append(child)
        self._timers[child] = asyncio.get_running_loop().call_later(self._idle_limit, self._expire, child)

    def _expire(self, child: _Child) -> None:
        self._idle.remove(child)
        del self._timers[child]
        self._reap(child)

    def _reap(self, child: _Child) -> None:
        task = asyncio.get_running_loop().create_task(child.kill())
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)


class _Child:
    """One child process and the pipe to it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self.usable = True
        self.printed: Callable[[str], None] | None = None
        self._reader = reader
        self._writer = writer
        self._listening = asyncio.get_running_loop().create_task(self._listen())
        with contextlib.suppress(psutil.Error):
            self._memory: psutil.Process | None = psutil.Process(process.pid)

    @classmethod
    async def start(cls, surroundings: Surroundings) -> _Child:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                "from engine.process_child import main; main()",
                str(theirs.fileno()),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=_environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer)
        files, artifacts = surroundings.files, surroundings.artifacts
        await child.say(Hello(tuple(map(str, files.roots)), str(artifacts.root.absolute())))
        return child

    @property
    def alive(self) -> bool:
        return self.usable and self.process.returncode is None and not self._reader.at_eof()

    async def say(self, message: ToChild) -> None:
        """Send a frame. A child that is gone is noticed by ``hear``."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(frame(message))
            await self._writer.drain()

    async def hear(self) -> FromChild | None:
        """The next frame; None when the child is gone."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            said: FromChild = from_child.decode(await self._reader.readexactly(size))
            return said
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
            return None

    def memory_mb(self) -> float | None:
        """What the child holds in memory now."""
        try:
            return self._memory.memory_info().rss / _MB if self._memory is not None else None
        except psutil.Error:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def kill(self) -> int:
        """Kill the whole group and wait for the end; what the child exited with (negative: the signal)."""
        self.usable = False
        self.signal(signal.SIGKILL)
        code = await self.process.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        await self._listening
        return code

    async def _listen(self) -> None:
        """Pass on what is written to the child's real stdout and stderr, by libraries in C or programs it started."""
        assert self.process.stdout is not None
        begun = b""
        while chunk := await self.process.stdout.read(65_536):
            *lines, begun = (begun + chunk).split(b"\n")
            for line in [*lines, begun] if len(begun) > 8_000 else lines:
                if line and self.printed is not None:
                    self.printed(line.decode("utf-8", "replace"))
            begun = begun if len(begun) <= 8_000 else b""


class _Attempt:
    """One call in one child, with its clocks, its memory watch and its end."""

    def __init__(
        self, child: _Child, kind: NodeType, call: Call, report: Callable[[Report], None], grace: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._child = child
        self._kind = kind
        self._call = call
        self._report = report
        self._grace = grace
        self._watch = Watch(call, self._terminate)
        self._limit_mb = (call.resources.memory if call.resources else None) or kind.resources.memory
        self._over_memory = False
        self._stopping: asyncio.TimerHandle | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._sampled_at = self._loop.time()
        self._memory = child.memory_mb()
        self._mb_seconds = 0.0
        self._peak = self._memory or 0.0

    async def made(self) -> Outcome:
        """Make the attempt. When it is cancelled, the child is gone before the CancelledError goes on."""
        self._watch.start()
        self._sampling = self._loop.call_later(SAMPLING, self._sample)
        self._child.printed = self._printed
        try:
            handler = self._kind.handler
            await self._child.say(Invoke(f"{handler.__module__}:{handler.__qualname__}", self._call, self._limit_mb))
            outcome = await self._heard()
            if outcome is None or self._stopping is not None:
                return await self._ended()
            self._account()
            return self._with_usage(outcome)
        except asyncio.CancelledError:
            await self._stopped()
            raise
        finally:
            self._child.printed = None
            self._watch.stop()
            self._sampling.cancel()
            if self._stopping is not None:
                self._stopping.cancel()

    async def _heard(self) -> Done | Broke | None:
        while True:
            match await self._child.hear():
                case Done() | Broke() as outcome:
                    return outcome
                case LogLine() | Progress() | Beat() as said:
                    self._watch.beat()
                    self._report(said)
                case CantSay(message):
                    return broken(self._call, Failure("HANDLER_RAISED", Category.CODE, message))
                case None:
                    return None

    async def _ended(self) -> Outcome:
        """The child is gone, or about to go because we stopped it: say why."""
        code = await self._until_gone()
        usage = Usage(memory_mb_seconds=self._mb_seconds, peak_memory_mb=self._peak)
        if self._watch.failure is not None:
            return broken(self._call, self._watch.failure, usage)
        if self._over_memory:
            return broken(self._call, out_of_memory(self._call, self._limit_mb), usage)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        failure = Failure(
            "PROCESS_DIED",
            Category.RESOURCE,
            f"The process of the handler died: {how}.",
            details={"signal": how} if code < 0 else {"exit_code": code},
        )
        return broken(self._call, failure, usage)

    async def _stopped(self) -> None:
        """Stop the child for real, however often we are cancelled meanwhile: SIGKILL bounds the wait."""
        self._child.usable = False
        if self._stopping is None:
            self._terminate()
        await _over(self._loop.create_task(self._until_gone()))

    async def _until_gone(self) -> int:
        while await self._child.hear() is not None:
            pass
        return await self._child.kill()

    def _terminate(self) -> None:
        self._child.usable = False
        # to the child alone: it may want to end what it started in its own way
        with contextlib.suppress(ProcessLookupError):
            self._child.process.send_signal(signal.SIGTERM)
        self._stopping = self._loop.call_later(self._grace, self._child.signal, signal.SIGKILL)

    def _sample(self) -> None:
        self._account()
        if self._limit_mb is not None and (self._memory or 0.0) > self._limit_mb and not self._over_memory:
            self._over_memory = True
            self._child.usable = False
            self._child.signal(signal.SIGKILL)
            return
        self._sampling = self._loop.call_later(SAMPLING, self._sample)

    def _account(self) -> None:
        now, memory = self._loop.time(), self._child.memory_mb()
        if memory is not None:
            self._mb_seconds += (now - self._sampled_at) * (memory + (self._memory or memory)) / 2
            self._memory = memory
            self._peak = max(self._peak, memory)
        self._sampled_at = now

    def _with_usage(self, outcome: Done | Broke) -> Outcome:
        told = outcome.usage or Usage()
        usage = Usage(told.cpu_seconds, self._mb_seconds, told.peak_memory_mb or self._peak)
        return msgspec.structs.replace(outcome, usage=usage)

    def _printed(self, line: str) -> None:
        self._watch.beat()
        self._report(LogLine("info", plain_text(line, 8_000)))


async def _over(task: asyncio.Task[Any]) -> None:
    """Wait until the task is over, however often we are cancelled meanwhile."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)


def _environment() -> dict[str, str]:
    """The child's environment: ours without Mirrorflow's settings, whose secrets are no handler's business."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("MIRRORFLOW_")}
    kept["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        kept.setdefault(threads, "1")  # as many children as cores: a library's own threads would only fight
    return kept
