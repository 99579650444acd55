"""Whether the database can store: only a real write tells of a full disk, a lost lock or a read-only file."""

from __future__ import annotations

import asyncio

from db.session import Database
from db.store import meta
from engine import clock

EVERY_S = 1.0


class StorageCheck:
    """Asks the database at most once a second, however many want to know, and never twice at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._asked: asyncio.Future[None] | None = None
        self._at = 0.0

    async def __call__(self) -> None:
        """Returns if something was stored within the last second. Raises StorageUnavailable with the remedy."""
        if self._asked is None or (self._asked.done() and clock.monotonic() - self._at >= EVERY_S):
            self._at = clock.monotonic()
            at = clock.now().isoformat()
            self._asked = asyncio.ensure_future(self._database.write(meta.put, meta.STORED_AT, at))
            self._asked.add_done_callback(_heard)
        await asyncio.shield(self._asked)


def _heard(asked: asyncio.Future[None]) -> None:
    """An answer that came after everybody had stopped waiting is no mistake."""
    if not asked.cancelled():
        asked.exception()
