"""Work of a known size, to measure the engine with."""

from __future__ import annotations

from typing import Annotated

import msgspec

from engine.nodes.contract import Context, node

MAX_N = 40


class Fib(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    n: Annotated[int, msgspec.Meta(ge=0, le=MAX_N, description="Which number; the next one is 1.6 times as much work.")]


@node("bench/fib", title="Fibonacci", icon="activity", parameters=Fib)
def fib(ctx: Context[Fib]) -> dict[str, int]:
    """Computes a Fibonacci number the slow way, in a thread."""
    return {"n": ctx.parameters.n, "value": _fib(ctx.parameters.n)}


def _fib(n: int) -> int:
    return n if n < 2 else _fib(n - 1) + _fib(n - 2)
