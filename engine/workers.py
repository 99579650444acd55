"""Which workers there are: each says so of itself in the database, and every process knows the others from there.

A heartbeat is one small transaction that also answers who else is alive, so knowing costs nothing more. The bus only
hurries things: ``workers`` tells watchers which worker changed, ``drain:<id>`` tells a worker that somebody wants it to
drain; whoever misses a message learns of it with the next heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection

from db.session import Database
from db.store import dbclock
from db.store import workers as store
from db.store.workers import HEARTBEAT_S, Heard, Heartbeat, WorkerInfo
from engine import clock
from engine.access import Actor, Permission
from engine.bus import Bus
from flow.errors import Conflict, NotFound, StorageUnavailable

__all__ = ["TOPIC", "WorkerInfo", "Workers"]

#: The bus's topic on which the ids of workers that changed are told.
TOPIC = "workers"
CHANGES_EVERY_S = 0.1  # watchers are told at most this often
#: A worker that becomes busy or idle, or changes otherwise, says so within this time.
NOTICE_S = 1.0
FORGET_EVERY_S = 3_600.0

log = logging.getLogger(__name__)

Shown = tuple[object, ...]


class Workers:
    """The registry of workers, and this process's entry in it.

    ``slots`` and ``running`` give counts by placement, ``instances`` how many runs it drives; they are asked once a
    second, so they must be cheap. ``on_drain`` is called once, when somebody asks this worker to drain.
    ``works`` False: a process without a worker; it is not in the registry, but knows who is.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        *,
        id: str,
        host: str,
        pid: int,
        version: str,
        labels: frozenset[str] = frozenset(),
        gpus: int = 0,
        slots: Callable[[], Mapping[str, int]],
        running: Callable[[], Mapping[str, int]],
        instances: Callable[[], int],
        on_drain: Callable[[], None],
        works: bool = True,
    ) -> None:
        self.id = id
        self._database = database
        self._bus = bus
        self._host, self._pid, self._version = host, pid, version
        self._labels, self._gpus = labels, gpus
        self._slots, self._running, self._instances = slots, running, instances
        self._on_drain = on_drain
        self._works = works
        self._draining = False
        self._live: tuple[WorkerInfo, ...] = ()
        #: How often each label set was chosen since ``_live`` was read: those places are hardly free any more.
        self._chosen: Counter[frozenset[str]] = Counter()
        self._versions: frozenset[str] = frozenset({version})
        self._told: Shown | None = None
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unavailable = False

    async def start(self) -> None:
        """Register, and go on saying that this worker lives. Raises StorageUnavailable."""
        await self._beat()
        self._tasks = [asyncio.create_task(self._beating(), name="worker heartbeat")]
        if self._works:
            self._tasks.append(asyncio.create_task(self._listening(), name="worker drain"))
        self._tasks.append(asyncio.create_task(self._noticing(), name="worker others"))

    async def stop(self) -> None:
        """Say that this worker has stopped; where that can't be stored, its silence will say it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        started, self._tasks = bool(self._tasks), []
        if self._works and started:
            try:
                await self._database.write(store.stop, self.id)
            except StorageUnavailable as error:
                log.warning("the end of this worker could not be noted: %s", error.message)
            self._bus.publish(TOPIC, (self.id,))

    def drain(self) -> None:
        """This worker takes no new work from now on; tell the others soon."""
        self._draining = True
        self._hurry.set()

    # Who is there

    def live(self) -> Sequence[WorkerInfo]:
        """Every worker that is alive, this one too, as of at most one heartbeat ago."""
        return self._live

    def label_set_for(
        self, labels: Collection[str], gpus: int = 0, placement: str | None = None
    ) -> frozenset[str] | None:
        """The label set of the live workers that fit and have, together, the most free places; None if nobody fits.

        It fits whoever has all the ``labels`` (and perhaps more) and that many ``gpus``, and does not drain. If all of
        them are full, it is the least overrun one: work may wait there.
        """
        free: Counter[frozenset[str]] = Counter()
        for worker in self._live:
            if worker.fits(labels, gpus):
                free[worker.labels] += worker.free(placement)
        if not free:
            return None
        # Of equals the one with fewer labels: those with more can do what others can't.
        best = max(free, key=lambda each: (free[each] - self._chosen[each], -len(each), sorted(each)))
        self._chosen[best] += 1
        return best

    # What can be done

    async def ask_to_drain(self, actor: Actor, id: str) -> None:
        """Have a worker take no new work and, once idle, stop. Twice is once.

        Raises Denied, NotFound, and Conflict if it has stopped or was not heard of for three heartbeats.
        """
        actor.require(Permission.WORKER_ADMIN)
        match await self._database.write(store.ask_to_drain, id):
            case None:
                raise NotFound("worker", id, path=("input", "id"))
            case "OFFLINE":
                raise Conflict(
                    f"The worker {id} has stopped or was not heard of lately, so it can't drain.",
                    path=("input", "id"),
                    state="OFFLINE",
                )
            case "ONLINE" | "DRAINING":
                self._bus.publish(_drain_topic(id), (id,))
                self._bus.publish(TOPIC, (id,))

    async def changes(self, actor: Actor) -> AsyncGenerator[None, None]:
        """An item whenever workers may have changed: at once when one says so, or with the next heartbeat's time.

        Silence changes a worker too (it is OFFLINE then), and nobody can say so for it.
        """
        actor.require(Permission.WORKER_READ)
        with self._bus.subscribe(TOPIC) as subscription:
            while True:
                yield
                await asyncio.sleep(CHANGES_EVERY_S)
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await subscription.take()
                        subscription.overflowed = False
                except TimeoutError:
                    pass

    # Inside

    async def _beating(self) -> None:
        due = clock.monotonic() + HEARTBEAT_S
        forget_at = clock.monotonic()
        while True:
            try:
                async with asyncio.timeout(NOTICE_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            now = clock.monotonic()
            if now < due and not self._hurry.is_set() and self._shown() == self._told:
                continue
            self._hurry.clear()
            due = now + HEARTBEAT_S
            try:
                await self._beat()
                if now >= forget_at:
                    forget_at = now + FORGET_EVERY_S
                    await self._database.write(store.forget)
            except StorageUnavailable as error:
                if not self._unavailable:
                    log.warning("this worker can't say that it lives: %s", error.message)
                self._unavailable = True
                due = now + NOTICE_S
            except Exception:  # without heartbeats the others would take this worker for dead
                log.exception("a heartbeat failed")

    async def _beat(self) -> None:
        await self._agree_on_the_time()
        if not self._works:
            self._heard(Heard(False, await self._database.read(store.live)))
            return
        shown = self._shown()
        said = Heartbeat(
            id=self.id,
            host=self._host,
            pid=self._pid,
            version=self._version,
            labels=self._labels,
            gpus=self._gpus,
            slots=dict(self._slots()),
            running=dict(self._running()),
            instances=self._instances(),
            draining=self._draining,
        )
        self._heard(await self._database.write(store.beat, said))
        changed, self._told = shown != self._told, shown
        if changed:
            self._bus.publish(TOPIC, (self.id,))

    async def _agree_on_the_time(self) -> None:
        if self._database.dialect == "postgresql":  # SQLite's clock is this machine's own
            for answer in await self._database.read(_times):
                clock.agree(*answer)

    def _heard(self, heard: Heard) -> None:
        self._live = heard.live
        self._chosen.clear()
        if self._unavailable:
            self._unavailable = False
            log.info("this worker can say again that it lives")
        versions = frozenset(worker.version for worker in heard.live)
        if len(versions) > 1 and versions != self._versions:
            log.warning("workers of different versions share this database: %s", ", ".join(sorted(versions)))
        self._versions = versions
        if heard.draining and not self._draining:
            self._draining = True
            self._on_drain()

    def _shown(self) -> Shown:
        """What a watcher should soon see: not every figure, but whether it drains and which places are all or none."""
        running = self._running()
        full = tuple(running.get(each, 0) >= most for each, most in self._slots().items())
        return self._draining, full, any(running.values()), self._instances() > 0

    async def _listening(self) -> None:
        with self._bus.subscribe(_drain_topic(self.id)) as subscription:
            while True:
                await subscription.take()
                subscription.overflowed = False
                self._hurry.set()

    async def _noticing(self) -> None:
        """Whoever is new is known at once, and not with the next heartbeat."""
        with self._bus.subscribe(TOPIC) as subscription:
            while True:
                known = {worker.id for worker in self._live} | {self.id}
                if not known.issuperset(await subscription.take()):
                    self._hurry.set()
                subscription.overflowed = False


def _times(connection: Connection) -> list[tuple[datetime, float, float]]:
    """What the database's clock says, and when it was asked and answered: the first question may open a transaction."""
    answers = []
    for _ in range(2):
        asked = clock.monotonic()
        answers.append((dbclock.present(connection), asked, clock.monotonic()))
    return answers


def _drain_topic(id: str) -> str:
    return f"drain:{id}"
