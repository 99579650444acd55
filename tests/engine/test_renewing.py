"""Leases are renewed again soon after a renewal failed."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from engine import renewing
from flow.errors import StorageUnavailable


async def test_a_renewal_that_fails_or_hangs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the lease is over, and not only when the next one would be due."""
    monkeypatch.setattr(renewing, "AGAIN_S", 0.0)
    tries, renewed = count(1), asyncio.Event()

    async def renew() -> None:
        match next(tries):
            case 1:
                await asyncio.Event().wait()
            case 2:
                raise StorageUnavailable("Not now.")
            case _:
                renewed.set()

    keeping = asyncio.create_task(renewing.keep("test", 0.06, renew))
    try:
        async with asyncio.timeout(10):
            await renewed.wait()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
