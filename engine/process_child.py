"""A warm child process: makes attempts, one after the other, until its parent is gone.

The main thread runs the handlers, so that SIGTERM can interrupt them; another thread reads the
pipe, so that the parent's end is noticed in the middle of one, and ends the whole process group
(the kernel's PDEATHSIG would end only this process, not what a handler started). Whatever a handler prints becomes
log lines: the frames have a descriptor of their own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from engine.artifacts import ArtifactStore
from engine.calls import Done, Level, LogLine, Outcome
from engine.files import Files
from engine.invoke import broke, context
from engine.nodes.contract import MAX_LOG_LINES, Cancelled, NodeType, Stop, Surroundings, node_type, plain_text
from engine.outbound import Outbound
from engine.output import stored
from engine.pipe import CantSay, FromChild, Hello, Invoke, ToChild, frame, to_child
from flow.events import Usage

try:
    import resource
except ImportError:  # not a POSIX system: nothing is limited, and only the parent measures
    resource = None  # type: ignore[assignment]

#: Megabytes of address space on top of a limit: libraries map far more than they use. The parent watches the real use.
ADDRESS_SPACE_SLACK = 1_024
#: Seconds after its timeout at which an attempt ends even in a process that can't notice that its parent is gone.
ORPHAN_MARGIN = 60.0


class Child:
    """This process, as its parent sees it."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._frames: queue.SimpleQueue[ToChild] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
        self._stop: Stop | None = None
        self._surroundings: Surroundings | None = None

    def serve(self) -> None:
        """Make attempts for ever."""
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the parent's business
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            match self._frames.get():
                case Hello() as hello:
                    self._surroundings = Surroundings(
                        Files([Path(root) for root in hello.roots]), ArtifactStore(Path(hello.artifacts)), Outbound()
                    )
                case Invoke() as invoke:
                    self._make(invoke)

    def _make(self, invoke: Invoke) -> None:
        assert self._surroundings is not None
        self._stop = Stop()
        try:
            self._say(self._outcome(invoke, self._surroundings, self._stop))
        except Cancelled:
            self._end()
        stopped, self._stop = self._stop.requested, None
        if stopped:  # the handler swallowed it: whatever it gave is not wanted
            self._end()

    def _outcome(self, invoke: Invoke, surroundings: Surroundings, stop: Stop) -> Outcome:
        meter = _Meter()
        # While a handler holds the interpreter, no thread notices the parent's end; this clock needs no interpreter.
        limit = invoke.call.timeout.total_seconds() + ORPHAN_MARGIN
        faulthandler.dump_traceback_later(limit, exit=True, file=self._nowhere)
        try:
            with _limited(invoke.memory_mb), _captured(self._say):
                kind = _loaded(invoke.handler)
                given = context(kind, invoke.call, surroundings, self._say, stop)
                output, artifact = stored(kind.handler(given), surroundings.artifacts)
            return Done(output, meter.usage(), artifact, given.kept)
        except Cancelled:
            raise
        except BaseException as problem:  # a handler's sys.exit() is a failure of its own, not the end of the child
            return broke(invoke.call, problem, meter.usage())
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _say(self, message: FromChild) -> None:
        try:
            data = frame(message)
        except (TypeError, ValueError, RecursionError) as problem:
            data = frame(CantSay(f"{type(problem).__name__}: {problem}"))
        with self._sending:
            self._pipe.sendall(data)

    def _read(self) -> None:
        with contextlib.suppress(OSError, msgspec.MsgspecError), self._pipe.makefile("rb") as reading:
            while head := reading.read(4):
                self._frames.put(to_child.decode(reading.read(int.from_bytes(head, "big"))))
        # The parent is gone, or speaks no sense: end at once, with everything that a handler has started.
        with contextlib.suppress(OSError):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    def _terminate(self, number: int, where: FrameType | None) -> None:
        if self._stop is None:
            self._end()
        elif not self._stop.requested:
            self._stop.requested = True
            raise Cancelled

    def _end(self) -> None:
        # no clean-up of the interpreter: libraries with threads of their own may hang in it
        os._exit(0)


class _Meter:
    """What this process uses from here on."""

    def __init__(self) -> None:
        self._before = self._cpu()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: count the peak anew

    def usage(self) -> Usage:
        return Usage(cpu_seconds=self._cpu() - self._before, peak_memory_mb=self._peak_mb())

    @staticmethod
    def _cpu() -> float:
        if resource is None:
            return time.process_time()
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    @staticmethod
    def _peak_mb() -> float | None:
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) / 1024
        except (OSError, ValueError, IndexError):
            if resource is None:
                return None
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def _limited(memory_mb: int | None) -> Any:
    """Bound what the process may map, while a handler runs."""
    if memory_mb is None or resource is None or not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (memory_mb + ADDRESS_SPACE_SLACK) * 1024 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class _Printed(io.TextIOBase):
    """A text stream whose lines become log lines."""

    def __init__(self, say: Any, level: Level) -> None:
        self._say = say
        self._level = level
        self._begun = ""
        self._lines = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._line(line)
        if len(self._begun) > 8_000:
            self._line(self._begun)
            self._begun = ""
        return len(text)

    def finish(self) -> None:
        """Let go of a line without an end."""
        if self._begun:
            self._line(self._begun)
            self._begun = ""

    def _line(self, line: str) -> None:
        self._lines += 1
        if line and self._lines <= MAX_LOG_LINES:
            self._say(LogLine(self._level, plain_text(line, 8_000)))


@contextlib.contextmanager
def _captured(say: Any) -> Any:
    out, err = _Printed(say, "info"), _Printed(say, "warning")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.finish()
            err.finish()


def _loaded(handler: str) -> NodeType:
    module, _, name = handler.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    kind = node_type(found)
    if kind is None:
        raise TypeError(f"{handler} is no longer a node type.")
    return kind


def main() -> None:
    """Serve the pipe whose descriptor is the first argument."""
    Child(socket.socket(fileno=int(sys.argv[1]))).serve()
