"""Node types that do harm, and the clock that jumps: a plugin of every process of a chaos test.

Tests and handlers are in different processes and talk by files: a handler adds a line to ``file`` when it begins, and
some wait until ``<file>.go`` exists. Where ``CHAOS_CLOCK`` names a file, the process's clock is wrong by the seconds in
it, from one moment to the next, as after a correction by hand; the database's clock is not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine import clock
from mirrorflow import Context, Placement, node


def entered(file: str, word: str) -> int:
    """Add a line, whole even if many do; how many there are now."""
    with open(file, "ab", buffering=0) as out:
        out.write(f"{word}\n".encode())
    return Path(file).read_bytes().count(b"\n")


@node("test/mark", title="Mark")
async def mark(ctx: Context[dict[str, Any]]) -> dict[str, Any]:
    """Adds its idempotency key to `file`, and takes `seconds`."""
    entered(ctx.parameters["file"], ctx.idempotency_key)
    await asyncio.sleep(ctx.parameters.get("seconds", 0))
    return {"done": True}


@node("test/hold", title="Hold")
async def hold(ctx: Context[dict[str, Any]]) -> dict[str, Any]:
    """Adds its process and attempt to `file`, and waits until `<file>.go` exists."""
    entered(ctx.parameters["file"], f"{os.getpid()} {ctx.attempt}")
    go = Path(ctx.parameters["file"] + ".go")
    while not go.exists():  # noqa: ASYNC110, ASYNC240  (the test is another process)
        await asyncio.sleep(0.02)
    return {"attempt": ctx.attempt}


@node("test/kill", title="Kill")
async def kill(ctx: Context[dict[str, Any]]) -> dict[str, Any]:
    """Kills its worker, so many `times` in all by the lines of `file`."""
    if entered(ctx.parameters["file"], str(os.getpid())) <= ctx.parameters["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"survived": True}


@node("test/block", title="Block")
async def block(ctx: Context[dict[str, Any]]) -> dict[str, Any]:
    """Blocks the event loop of its worker for `seconds`, the first time."""
    if entered(ctx.parameters["file"], str(os.getpid())) == 1:
        time.sleep(ctx.parameters["seconds"])  # noqa: ASYNC251  (that is the harm)
    return {"attempt": ctx.attempt}


@node("test/hang", title="Hang")
def hang(ctx: Context[dict[str, Any]]) -> None:
    """Never returns, in a thread."""
    entered(ctx.parameters["file"], str(os.getpid()))
    while True:
        time.sleep(3_600)


@node("test/stubborn", title="Stubborn", placement=Placement.PROCESS)
def stubborn(ctx: Context[dict[str, Any]]) -> None:
    """Never returns, in a process that ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    entered(ctx.parameters["file"], str(os.getpid()))
    while True:
        time.sleep(3_600)


@node("test/eat", title="Eat", placement=Placement.PROCESS)
def eat(ctx: Context[dict[str, Any]]) -> None:
    """Takes memory until it is stopped."""
    eaten = []
    while True:
        eaten.append(b"x" * 10_000_000)


@node("test/talk", title="Talk")
def talk(ctx: Context[dict[str, Any]]) -> str:
    """Logs `lines` lines of a hundred characters."""
    for number in range(ctx.parameters["lines"]):
        ctx.log.info("x" * 100, number=number)
    return "said"


def _wrong() -> float:
    try:
        return float(Path(os.environ["CHAOS_CLOCK"]).read_text() or 0)
    except (OSError, ValueError):
        return 0.0


class _Wrong(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(seconds=_wrong())


if "CHAOS_CLOCK" in os.environ:
    _time = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: time.time_ns() + int(_wrong() * 1e9))
    vars(clock).update(datetime=_Wrong, time=_time)
