"""Claims instances that have something to do, and drives them.

Who holds what is decided by the database alone (``db.store.leases``). What is subtle:

* A wake-up for an instance that is held here goes to its drive; between the claim and the drive's first step it is
  remembered in ``_knocks``, so that a letter posted at that moment is read.
* Leases are renewed by a task of their own. One that isn't renewed is given up at once: another worker may hold it.
* The sweep is the safety net: whatever is due and held by nobody is woken, whoever forgot it.
* Suspects (``db.store.leases``) are driven one at a time, the next when the last has got on or lived long enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any

import structlog

from db.session import Database
from db.store import admission, leases
from db.store.instances import Letter
from db.store.journal import Append, Wake, instance_row
from db.store.leases import Claim
from engine import clock
from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.attempts import Attempts
from engine.bus import Bus
from engine.cache import ResultCache
from engine.children import Children, farewell
from engine.definitions import PinnedVersion
from engine.drive import Drive
from engine.journal import Journal
from engine.loading import Found, Loader, claim_and_read, read_claimed
from engine.offers import Offers
from engine.placement import Runner
from engine.places import Places
from engine.queue import Queue
from engine.renewing import keep
from engine.sharing import Sharing
from engine.workers import Workers
from flow import events as e
from flow.errors import Category, Failure, StorageUnavailable, WorkflowError
from flow.history import replay

MAX_CLAIM = 200  # instances in one claim
MAX_INSTANCES = 1_000  # instances driven at once
SWEEP_S = 5.0
LEAST_SWEEP_S = 0.5
TIMER_HORIZON_S = 3 * SWEEP_S  # what is due later is left to the sweep
#: Where somebody waits for a place, workers that have places may take a new run first.
CROWDED_S = 0.05
#: The bus's topic on which everybody hears that attempts are offered which ask for nothing in particular.
OFFERED = "offered"
CLAIMED_S = 5.0  # so long a stop waits for a claim that is under way
SUSPECT_S = 10.0  # who drove a suspect this long and lives is not killed by it at once

log = structlog.get_logger(__name__)


class Executor:
    """Drives up to ``max_instances`` instances at once. Start it with ``start``, end it with ``stop``."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        queue: Queue,
        bus: Bus,
        workers: Workers,
        runner: Runner,
        version: Callable[[str], Awaitable[PinnedVersion]],
        children: Children,
        *,
        worker: str,
        lease_s: float = 15.0,
        max_instances: int = MAX_INSTANCES,
        labels: frozenset[str] = frozenset(),
        gpus: int = 0,
        observe: Callable[[str, float], None] = lambda node_type, seconds: None,
    ) -> None:
        self.journal = journal
        self.runner = runner
        self.children = children
        self.worker = worker
        self.lease_s = lease_s
        self.artifacts: ArtifactStore = runner.surroundings.artifacts
        self.attempts = Attempts(runner, ResultCache(database, self.artifacts), observe)
        self.places = Places({str(placement): slots for placement, slots in runner.slots.items()})
        self.offers = Offers(
            database,
            self.attempts,
            self.places,
            self.artifacts,
            worker=worker,
            lease_s=lease_s,
            labels=labels,
            gpus=gpus,
            tell=self.tell,
            call_others=lambda: self._bus.publish(OFFERED, ("",)),
        )
        self.loader = Loader(database, self.artifacts, runner.registry, self.places, version, labels)
        self.sharing = Sharing(self.places, workers, worker)
        self.draining = False
        self._database = database
        self._queue = queue
        self._bus = bus
        self._workers = workers
        self._max_instances = max_instances
        self._fences: dict[str, int] = {}
        self._drives: dict[str, Drive] = {}
        self._knocks: set[str] = set()
        #: Held from asking for runs until what came is held here: who stops in between would keep it for a lease.
        self._claims = asyncio.Lock()
        self._space = asyncio.Event()
        self._space.set()
        self._suspect_tried = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._driving: set[asyncio.Task[None]] = set()

    # ---- life

    def start(self) -> None:
        """Begin to claim and to drive; whatever was left undone is found by the first sweep."""
        of_instances = (self._claiming, self._renewing, self._sweeping, self._trying_suspects)
        of_offers = (self.offers.taking, self.offers.sweeping, self.offers.renewing, self.offers.writing)
        for loop in (*of_instances, *of_offers, self._hearing, self._hearing_offers, self.sharing.looking_round):
            self._tasks.add(asyncio.create_task(_kept_up(loop), name=loop.__qualname__))

    async def stop(self, grace_s: float = 30.0) -> None:
        """Claim nothing more, let running nodes finish within the grace, stop the others, give every lease back."""
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLAIMED_S), self._claims:
                pass
        still = (self._renewing, self.offers.taking, self.offers.renewing, self.offers.writing)
        needed = {loop.__qualname__ for loop in still}
        await _end([task for task in self._tasks if task.get_name() not in needed])
        await asyncio.gather(self.offers.stop(grace_s), _over(self._driving, grace_s))
        for drive in list(self._drives.values()):
            drive.stop_attempts()
        if self._driving:
            await asyncio.wait(self._driving, timeout=15.0)
        held = list(self._fences)
        await _end([*self._driving, *self._tasks])
        if held:
            try:
                await self._database.write(leases.release, self.worker, held)
                for id in held:
                    self._queue.wake(id)
            except StorageUnavailable as error:
                log.warning("executor.leases_kept", error=error.message)

    def drain(self) -> None:
        """Claim nothing more and start no more nodes; what runs goes on, and its instances are then left to others."""
        self.draining = True
        self._queue.drain()
        self.offers.drain()
        for drive in self._drives.values():
            drive.knock()

    # ---- waking

    def tell(self, wakes: Iterable[Wake]) -> None:
        """Wake whom a commit gave something to do: what is held here, what another worker holds, what nobody does."""
        for wake in wakes:
            if not wake.id.startswith("att-"):
                self.wake(wake.id, inbox=True, priority=wake.priority, owner=wake.owner, fence=wake.fence)
            elif wake.owner == self.worker:
                self.offers.stop_one(wake.id)
            elif wake.owner is not None:
                self._bus.publish(_topic(wake.owner), (wake.id,))
            elif (labels := self._workers_for(wake)) is not None:
                self._queue.wake(wake.id, wake.priority, labels=labels)
            else:
                self.offers.knock()
                self._bus.publish(OFFERED, (wake.id,))

    def wake(
        self,
        instance_id: str,
        *,
        inbox: bool = False,
        priority: int = 5,
        owner: str | None = None,
        fence: int = 0,
    ) -> None:
        """Have the instance looked at: by its drive if it is held here, by its ``owner``, or by whoever claims it."""
        drive = self._drives.get(instance_id)
        if drive is not None:
            drive.knock(inbox=inbox)
        elif instance_id in self._fences:
            self._knocks.add(instance_id)
        elif owner is not None and owner != self.worker:
            self._bus.publish(_topic(owner), (instance_id,))
        else:
            self._queue.wake(instance_id, priority, fence=fence)

    def _workers_for(self, wake: Wake) -> frozenset[str] | None:
        """The labels of the workers whose queue is to have the offer. None: tell all, as it asks for nothing in
        particular (they are many then, and one worker may be full), or nobody who fits is known yet.
        """
        if wake.labels or wake.gpus:
            return self._workers.label_set_for(frozenset(wake.labels), wake.gpus)
        return None

    async def _hearing(self) -> None:
        """What other processes have to say to this very worker."""
        with self._bus.subscribe(_topic(self.worker)) as subscription:
            while True:
                for id in await subscription.take():
                    if str(id).startswith("att-"):
                        self.offers.stop_one(str(id))
                    else:
                        self.wake(str(id), inbox=True)
                subscription.overflowed = False  # letters are looked for with every renewal

    async def _hearing_offers(self) -> None:
        with self._bus.subscribe(OFFERED) as subscription:
            while True:
                await subscription.take()
                subscription.overflowed = False
                self.offers.knock()

    def accepts(self) -> bool:
        """Whether there is room for one more instance, so that a new one may be claimed as it is created."""
        return not self.draining and bool(self._tasks) and len(self._fences) < self._max_instances

    def adopt(self, instance_id: str, project_id: str, created: e.Recorded) -> None:
        """Drive an instance that was created with a claim for this worker."""
        assert isinstance(created.event, e.InstanceCreated)
        self._fences[instance_id] = 1
        claim = Claim(instance_id, project_id, created.event.version_id, 1, created.event.priority, 0)
        self._spawn(self._drive(claim, [created], []))

    async def _claiming(self) -> None:
        at_once = MAX_CLAIM
        while True:
            await self._queue.filled()
            await self._space.wait()
            if self.sharing.others and self.places.crowded:
                await asyncio.sleep(CROWDED_S)
            if self.draining:
                return
            ids = self._queue.take(max(0, min(at_once, self._max_instances - len(self._fences))))
            if any(id.startswith("att-") for id in ids):
                self.offers.knock()
                ids = [id for id in ids if not id.startswith("att-")]
            wanted = [id for id in ids if id not in self._fences]
            for id in set(ids) - set(wanted):
                self.wake(id, inbox=True)
            try:
                await self._claim(wanted)
                at_once = MAX_CLAIM
            except StorageUnavailable as error:
                log.warning("executor.claim_failed", error=error.message)
                at_once = max(1, at_once // 2)  # perhaps their histories are too long to be read together in time
                for id in wanted:
                    self._queue.wake_here(id)
                await asyncio.sleep(1.0)

    async def _claim(self, ids: Sequence[str], *, suspects: bool = False) -> list[Claim]:
        async with self._claims:
            return await self._claimed(ids, suspects=suspects)

    async def _claimed(self, ids: Sequence[str], *, suspects: bool) -> list[Claim]:
        if self._database.dialect != "sqlite":  # whose one writer has more urgent things to do than to read
            try:
                found = await self._database.write(claim_and_read, self.worker, ids, self.lease_s, suspects)
            except StorageUnavailable:
                raise
            except Exception:
                log.warning("executor.unreadable", instances=ids)  # by itself, below, it spoils nobody else's
            else:
                self._hold(found.claims)
                self._begin(found)
                return found.claims
        claims = await self._database.write(leases.claim, self.worker, ids, self.lease_s, suspects=suspects)
        self._hold(claims)
        if claims:
            await self._take_up(claims)
        return claims

    def _hold(self, claims: Sequence[Claim]) -> None:
        self._fences.update({claim.instance_id: claim.fence for claim in claims})
        self._check_space()

    def _begin(self, found: Found) -> None:
        for claim in found.claims:
            id = claim.instance_id
            self._spawn(self._drive(claim, found.histories[id], found.letters.get(id, [])))

    async def _take_up(self, claims: Sequence[Claim]) -> None:
        """Read what was claimed, and drive it. What can't be read is tried again when its lease has run out."""
        held = [claim.instance_id for claim in claims]
        try:
            found = await self._database.read(read_claimed, claims)
        except Exception as error:
            if not isinstance(error, StorageUnavailable) and len(claims) > 1:  # whoever it is spoils nobody else's
                for claim in claims:
                    await self._take_up([claim])
                return
            log.warning("executor.unreadable", instances=held, error=getattr(error, "message", repr(error)))
            for id in held:
                self._forget(id)
            return
        self._begin(found)

    async def _trying_suspects(self) -> None:
        while not self.draining:
            try:
                suspect = await self._database.read(leases.next_suspect, self.lease_s)
                if suspect is not None and await self._claim([suspect], suspects=True):
                    self._suspect_tried.clear()
                    await _within(SUSPECT_S, self._suspect_tried.wait())
                    continue
            except StorageUnavailable as error:
                log.warning("executor.suspects_failed", error=error.message)
            await asyncio.sleep(SWEEP_S)

    def cleared(self) -> None:
        """A suspect got on, or is over: the next one may be tried."""
        self._suspect_tried.set()

    async def _sweeping(self) -> None:
        while not self.draining:
            try:
                if await self._database.read(admission.any_gated):
                    for id in await self._database.write(admission.admit_due):
                        self._queue.wake(id)
                for due in await self._database.read(leases.due, self._max_instances):
                    if due.instance_id not in self._fences:
                        self._queue.wake_here(due.instance_id, due.priority)
                pause = self._until_next(await self._database.read(leases.next_due))
            except StorageUnavailable as error:
                log.warning("executor.sweep_failed", error=error.message)
                pause = SWEEP_S
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # other workers sweep too, not all at once

    def _until_next(self, due: datetime | None) -> float:
        """How long the sweep may rest: timers beyond ``TIMER_HORIZON_S`` are met by it alone."""
        seconds = (due - clock.now()).total_seconds() if due is not None else SWEEP_S
        return min(SWEEP_S, max(LEAST_SWEEP_S, seconds))

    async def _renewing(self) -> None:
        await keep("executor", self.lease_s, self._renew)

    async def _renew(self) -> None:
        fences = dict(self._fences)
        renewed = await self._database.write(leases.renew, self.worker, fences, self.lease_s)
        for id in fences.keys() - renewed:
            if self._fences.get(id) == fences[id] and id in self._drives:
                self._confirm_lost(id, fences[id])
        # Letters whose wake-up went to another process, or was lost.
        for id in await self._database.read(leases.with_letters, self.worker):
            self.wake(id, inbox=True)

    def _confirm_lost(self, id: str, fence: int) -> None:
        """An instance may have ended, or been given back, while its lease was being renewed."""
        drive = self._drives.get(id)
        if drive is not None and drive.fence == fence and not drive.run.snapshot.status.terminal:
            log.warning("executor.lease_lost", instance=id, fence=fence)
            drive.abandon()

    # ---- driving

    async def _drive(self, claim: Claim, events: list[e.Recorded], letters: Sequence[Letter]) -> None:
        id = claim.instance_id
        again = False
        try:
            try:
                prepared = await self.loader.prepared(claim.version_id)
                run = await self.loader.run(claim, events)
            except (WorkflowError, ArtifactMissing) as error:
                if isinstance(error, StorageUnavailable):
                    raise
                message = f"The instance can't be run: {getattr(error, 'message', error)}"
                await self._refuse(claim, events, Failure("DEFINITION_UNUSABLE", Category.VALIDATION, message))
                return
            drive = Drive(self, claim, run, prepared, await self.loader.with_their_values(letters))
            self._drives[id] = drive
            if id in self._knocks:
                self._knocks.discard(id)
                drive.knock(inbox=True)
            await drive.drive()
            again = drive.more
        except StorageUnavailable as error:
            log.warning("executor.drive_failed", instance=id, error=error.message)
        except Exception as error:
            log.exception("executor.drive_broken", instance=id)
            if claim.lost_claims >= leases.POISON and id not in self._drives:
                # A drive would give it up, but it comes to none.
                message = f"{claim.lost_claims} times the engine could not even begin with it: {error!r}"
                with contextlib.suppress(WorkflowError):
                    await self._refuse(claim, events, Failure("POISON", Category.INTERNAL, message))
        finally:
            self._drives.pop(id, None)
            again |= id in self._knocks
            self._forget(id)
            if claim.lost_claims >= leases.SUSPECT:
                self.cleared()
        if again and self.draining:
            self._queue.wake(id, claim.priority, fence=claim.fence)
        elif again:
            self._queue.wake_here(id, claim.priority)

    def rest_until(self, drive: Drive) -> None:
        """The drive has given its lease back: wake the instance when its time comes."""
        if self.draining:
            self._queue.wake(drive.instance_id, drive.priority, fence=drive.fence)
            return
        wake_at = drive.wake_at()
        if wake_at is not None:
            seconds = (wake_at - clock.now()).total_seconds()
            if seconds < TIMER_HORIZON_S:
                loop = asyncio.get_running_loop()
                loop.call_later(max(0.0, seconds), self._queue.wake_here, drive.instance_id, drive.priority)

    async def _refuse(self, claim: Claim, events: list[e.Recorded], failure: Failure) -> None:
        """An instance that can't be run (a node type of its version is gone, say) fails with the reason."""
        snapshot = replay(events)
        recorded = e.Recorded(snapshot.last_seq + 1, clock.now(), e.InstanceFailed(error=failure))
        snapshot.apply(recorded)
        await self.journal.submit(
            Append(
                instance_id=claim.instance_id,
                project_id=claim.project_id,
                worker=self.worker,
                fence=claim.fence,
                base_seq=snapshot.last_seq - 1,
                events=[recorded],
                instance=instance_row(claim.instance_id, claim.project_id, snapshot),
                nodes=[],
                letters=farewell(claim.instance_id, snapshot),
                revoked=list(snapshot.offered),
            )
        )

    # ---- figures

    @property
    def driven(self) -> int:
        """How many instances are held."""
        return len(self._fences)

    @property
    def running(self) -> dict[str, int]:
        """Nodes that run now, by lane."""
        return self.places.running

    # ---- bookkeeping

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._driving.add(task)
        task.add_done_callback(self._driving.discard)
        self._check_space()

    def _forget(self, id: str) -> None:
        self._fences.pop(id, None)
        self._knocks.discard(id)
        self._check_space()

    def _check_space(self) -> None:
        if len(self._fences) < self._max_instances:
            self._space.set()
        else:
            self._space.clear()


async def _kept_up(loop: Callable[[], Awaitable[None]]) -> None:
    """Begin the loop anew if it breaks: without it, everything would stand still and nobody would know."""
    while True:
        try:
            return await loop()
        except Exception:
            log.exception("executor.loop_broken")
            await asyncio.sleep(SWEEP_S)


def _topic(worker: str) -> str:
    """Where a worker listens for what concerns it alone."""
    return f"worker:{worker}"


async def _over(tasks: Collection[asyncio.Task[None]], timeout: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)


async def _within(seconds: float, waiting: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        pass


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
