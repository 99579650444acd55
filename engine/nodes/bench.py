"""Work of a known size, to measure the engine with."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from engine import clock
from engine.nodes.contract import Context, Placement, node

MAX_N = 40


class Fib(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    n: Annotated[int, msgspec.Meta(ge=0, le=MAX_N, description="Which number; the next one is 1.6 times as much work.")]


@node("bench/fib", title="Fibonacci", icon="activity", parameters=Fib)
def fib(ctx: Context[Fib]) -> dict[str, int]:
    """Computes a Fibonacci number the slow way, in a thread."""
    return {"n": ctx.parameters.n, "value": number(ctx.parameters.n)}


@node("bench/now", title="Now", icon="clock", placement=Placement.ASYNC)
async def now(ctx: Context[dict[str, Any]]) -> dict[str, str]:
    """Tells when it was called, to measure how long a start takes."""
    return {"at": clock.now().isoformat()}


def number(n: int) -> int:
    """The n-th Fibonacci number, in time proportional to it."""
    return n if n < 2 else number(n - 1) + number(n - 2)
