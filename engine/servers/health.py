"""The health loop: every enabled server is asked how it is, all at once, each every 15 seconds by one process.

A check is claimed in SQL on the database's clock, so that any number of processes ask each server once. What was
found is kept in the history and moves the server's status by ``flow.servers``. Checks run beside the loop: one that
hangs, for the three seconds that it may, delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from db.session import Database
from db.store import servers as store
from db.store.servers import Found, StoredServer
from engine import clock
from engine.bus import Bus
from engine.servers.contract import CHECK_S, Checked, ServerClient
from flow.errors import StorageUnavailable
from flow.servers import CheckOutcome, ServerStatus

EVERY_S = 15.0
#: Servers that are registered or changed by a process that is not heard are found within this time.
LOOK_EVERY_S = 5.0
#: Checks that one process makes at the same time.
AT_ONCE = 500
#: Wait after the database could not be asked.
PAUSE_S = 1.0
#: The topic on which somebody says that a server waits to be checked.
WAKE = "servers"

log = logging.getLogger(__name__)


class Health:
    """Checks servers. ``client`` gives the client of a server; it may raise ``Unusable`` with the reason."""

    def __init__(
        self, database: Database, bus: Bus, client: Callable[[StoredServer], ServerClient], *, every_s: float = EVERY_S
    ) -> None:
        self._database = database
        self._bus = bus
        self._client = client
        self._every_s = every_s
        self._loop: asyncio.Task[None] | None = None
        self._checks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to check whatever is due."""
        wait = await self._look()
        self._loop = asyncio.create_task(self._run(wait), name="server health")

    async def stop(self) -> None:
        """Stop, also in the middle of checks: they are due again for others."""
        tasks = [*self._checks, *([self._loop] if self._loop is not None else [])]
        self._loop = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def check(self, server: StoredServer) -> None:
        """Ask the server now, and keep what was found. Raises StorageUnavailable."""
        at = clock.now()
        found = await self._asked(server)
        kept = Found(
            clock.new_id("chk"), at, found.outcome, found.latency_ms, _plain(found.capabilities), found.message
        )
        moved = await self._database.write(store.record, server, kept)
        if moved is None:
            return
        before, after = moved
        if before is not after:
            level = logging.INFO if after is ServerStatus.ONLINE else logging.WARNING
            log.log(level, "server %s (%s) is %s, was %s%s", server.name, server.id, after, before, _why(found))
        self._bus.publish(f"servers:{server.project_id}", (server.id,))

    async def _asked(self, server: StoredServer) -> Checked:
        try:
            async with asyncio.timeout(CHECK_S + 0.5):  # a client bounds itself; one that does not is bounded here
                return await self._client(server).check()
        except TimeoutError:
            return Checked(CheckOutcome.TIMEOUT, message=f"The server {server.name!r} did not answer.")
        except Unusable as reason:
            return Checked(CheckOutcome.WRONG_ANSWER, message=str(reason))

    async def _run(self, wait: float) -> None:
        with self._bus.subscribe(WAKE) as woken:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await woken.take()
                woken.overflowed = False
                wait = await self._look()

    async def _look(self) -> float:
        """Begin what is due; seconds until there is something to do again."""
        try:
            while True:
                due_in = await self._database.read(store.due_in)
                if due_in is None or due_in > 0:
                    return LOOK_EVERY_S if due_in is None else min(LOOK_EVERY_S, due_in)
                if len(self._checks) >= AT_ONCE:
                    await asyncio.wait(self._checks, return_when=asyncio.FIRST_COMPLETED)
                await self._begin()
        except StorageUnavailable as error:
            log.warning("servers can't be checked now: %s", error.message)
            return PAUSE_S

    async def _begin(self) -> None:
        for server in await self._database.write(store.claim_due, self._every_s, AT_ONCE - len(self._checks)):
            task = asyncio.create_task(self._guarded(server), name=f"check {server.id}")
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _guarded(self, server: StoredServer) -> None:
        try:
            await self.check(server)
        except StorageUnavailable as error:
            log.warning("the check of server %s could not be kept: %s", server.id, error.message)
        except Exception:
            log.exception("the check of server %s broke", server.id)


class Unusable(Exception):
    """No client can be made for a server, such as when its token can't be read; the message says why."""


def _why(found: Checked) -> str:
    return f": {found.message}" if found.message else ""


def _plain(capabilities: object) -> object:
    return dict(capabilities) if isinstance(capabilities, dict) else None
