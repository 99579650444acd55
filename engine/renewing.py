"""Keeping leases: renewed thrice in their time, and again soon when that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from flow.errors import StorageUnavailable

#: How soon a renewal that failed is tried again.
AGAIN_S = 0.5

log = structlog.get_logger(__name__)


async def keep(what: str, lease_s: float, renew: Callable[[], Awaitable[None]]) -> None:
    """Call ``renew`` for ever, in time for a lease of ``lease_s`` seconds.

    One that has no answer after half of that is given up for another, on another connection: to wait on would be to
    lose the lease for sure.
    """
    pause = lease_s / 3
    while True:
        await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(lease_s / 2):
                await renew()
            pause = lease_s / 3
        except (StorageUnavailable, TimeoutError) as error:
            log.warning(f"{what}.renewal_failed", error=getattr(error, "message", "no answer in time"))
            pause = AGAIN_S
