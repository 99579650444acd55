"""Makes the attempts that are offered: by drives of other workers, or by this one's when it lacks a place.

An offer is held by a lease of its own (``db.store.offers``). What its handler says, and what comes of it, are letters
to the instance, written together for all attempts that have something to say at that moment. What is subtle:

* short work says that it began only when it is over: the beginning of what lasts is told after ``TOLD_AFTER_S``;
* who can't store a result keeps it and tries again: the work is done and must not be lost;
* an offer that another worker holds by now, or that nobody wants any more, is stopped, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from db.session import Database
from db.store import offers as store
from db.store.entries import NewArtifact, Wake
from db.store.offers import Report, Taken
from engine import clock
from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.attempts import Attempt, Attempts, Lines
from engine.calls import Broke, Done, LogLine, Outcome, Progress
from engine.calls import Report as Said
from engine.places import Places
from engine.renewing import keep
from flow import events as e
from flow.errors import Category, Failure, StorageUnavailable

SWEEP_S = 5.0
#: What an attempt says on the way is written at most this often; that it has begun, after this long.
TOLD_AFTER_S = 0.25
RETRY_S = 1.0

log = structlog.get_logger(__name__)


class _Work:
    """An offer under way here."""

    __slots__ = ("began", "lines", "progress", "said", "stopping", "taken", "task", "timer", "unwanted")

    def __init__(self, taken: Taken) -> None:
        self.taken = taken
        self.lines = Lines(taken.path, taken.attempt)
        self.said: list[e.NodeEvent] = []
        self.progress: Progress | None = None
        self.began = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        #: Nobody waits for what comes of it.
        self.unwanted = False

    def stop(self) -> None:
        """Cancel it, once and not before its first step, as ``engine.drive.Drive`` does and for the same reasons."""
        if not self.stopping and self.task is not None:
            self.stopping = True
            asyncio.get_running_loop().call_soon(self.task.cancel)


class Offers:
    """Takes offers as long as there are places. ``tell`` is given whom to wake because of what was written;
    ``call_others`` tells the other workers that there is more than this one can take."""

    def __init__(
        self,
        database: Database,
        attempts: Attempts,
        places: Places,
        artifacts: ArtifactStore,
        *,
        worker: str,
        lease_s: float,
        labels: frozenset[str],
        gpus: int,
        tell: Callable[[Iterable[Wake]], None],
        call_others: Callable[[], None],
    ) -> None:
        self._database = database
        self._attempts = attempts
        self._places = places
        self._artifacts = artifacts
        self._worker = worker
        self._lease_s = lease_s
        self._labels = labels
        self._gpus = gpus
        self._tell = tell
        self._call_others = call_others
        self._draining = False
        #: Held from asking for offers until what came is begun, or given back.
        self._claiming = asyncio.Lock()
        #: There was more to take than places, and the others have been told.
        self._full = False
        self._work: dict[str, _Work] = {}
        self._outbox: list[Report] = []
        #: Attempts (by fence) that are over, and nobody knows it yet: to lose one now would be to make it again.
        self._unwritten: dict[str, int] = {}
        self._knocked = asyncio.Event()
        self._filled = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._writer: asyncio.Task[None] | None = None

    # ---- life

    def knock(self) -> None:
        """There may be something to take, or a place for it."""
        self._knocked.set()

    def stop_one(self, id: str) -> None:
        """This attempt is not wanted any more."""
        work = self._work.get(id)
        if work is not None:
            work.unwanted = True
            work.stop()

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, let attempts finish within the grace, stop the others, and write what came of them."""
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0), self._claiming:
                pass
        if tasks := [work.task for work in self._work.values() if work.task is not None]:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for work in list(self._work.values()):
                work.stop()
            if late:
                await asyncio.wait(late, timeout=15.0)
        try:
            async with asyncio.timeout(5.0):
                await self._written.wait()
        except TimeoutError:
            log.warning("offers.unwritten", reports=len(self._outbox))

    def drain(self) -> None:
        """Take nothing more."""
        self._draining = True
        self._places.stand_in_line(self, ())

    # ---- loops, kept up by the executor

    async def taking(self) -> None:
        """Take what fits as soon as there is something and room for it."""
        while True:
            await self._knocked.wait()
            self._knocked.clear()
            while not self._draining:
                room = {lane: free for lane, free in self._places.room().items() if free > 0}
                if not room:
                    break
                try:
                    if not await self._take(room):
                        break
                except StorageUnavailable as error:
                    log.warning("offers.claim_failed", error=error.message)
                    await asyncio.sleep(RETRY_S)
            full = {lane for lane, free in self._places.room().items() if free <= 0}
            wanted = full and not self._draining and await self._offered()
            self._places.stand_in_line(self, full if wanted else ())
            if wanted and not self._full:
                self._call_others()
            self._full = bool(wanted)

    async def _take(self, room: dict[str, int]) -> bool:
        """Take what fits; whether there was something. What comes when this worker drains already is given back."""
        async with self._claiming:
            taken = await self._database.write(store.claim, self._worker, self._lease_s, self._labels, room, self._gpus)
            if not self._draining:
                for one in taken:
                    self._begin(one)
            elif taken:
                await self._database.write(store.release, self._worker, [one.id for one in taken])
                self._call_others()
        return bool(taken)

    async def sweeping(self) -> None:
        """The safety net: offers that no wake-up told of, and those whose holders are gone."""
        while True:
            try:
                if await self._database.read(store.expired):
                    self._tell(await self._database.write(store.expire))
                if await self._offered():
                    self.knock()
            except StorageUnavailable as error:
                log.warning("offers.sweep_failed", error=error.message)
            await asyncio.sleep(SWEEP_S * random.uniform(0.8, 1.2))

    async def renewing(self) -> None:
        """Keep the leases; what is not to be had any more is stopped."""
        await keep("offers", self._lease_s, self._renew)

    async def _renew(self) -> None:
        fences = self._unwritten | {id: work.taken.fence for id, work in self._work.items()}
        if fences:
            renewed = await self._database.write(store.renew, self._worker, fences, self._lease_s)
            for id in fences.keys() - renewed:
                self.stop_one(id)

    async def writing(self) -> None:
        """Write what there is to say, all of it together, as soon as the last is written."""
        while True:
            await self._filled.wait()
            reports, self._outbox = self._outbox, []
            self._filled.clear()
            try:
                wakes = await self._database.write(store.report, self._worker, reports)
            except StorageUnavailable as error:
                log.warning("offers.unwritten", error=error.message, reports=len(reports))
                self._outbox[:0] = reports
                self._filled.set()
                await asyncio.sleep(RETRY_S)
                continue
            except Exception:
                log.exception("offers.refused", reports=len(reports))
                await self._written_apart(reports)
                continue
            except BaseException:
                self._outbox[:0] = reports
                raise
            self._forget(reports)
            self._told(wakes)

    async def _written_apart(self, reports: list[Report]) -> None:
        """One by one, so that a report that can't be stored keeps no other back: its node fails instead."""
        instead: Report | None = None
        try:
            while reports:
                try:
                    self._tell(await self._database.write(store.report, self._worker, [instead or reports[0]]))
                except StorageUnavailable:
                    await asyncio.sleep(RETRY_S)
                    continue
                except Exception as error:
                    log.exception("offers.refused_one", instance=reports[0].instance_id)
                    if instead is None and (instead := _instead(reports[0], error)) is not None:
                        continue
                self._forget([reports.pop(0)])
                instead = None
        finally:
            self._outbox[:0] = reports
            if self._outbox:
                self._filled.set()
            else:
                self._written.set()

    def _forget(self, written: Iterable[Report]) -> None:
        for report in written:
            if report.over:
                self._unwritten.pop(report.id, None)

    def _told(self, wakes: list[Wake]) -> None:
        self._tell(wakes)
        if not self._outbox:
            self._written.set()

    async def _offered(self) -> bool:
        try:
            return await self._database.read(store.waiting)
        except StorageUnavailable:
            return False

    # ---- one attempt

    def _begin(self, taken: Taken) -> None:
        self._places.occupy(taken.lane, self)
        self._gpus -= taken.gpus
        work = self._work[taken.id] = _Work(taken)
        work.timer = asyncio.get_running_loop().call_later(TOLD_AFTER_S, self._say, work)
        work.task = asyncio.create_task(self._make(work))

    async def _make(self, work: _Work) -> None:
        taken = work.taken
        path, number = taken.path, taken.attempt
        end: e.NodeEvent
        artifacts: tuple[e.Artifact, ...] = ()
        try:
            attempt = await self._attempt(taken)
            outcome: Outcome = await self._attempts.make(attempt, lambda said: self._heard(work, said))
            match outcome:
                case Done(output=output, usage=usage, artifact=artifact, artifacts=others, cached=cached):
                    end = e.NodeCompleted(path, number, output, artifact, usage, cached)
                    artifacts = (*others, *((artifact,) if artifact is not None else ()))
                case Broke(failure=failure, usage=usage):
                    end = e.NodeFailed(path, number, failure, usage)
        except asyncio.CancelledError:
            if work.unwanted:
                end = e.NodeCanceled(path, number)
            else:
                end = e.NodeLost(path, number, self._worker, handed_over=True)
        except Exception as error:
            log.exception("offers.broken", instance=taken.instance_id, node=path)
            message = f"The engine could not run the node: {getattr(error, 'message', repr(error))}"
            end = e.NodeFailed(path, number, Failure("INTERNAL", Category.INTERNAL, message))
        del self._work[taken.id]
        if work.timer is not None:
            work.timer.cancel()
        self._gpus += taken.gpus
        self._places.vacate(taken.lane)
        self._knocked.set()
        now = clock.now()
        self._post(work, end, [NewArtifact(artifact, now) for artifact in artifacts])

    async def _attempt(self, taken: Taken) -> Attempt:
        attempt = msgspec.convert(taken.call, Attempt)
        if taken.artifact is None:
            return attempt
        try:
            input = await asyncio.to_thread(self._artifacts.read_json, taken.artifact)
        except (ArtifactMissing, OSError) as error:
            raise StorageUnavailable(
                f"The input of the node is not in the artifact store here ({error}). All workers must share the folder."
            ) from error
        return msgspec.structs.replace(attempt, call=msgspec.structs.replace(attempt.call, input=input))

    def _heard(self, work: _Work, said: Said) -> None:
        match said:
            case LogLine():
                if (line := work.lines.event(said)) is not None:
                    work.said.append(line)
            case Progress():
                work.progress = said
            case _:
                return
        if work.timer is None:
            work.timer = asyncio.get_running_loop().call_later(TOLD_AFTER_S, self._say, work)

    def _say(self, work: _Work) -> None:
        work.timer = None
        if not work.began or work.said or work.progress is not None:
            self._post(work)

    def _post(self, work: _Work, end: e.NodeEvent | None = None, artifacts: list[NewArtifact] | None = None) -> None:
        taken = work.taken
        path, number = taken.path, taken.attempt
        events: list[e.NodeEvent] = []
        if not work.began:
            work.began = True
            events.append(e.NodeStarted(path, number, self._worker))
        events += work.said
        work.said = []
        if (progress := work.progress) is not None:
            work.progress = None
            events.append(e.NodeProgress(path, number, progress.done, progress.total, progress.message))
        if end is not None:
            events.append(end)
            self._unwritten[taken.id] = taken.fence
        self._outbox.append(
            Report(taken.id, taken.instance_id, taken.fence, events, end is not None, tuple(artifacts or ()))
        )
        self._written.clear()
        self._filled.set()


def _instead(report: Report, error: Exception) -> Report | None:
    """What is said instead of a report that can't be stored: that its node began, and failed if it has ended."""
    events: list[e.NodeEvent] = [event for event in report.events if isinstance(event, e.NodeStarted)]
    if report.over:
        end: Any = report.events[-1]
        message = f"What came of the node can't be stored: {error!r}"[:2_000]
        events.append(e.NodeFailed(end.path, end.attempt, Failure("INTERNAL", Category.INTERNAL, message)))
    return dataclasses.replace(report, events=events, artifacts=()) if events else None
