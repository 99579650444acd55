"""Node types that behave badly, for the tests of placement. Those for a child process must be importable."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine.nodes.contract import Context, NodeError, Placement, node
from flow.definition import Resources
from flow.errors import Category

PROCESS = Placement.PROCESS
Anything = Context[dict[str, Any]]


@node("test/loop-gives", title="Gives what it is told")
async def loop_gives(ctx: Anything) -> Any:
    return ctx.parameters["output"]


@node("test/loop-hangs", title="Waits for ever, and cleans up")
async def loop_hangs(ctx: Anything) -> Any:
    try:
        await asyncio.Event().wait()
    finally:
        ctx.parameters["cleaned"] = True


@node("test/loop-ignores", title="Catches every cancellation")
async def loop_ignores(ctx: Anything) -> Any:
    while True:
        ctx.parameters["caught"] = ctx.parameters.get("caught", -1) + 1
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@node("test/loop-raises", title="Raises after a while")
async def loop_raises(ctx: Anything) -> Any:
    await asyncio.sleep(0)
    raise RuntimeError("boom \udc00 \0")


@node("test/loop-exits", title="Calls sys.exit")
async def loop_exits(ctx: Anything) -> Any:
    sys.exit(3)


@node("test/loop-refuses", title="Refuses")
async def loop_refuses(ctx: Anything) -> Any:
    raise NodeError("no", category=Category.RATE_LIMIT, code="SLOW_DOWN", retry_after_seconds=7, details={"x": 1})


@node("test/loop-talks", title="Says something, then waits to be told")
async def loop_talks(ctx: Anything) -> Any:
    ctx.log.info("hello", answer=42, odd=object)
    ctx.progress(1, 2, "half")
    for _ in range(2_000):
        ctx.log.debug("more")
    return {"key": ctx.idempotency_key, "attempt": ctx.attempt}


@node("test/loop-beats", title="Gives signs of life for a while")
async def loop_beats(ctx: Anything) -> Any:
    for _ in range(ctx.parameters["times"]):
        await asyncio.sleep(0.02)
        ctx.heartbeat()
    if ctx.parameters.get("then_silent"):
        await asyncio.Event().wait()
    return "done"


@node("test/loop-inner-cancel", title="Lets the cancellation of something of its own escape")
async def loop_inner_cancel(ctx: Anything) -> Any:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


@node("test/loop-own-timeout", title="Is cancelled by a timeout of its own, and works on")
async def loop_own_timeout(ctx: Anything) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    await asyncio.sleep(ctx.parameters["seconds"])
    return {"stopping": ctx.cancelled}


@node("test/thread-gives", title="Gives what it is told")
def thread_gives(ctx: Anything) -> Any:
    ctx.log.info("from a thread")
    return ctx.parameters["output"]


@node("test/thread-waits", title="Waits until it is cancelled")
def thread_waits(ctx: Anything) -> Any:
    while not ctx.cancelled:
        time.sleep(0.002)
    Path(ctx.parameters["file"]).write_text("saw it")


@node("test/process-gives", title="Gives what it is told", placement=PROCESS)
def process_gives(ctx: Anything) -> Any:
    return ctx.parameters["output"]


@node("test/process-knows", title="Tells what it sees", placement=PROCESS)
def process_knows(ctx: Anything) -> Any:
    return {"pid": os.getpid(), "group": os.getpgrp(), "environment": dict(os.environ)}


@node("test/process-prints", title="Prints", placement=PROCESS)
def process_prints(ctx: Anything) -> Any:
    print("one")  # noqa: T201
    print("two", file=sys.stderr)  # noqa: T201
    ctx.progress(1, 1)
    os.write(1, b"three\n")
    return "fine"


@node("test/process-burns", title="Works for a while", placement=PROCESS)
def process_burns(ctx: Anything) -> Any:
    held = bytearray(60_000_000)
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    return len(held)


@node("test/process-hangs", title="Starts a program, then waits for ever", placement=PROCESS)
def process_hangs(ctx: Anything) -> Any:
    grandchild = subprocess.Popen(["sleep", "600"])
    try:
        ctx.log.info("hanging", child=os.getpid(), grandchild=grandchild.pid)
        while True:
            time.sleep(600)
    finally:
        Path(ctx.parameters["file"]).write_text("cleaned up")


@node("test/process-ignores", title="Ignores SIGTERM", placement=PROCESS)
def process_ignores(ctx: Anything) -> Any:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctx.log.info("ignoring", child=os.getpid())
    while True:
        time.sleep(600)


@node("test/process-dies", title="Dies", placement=PROCESS)
def process_dies(ctx: Anything) -> Any:
    os.kill(os.getpid(), getattr(signal, ctx.parameters["by"]))
    time.sleep(600)


@node("test/process-crashes", title="Reads where nothing is", placement=PROCESS)
def process_crashes(ctx: Anything) -> Any:
    ctypes.string_at(0)


@node("test/process-leaves", title="Leaves without a word", placement=PROCESS)
def process_leaves(ctx: Anything) -> Any:
    os._exit(7)


@node("test/process-exits", title="Calls sys.exit", placement=PROCESS)
def process_exits(ctx: Anything) -> Any:
    sys.exit("enough")


@node("test/process-eats", title="Eats memory", placement=PROCESS, resources=Resources(memory=150))
def process_eats(ctx: Anything) -> Any:
    held = []
    while True:
        held.append(bytearray(b"x" * ctx.parameters["bytes"]))
        time.sleep(0.01)


@node("test/process-keeps", title="Puts an artifact", placement=PROCESS)
def process_keeps(ctx: Anything) -> Any:
    return {"put": ctx.artifacts.put_bytes(b"\x00\x01", "application/x-test").sha256}
