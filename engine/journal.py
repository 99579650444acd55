"""The journal: one per process, the only way into an instance's history.

Entries of all running instances are committed together, as soon as the last commit has returned: a lone instance
waits for nobody, and under load a commit is shared by hundreds. An entry's future resolves only when its facts
are stored; nothing is ever acknowledged before.

What can go wrong, and what then:

* the database can't store (locked, full, gone): appends are kept and tried again until it can, because their work is
  done and must not be lost; new instances, those that still wait too, are refused at once: their callers can be told;
* the commit's reply is lost: the next try finds its own sequence numbers there and takes them for what they are;
* one entry spoils its group: the members are committed one by one, and only the culprit's future fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from db.session import Database
from db.store import journal as store
from db.store.journal import Append, Committed, Create, Entry, Outcome, Wake
from engine.bus import Bus
from flow.errors import StorageUnavailable

MAX_GROUP = 1_000  # entries
MAX_ROWS = 5_000  # events in a group: what one transaction may hold up others for
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)

log = structlog.get_logger(__name__)


class Journal:
    """Commits entries in groups. Start it with ``start``, end it with ``close``."""

    def __init__(self, database: Database, bus: Bus, observe: Callable[[int, float], None] = lambda n, s: None) -> None:
        self._database = database
        self._bus = bus
        self._observe = observe
        self._pending: list[tuple[Entry, asyncio.Future[Outcome]]] = []
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        #: Told who has something to do because of what was committed.
        self.tell: Callable[[Sequence[Wake]], None] = lambda wakes: None

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Commit what is there and stop; what can't be stored any more is left to recovery."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        while self._pending and await self._commit(self._take(), retry=False):
            pass
        for _, future in self._pending:
            future.cancel()

    def submit(self, entry: Entry) -> asyncio.Future[Outcome]:
        """Have the entry committed with the next group.

        The future gives the outcome; it raises StorageUnavailable for a Create that can't be stored, and for anything
        once the journal is closed.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(StorageUnavailable("The server is stopping. Nothing was stored; try again."))
            return future
        self._pending.append((entry, future))
        self._filled.set()
        return future

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._filled.wait()
            group = self._take()
            try:
                stored = await self._commit(group)
            except asyncio.CancelledError:
                self._pending[:0] = [member for member in group if not member[1].done()]
                raise
            failures = 0 if stored else failures + 1
            if failures:
                await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S)) - 1])

    def _take(self) -> list[tuple[Entry, asyncio.Future[Outcome]]]:
        rows = taken = 0
        for entry, _ in self._pending[:MAX_GROUP]:
            rows += len(entry.events) if isinstance(entry, Append) else 1
            if taken and rows > MAX_ROWS:
                break
            taken += 1
        group, self._pending = self._pending[:taken], self._pending[taken:]
        if not self._pending:
            self._filled.clear()
        return group

    async def _commit(self, group: list[tuple[Entry, asyncio.Future[Outcome]]], retry: bool = True) -> bool:
        """Commit one group; False if the database could not store it and its appends wait for the next try."""
        entries = [entry for entry, _ in group]
        began = asyncio.get_running_loop().time()
        try:
            outcomes = await self._database.write(store.commit, entries)
        except StorageUnavailable as error:
            log.warning("journal.unavailable", error=error.message, entries=len(entries))
            for entry, future in group:
                if isinstance(entry, Create) or not retry:
                    _fail(future, error)
            if retry:
                # Who waits to start something is told now: the next try may take as long as this one did.
                waiting, self._pending = [*group, *self._pending], []
                for member in waiting:
                    if isinstance(member[0], Append):
                        self._pending.append(member)
                    else:
                        _fail(member[1], error)
                if self._pending:
                    self._filled.set()
                else:
                    self._filled.clear()
            return False
        except Exception as error:
            if len(group) == 1:
                log.error("journal.refused", entry=group[0][0].instance_id, error=repr(error))
                _fail(group[0][1], error)
                return True
            stored = [await self._commit([member], retry) for member in group]
            return all(stored)
        self._observe(len(group), asyncio.get_running_loop().time() - began)
        for (entry, future), outcome in zip(group, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
            if isinstance(outcome, Committed):
                self._publish(entry, outcome)
        return True

    def _publish(self, entry: Entry, outcome: Committed) -> None:
        if outcome.woken:
            self.tell(outcome.woken)
        self._bus.publish(entry.project_id, (outcome.change_seq,))
        if self._bus.wanted(entry.instance_id):
            events = entry.events if isinstance(entry, Append) else (entry.created,)
            first = outcome.change_seq - len(events) + 1
            placed = [msgspec.structs.replace(event, change_seq=first + i) for i, event in enumerate(events)]
            self._bus.publish(entry.instance_id, placed)


def _fail(future: asyncio.Future[Outcome], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
