"""A real Redis for tests: its own server on a port of its own, in a folder that goes away with it."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

START_TIMEOUT_S = 20.0
_prefixes = count(1)


class Unavailable(Exception):
    """Why no Redis can be started here."""


class RedisServer:
    """A server that can be killed and started again on the same port. ``close`` ends it and removes its folder.

    Nothing is kept on disk, so a server that was stopped or killed comes back empty. All methods block for a moment.
    """

    def __init__(self, *options: str, password: str | None = None) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise Unavailable("no redis-server on PATH")
        self._program = program
        self._options = (*options, *(("--requirepass", password) if password else ()))
        self._password = password
        self._folder = Path(tempfile.mkdtemp(prefix="mf-redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        try:
            for again in range(4):  # somebody else may take the port between our asking and our using it
                try:
                    self.start()
                    return
                except Unavailable:
                    if again == 3:
                        raise
                    self.port = _free_port()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Redis's URL of database 0."""
        secret = f":{self._password}@" if self._password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def prefix(self) -> str:
        """A prefix of keys that nobody else of this test run uses."""
        return f"mirrorflow:test{next(_prefixes)}"

    def start(self) -> None:
        """Start it, empty, unless it runs; returns when it answers."""
        if self.running:
            return
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *arguments, "--dir", str(self._folder), *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then ends the server in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.running:
            with contextlib.suppress(OSError):
                if self.command("PING") == b"PONG":
                    return
            time.sleep(0.01)
        self.kill()
        raise Unavailable(f"redis-server did not start: {(self._folder / 'log').read_text(errors='replace')[-500:]}")

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop in order."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """kill -9, and start again, empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Keep the connections and answer nothing (SIGSTOP) until ``resume``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def flush(self) -> None:
        """Forget everything (FLUSHALL)."""
        self.command("FLUSHALL")

    def command(self, *words: str | bytes | int) -> Any:
        """The answer to one command, over a connection of its own. Raises OSError if nobody answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
            stream = connection.makefile("rwb")
            if self._password:
                _send(stream, "AUTH", self._password)
                _answer(stream)
            _send(stream, *words)
            return _answer(stream)

    def close(self) -> None:
        """End it at once and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        if how is not signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def redis_for_all() -> Iterator[RedisServer]:
    """A running Redis, one for all tests that only use it (by a prefix of their own); skips where there is none."""
    yield from _running()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A running Redis of the test's own, to kill, flush and restart; skips where there is none."""
    yield from _running()


def _running() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
    except Unavailable as reason:
        pytest.skip(f"Redis can't be started: {reason}")
    yield server
    server.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _send(stream: Any, *words: str | bytes | int) -> None:
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    stream.write(b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw))
    stream.flush()


def _answer(stream: Any) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("Redis hung up")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"+":
            return rest
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else stream.read(int(rest) + 2)[:-2]
        case b"*":
            return None if rest == b"-1" else [_answer(stream) for _ in range(int(rest))]
        case _:
            raise ConnectionError(f"Redis says {line.decode(errors='replace').strip()}")


_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """A killed test run leaves no server behind (PR_SET_PDEATHSIG)."""
    assert _libc is not None
    _libc.prctl(1, signal.SIGKILL)
