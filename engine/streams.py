"""Everything that can be watched, without a gap, without a duplicate, and in bounded memory.

A stream is read from the database after its cursor, then followed on the bus. Who subscribed first, late, again, or
reads slowly sees the same sequence: the bus only says that there is more, and whatever does not fit exactly behind
the last one is read from the database instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from db.session import Database
from db.store import changes
from db.store import instances as store
from engine.access import Actor, Permission
from engine.bus import Bus
from flow import events as e
from flow.errors import NotFound

PAGE = 500  # events read at once
CHANGES_EVERY_S = 0.1  # a project's changes are told at most this often

_ENDS = (e.InstanceCompleted, e.InstanceFailed, e.InstanceCanceled, e.InstanceTimedOut)


class Streams:
    """What the subscriptions are made of."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus

    async def events(self, actor: Actor, instance_id: str, after: int = 0) -> AsyncIterator[e.Recorded]:
        """The instance's events with ``seq`` > ``after``, each once, in order; ends behind the terminal one.

        Raises NotFound if the project has no such instance.
        """
        actor.require(Permission.INSTANCE_READ)
        cursor = max(0, after)
        with self._bus.subscribe(instance_id) as subscription:
            status = await self._database.read(store.status, actor.project_id, instance_id)
            if status is None:
                raise NotFound("instance", instance_id)
            if status.completed_at is not None and cursor >= status.last_seq:
                return
            behind = status.last_seq > cursor
            while True:
                while behind:
                    ended = False
                    page = await self._database.read(store.events, instance_id, cursor, PAGE)
                    for recorded in page:
                        yield recorded
                        cursor = recorded.seq
                        ended = isinstance(recorded.event, _ENDS)
                    behind = len(page) == PAGE
                    if not page and await self._over(actor.project_id, instance_id, cursor):
                        return
                    if ended and not behind:  # an end that others follow is none: the failed run was let go on
                        return
                for recorded in await subscription.take():
                    if not isinstance(recorded, e.Recorded):
                        behind = True
                        break
                    if recorded.seq <= cursor:  # told late or twice; or the cursor lies beyond the end
                        behind |= isinstance(recorded.event, _ENDS)
                        continue
                    if recorded.seq > cursor + 1:
                        behind = True
                        break
                    yield recorded
                    cursor = recorded.seq
                    if isinstance(recorded.event, _ENDS):
                        return
                if subscription.overflowed:
                    subscription.overflowed = False
                    behind = True

    async def _over(self, project_id: str, instance_id: str, cursor: int) -> bool:
        """Whether nothing can follow the cursor any more."""
        status = await self._database.read(store.status, project_id, instance_id)
        return status is None or (status.completed_at is not None and cursor >= status.last_seq)

    async def changes(self, actor: Actor, after: int | None = None) -> AsyncIterator[int]:
        """The project's newest change number, whenever it has grown; told at most ten times a second.

        With ``after`` None the present number comes first, so that a snapshot can be taken at it.
        """
        actor.require(Permission.INSTANCE_READ)
        with self._bus.subscribe(actor.project_id) as subscription:
            newest = await self._database.read(changes.newest, actor.project_id)
            told = after if after is not None else -1
            while True:
                if newest > told:
                    yield newest
                    told = newest
                    await asyncio.sleep(CHANGES_EVERY_S)
                numbers = await subscription.take()
                if subscription.overflowed:
                    subscription.overflowed = False
                    newest = await self._database.read(changes.newest, actor.project_id)
                else:
                    newest = max([newest, *(number for number in numbers if isinstance(number, int))])
