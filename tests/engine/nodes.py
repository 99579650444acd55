"""Node types that only tests have."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from engine.nodes.contract import Context, NodeError, NodeType, node, node_type
from flow.errors import Category

#: Tests let a ``test/gate`` go by setting its event; ``entered`` tells that it waits.
#: By event loop, since an event belongs to one and each test has its own.
GATES: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, tuple[asyncio.Event, asyncio.Event]]] = (
    WeakKeyDictionary()
)


def gate(name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """(entered, go) of a gate; made on first use."""
    gates = GATES.setdefault(asyncio.get_running_loop(), {})
    return gates.setdefault(name, (asyncio.Event(), asyncio.Event()))


@node("test/gate", title="Gate")
async def gate_node(ctx: Context[Any]) -> Any:
    """Waits until the test opens the gate named by `gate`; then it passes, or `fails`."""
    entered, go = gate(ctx.parameters["gate"])
    entered.set()
    await go.wait()
    if ctx.parameters.get("fails"):
        raise NodeError("as told", category=Category.VALIDATION)
    return {"passed": ctx.parameters["gate"]}


@node("test/flaky", title="Flaky")
async def flaky_node(ctx: Context[Any]) -> Any:
    """Fails until attempt number `succeeds_at`."""
    if ctx.attempt < ctx.parameters["succeeds_at"]:
        raise NodeError("not yet", category=Category.CONNECTION)
    return {"attempt": ctx.attempt, "key": ctx.idempotency_key}


@node("test/large", title="Large")
async def large_node(ctx: Context[Any]) -> Any:
    """Gives `size` characters."""
    return {"text": "x" * ctx.parameters["size"], "n": 1}


@node("test/talk", title="Talk")
async def talk_node(ctx: Context[Any]) -> Any:
    """Logs `lines` lines."""
    for number in range(ctx.parameters["lines"]):
        ctx.log.info(f"line {number}")
    ctx.progress(1, 2, "half way")
    return {}


@node("test/tidy", title="Tidy")
async def tidy_node(ctx: Context[Any]) -> Any:
    """Waits to be stopped, and then cleans up in two steps; says so when it could."""
    entered, tidied = gate(ctx.parameters["gate"])
    try:
        entered.set()
        await asyncio.Event().wait()
    finally:
        ctx.log.info("cleaning up")
        await asyncio.sleep(0.05)  # long enough for the line to be stored: that must not stop it again
        tidied.set()


def _kind(handler: object) -> NodeType:
    kind = node_type(handler)
    assert kind is not None
    return kind


TEST_TYPES = [_kind(handler) for handler in (gate_node, flaky_node, large_node, talk_node, tidy_node)]
