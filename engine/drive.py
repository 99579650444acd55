"""One claimed instance under way: facts in, events out, attempts started.

The loop is a short pipe. It takes in what happened (attempts that ended, what handlers said, what lies in the inbox),
lets ``flow.planner`` decide, has the journal commit all of it as one append, and only then starts what was decided.
So a node's handler never runs on the strength of something that is not stored, and a chain costs one commit a node.

What is subtle:

* One append is under way at a time; what happens meanwhile waits in the mailbox and shares the next.
* A lease lost means: stop everything, write nothing. The journal tells by ``Lost``, the executor by ``abandon``.
* Nothing running, nothing startable: the lease is given back in the same append, with the instant to be woken at. If
  something came into the inbox at that very moment, the journal says ``more`` and the instance is woken at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

import msgspec
import structlog

from db.store import journal as store
from db.store import leases
from db.store.instances import Letter
from db.store.leases import Claim
from engine import clock
from engine.attempts import Lines
from engine.calls import Broke, Done, LogLine, Outcome, Progress, Report
from engine.children import ChildRefused
from engine.draft import Draft
from engine.output import MAX_INLINE, MAX_OUTPUT
from flow import events as e
from flow.actions import Begin, Cancel, Complete, End, Fail, Pause, Skip, Spawn, Start, Wait
from flow.errors import Category, Failure, StorageUnavailable
from flow.expressions import ExpressionError
from flow.planner import Run
from flow.states import NodeStatus, SkipReason

if TYPE_CHECKING:
    from engine.executor import Executor
    from engine.loading import Prepared

#: Progress is kept at most this often for a node.
PROGRESS_EVERY_S = 0.25
#: How soon the inbox is read again, or a child made, when that could not be done.
READ_AGAIN_S = 1.0
#: So many events are stored at once; control nodes could decide for long without it.
MAX_APPEND = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stopped:
    """The attempt was cancelled and its work has stopped."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt is over."""

    path: str
    outcome: Outcome | Stopped


Mail = Ended | e.NodeLog | e.NodeProgress | Letter


class Drive:
    """Drives one instance until it ends, has only to wait, or is taken away. ``run`` is the whole life of it."""

    def __init__(
        self, executor: Executor, claim: Claim, run: Run, prepared: Prepared, letters: Sequence[Letter]
    ) -> None:
        self.instance_id = claim.instance_id
        self.project_id = claim.project_id
        self.fence = claim.fence
        self.priority = claim.priority
        self.run = run
        #: Something came in at the very moment the lease was given back: wake the instance again.
        self.more = False
        self._executor = executor
        self._claim = claim
        self._prepared = prepared
        self._mail: deque[Mail] = deque(letters)
        self._knocked = asyncio.Event()
        self._attempts: dict[str, asyncio.Task[None]] = {}
        #: Attempts that were told to stop.
        self._stopping: set[str] = set()
        #: Starts that have their place and wait for the commit that says so.
        self._starting: list[Start] = []
        #: What was due by this instant has been planned.
        self._planned_at = clock.now()
        self._lines: dict[str, Lines] = {}
        self._progress: dict[str, Progress] = {}
        self._check_inbox = False
        self._abandoned = False
        self._draft = Draft(executor.artifacts, executor.worker, claim, run)
        self._record = self._draft.record
        #: Offered attempts (paths) that this drive has told others to leave.
        self._revoking: set[str] = set()
        #: By path, children that are to be made.
        self._spawns: dict[str, Spawn] = {}

    # ---- from outside

    def knock(self, *, inbox: bool = False) -> None:
        """Something may have changed; with ``inbox``, something new lies there."""
        self._check_inbox |= inbox
        self._knocked.set()

    def abandon(self) -> None:
        """The lease is lost: stop everything and write nothing."""
        self._abandoned = True
        self._executor.places.stand_in_line(self, ())
        self.stop_attempts()
        self._knocked.set()

    def stop_attempts(self) -> None:
        """Stop what still runs. When the process is going down, it is left to the next holder."""
        for path in self._attempts:
            self._stop(path)

    def wake_at(self) -> datetime | None:
        """When something is due that has not been planned: what was due already lacks room, or is being stopped."""
        return self.run.wake_at(after=self._planned_at)

    # ---- the loop

    async def drive(self) -> None:
        """Run the instance as far as it goes now. Returns when the lease is given back, lost, or no longer needed.

        However it ends: no attempt goes on, and no place is kept.
        """
        try:
            await self._go_on()
        finally:
            for start in self._starting:
                self._executor.places.vacate(self.run.lane(start.path))
            self.abandon()
            await asyncio.gather(*self._attempts.values())

    async def _go_on(self) -> None:
        self._recover()
        while not self._abandoned:
            self._knocked.clear()
            if self._check_inbox:
                await self._read_inbox()
            self._absorb()
            unfinished = self._decide()
            while self._spawns and await self._spawn():
                unfinished = self._decide()
            ended = self.run.snapshot.status.terminal
            held_up = self.run.held_up(self._planned_at) if not self._executor.draining else set()
            self._executor.places.stand_in_line(self, held_up)
            # An attempt may have ended while a child was being made: what it said is still to be heard.
            busy = self._attempts or self._starting or self._spawns or self._mail
            rests = not (ended or unfinished or busy or held_up)
            if self._draft.events or self._draft.revoked or ended or rests:
                progress = any(isinstance(event.event, e.NodeCompleted | e.NodeFailed) for event in self._draft.events)
                outcome = await self._commit(release=rests, progress=progress)
                if not isinstance(outcome, store.Committed):
                    log.warning("drive.lease_lost", instance=self.instance_id, fence=self.fence)
                    return
                if progress and self._claim.lost_claims >= leases.SUSPECT:
                    self._executor.cleared()
                if ended:
                    return
                if rests:
                    self.more = outcome.more or self._check_inbox
                    self._executor.rest_until(self)
                    return
            if self._abandoned:
                return
            self._launch()
            if not (self._mail or self._check_inbox or unfinished):
                await self._wait()

    def _recover(self) -> None:
        """What ran when the last holder died is lost; an instance that kills every holder is given up."""
        for path in sorted(self.run.executing):
            self._record(self.run.lost(path))
        if self._claim.lost_claims >= leases.POISON:
            message = (
                f"{self._claim.lost_claims} workers died on this instance without any progress, so it is not tried "
                "again. Look for a node that takes too much memory or ends its process."
            )
            self.run.abort(Failure("POISON", Category.WORKER_LOST, message))

    async def _read_inbox(self) -> None:
        self._check_inbox = False
        seen = {mail.id for mail in self._mail if isinstance(mail, Letter)} | set(self._draft.consumed)
        try:
            letters = await self._executor.loader.letters(self.instance_id)
        except StorageUnavailable as error:
            log.warning("drive.inbox_unread", instance=self.instance_id, error=error.message)
            asyncio.get_running_loop().call_later(READ_AGAIN_S, lambda: self.knock(inbox=True))
            return
        self._mail.extend(letter for letter in letters if letter.id not in seen)

    def _absorb(self) -> None:
        """Turn what happened into events."""
        while self._mail:
            match self._mail.popleft():
                case Ended(path, outcome):
                    self._conclude(path, outcome)
                case Letter(id, event):
                    self._draft.consumed.append(id)
                    if self.run.accepts(event):
                        self._take(event)
                case e.NodeLog() | e.NodeProgress() as said:
                    if said.path in self.run.executing:
                        self._record(said)

    def _take(self, event: e.AnyEvent) -> None:
        """A letter that means something; those about an offered attempt come from whoever makes it."""
        match event:
            case e.NodeStarted(path=path):
                if self.run.snapshot.nodes[path].status is not NodeStatus.RUNNING:
                    self._record(event)
            case e.NodeFailed(path=path, error=error, usage=usage):
                self._record(self.run.conclude(path, error, usage, clock.now(), random.uniform(-1, 1)))
            case e.NodeLost(path=path, handed_over=handed_over):
                self._record(self.run.lost(path, handed_over=handed_over))
            case e.NodeCanceled(path=path) if self.run.snapshot.nodes[path].status is NodeStatus.PENDING:
                self._record(e.NodeSkipped(path, SkipReason.INSTANCE_ENDED.value))
            case _:
                self._record(event)

    def _conclude(self, path: str, outcome: Outcome | Stopped) -> None:
        state = self.run.snapshot.nodes[path]
        if (progress := self._progress.pop(path, None)) is not None:
            self._record(e.NodeProgress(path, state.attempt, progress.done, progress.total, progress.message))
        match outcome:
            case Done(output=output, usage=usage, artifact=artifact, artifacts=artifacts, cached=cached):
                for new in (*artifacts, *((artifact,) if artifact else ())):
                    self._draft.artifacts.append(store.NewArtifact(new, clock.now()))
                self._record(e.NodeCompleted(path, state.attempt, output, artifact, usage, cached))
            case Broke(failure=failure, usage=usage):
                draw = random.uniform(-1, 1)
                self._record(self.run.conclude(path, failure, usage, clock.now(), draw))
            case Stopped():
                if self._executor.draining:
                    self._record(self.run.lost(path, handed_over=True))
                else:
                    self._record(e.NodeCanceled(path, state.attempt))
            case _:
                assert_never(outcome)

    def _decide(self) -> bool:
        """Plan until nothing new follows; what is to be started is recorded, to run once it is stored.

        True if more follows than is to be stored at once.
        """
        starts = self._starting
        self._planned_at = clock.now()
        while True:
            room = {} if self._executor.draining else self._executor.sharing.room_for(self.run)
            others = len(self._draft.events) - len(starts)
            for action in self.run.plan(clock.now(), room):
                match action:
                    case Begin():
                        self._record(e.InstanceStarted(worker=self._executor.worker))
                    case Start(path, attempt) if self.run.is_control(path):
                        self._record(e.NodeStarted(path, attempt))
                    case Start(path, attempt) if not self._has_place(path):
                        self._offer(path, attempt)
                    case Start(path, attempt):
                        self._executor.places.occupy(self.run.lane(path), self)
                        self._record(e.NodeStarted(path, attempt, self._executor.worker))
                        starts.append(action)
                    case Skip(path, reason):
                        self._record(e.NodeSkipped(path, reason.value))
                    case Complete():
                        self._complete(action)
                    case Fail(path, error):
                        self._record(e.NodeFailed(path, self._attempt_of(path), error))
                    case Wait(path, awaited):
                        self._record(e.NodeWaiting(path, self._attempt_of(path), awaited))
                    case Spawn(path):
                        self._spawns[path] = action
                    case Pause(reason, path, phase):
                        self._record(e.InstancePaused(reason, path=path, phase=phase))
                    case Cancel(path):
                        self._cancel(path)
                    case End(event):
                        self._record(event)
                    case _:
                        assert_never(action)
            if len(self._draft.events) - len(starts) == others:  # a start brings nothing new to plan; all else may
                return False
            if len(self._draft.events) >= MAX_APPEND:
                return True

    def _has_place(self, path: str) -> bool:
        """Whether the node is started here; room that others lent is for offering it."""
        return self._executor.places.room().get(self.run.lane(path), 0) > 0

    def _offer(self, path: str, attempt: int) -> None:
        """Ask other workers to make the attempt."""
        try:
            made = self._executor.attempts.prepare(self.instance_id, self.project_id, self.run, path, attempt)
        except ExpressionError as error:
            self._record(e.NodeStarted(path, attempt, self._executor.worker))
            draw = random.uniform(-1, 1)
            self._record(self.run.conclude(path, error.failure(path), None, clock.now(), draw))
            return
        node = self.run.node(path)
        gpus = self._executor.loader.gpus(node)
        self._record(e.NodeScheduled(path, attempt, node.runs_on, gpus))
        self._draft.offers.append((made, self._executor.loader.lane(node), gpus))

    def _complete(self, action: Complete) -> None:
        path, output, artifact = action.path, action.output, action.artifact
        attempt, large = self._attempt_of(path), False
        if artifact is None and (size := len(msgspec.json.encode(output))) > MAX_INLINE:
            if size > MAX_OUTPUT:
                message = f"The output has {size:,} bytes of JSON; a node gives at most {MAX_OUTPUT:,}."
                self._record(e.NodeFailed(path, attempt, Failure("OUTPUT_TOO_LARGE", Category.RESOURCE, message, path)))
                return
            large = True
        self._record(e.NodeCompleted(path, attempt, output, artifact, cached=action.cached), large=large)

    async def _spawn(self) -> bool:
        """Make the children that were planned, to be created with the events that name them; False: some not yet."""
        for path, spawn in list(self._spawns.items()):
            attempt = self._attempt_of(path)
            try:
                child = await self._executor.children.create(
                    self.project_id, self.instance_id, self.run.snapshot, spawn
                )
            except ChildRefused as refusal:
                failure = msgspec.structs.replace(refusal.failure, node_id=path, attempt=attempt)
                del self._spawns[path]
                self._record(e.NodeFailed(path, attempt, failure))
                continue
            except StorageUnavailable as error:
                log.warning("drive.child_unmade", instance=self.instance_id, node=path, error=error.message)
                asyncio.get_running_loop().call_later(READ_AGAIN_S, self.knock)
                return False
            del self._spawns[path]
            self._draft.children.append(child)
            if spawn.wait:
                self._record(e.NodeWaiting(path, attempt, e.ForChild(child.instance_id)))
            else:
                self._record(e.NodeCompleted(path, attempt, {"instance_id": child.instance_id}))
        return True

    def _cancel(self, path: str) -> None:
        if path in self._attempts:
            self._stop(path)
        elif path in self.run.snapshot.offered:
            if path not in self._revoking:
                self._revoking.add(path)
                self._draft.revoked.append(path)
        elif self.run.snapshot.nodes[path].status is not NodeStatus.RUNNING or self.run.is_control(path):
            self._spawns.pop(path, None)
            if isinstance(awaited := self.run.snapshot.nodes[path].awaited, e.ForChild):
                self._draft.left.append(awaited.instance_id)
            self._record(e.NodeCanceled(path, self._attempt_of(path)))

    def _attempt_of(self, path: str) -> int:
        state = self.run.snapshot.nodes.get(path)
        return state.attempt if state is not None else 0

    def _stop(self, path: str) -> None:
        """Cancel the attempt, once: a second time would disturb its handler's cleaning up.

        And not before its first step: a task that is cancelled earlier never runs, so it would never say that it ended.
        """
        if path not in self._stopping:
            self._stopping.add(path)
            asyncio.get_running_loop().call_soon(self._attempts[path].cancel)

    async def _commit(self, *, release: bool, progress: bool) -> store.Outcome:
        due_at = clock.now() if release and self._executor.draining else self.wake_at()
        append = await self._draft.finish(release=release, due_at=due_at, progress=progress)
        return await self._executor.journal.submit(append)

    # ---- attempts

    def _launch(self) -> None:
        for start in self._starting:
            attempt = self._attempt(start.path, self.run.snapshot.nodes[start.path].attempt)
            self._attempts[start.path] = asyncio.create_task(attempt)
        self._starting.clear()

    async def _attempt(self, path: str, attempt: int) -> None:
        outcome: Outcome | Stopped
        try:
            outcome = await self._make(path, attempt)
        except asyncio.CancelledError:
            outcome = Stopped()
        except ExpressionError as error:
            outcome = Broke(error.failure(path))
        except Exception as error:
            log.exception("attempt.broken", instance=self.instance_id, node=path)
            outcome = Broke(Failure("INTERNAL", Category.INTERNAL, f"The engine could not run the node: {error!r}"))
        del self._attempts[path]
        self._stopping.discard(path)
        self._lines.pop(path, None)
        self._executor.places.vacate(self.run.lane(path))
        self._mail.append(Ended(path, outcome))
        self._knocked.set()

    async def _make(self, path: str, attempt: int) -> Outcome:
        """One attempt of one node: its input and parameters worked out, its handler called."""
        attempts = self._executor.attempts
        made = attempts.prepare(self.instance_id, self.project_id, self.run, path, attempt)
        outcome = await attempts.make(made, lambda said: self._said(path, attempt, said))
        if isinstance(outcome, Done) and outcome.artifact is not None:
            # Conditions, mappings and templates downstream see the value, wherever it is stored.
            output = await asyncio.to_thread(self._executor.artifacts.read_json, outcome.artifact)
            outcome = msgspec.structs.replace(outcome, output=output)
        return outcome

    def _said(self, path: str, attempt: int, said: Report) -> None:
        match said:
            case LogLine():
                lines = self._lines.get(path)
                if lines is None:
                    lines = self._lines[path] = Lines(path, attempt)
                if (line := lines.event(said)) is not None:
                    self._mail.append(line)
                    self._knocked.set()
            case Progress():
                if path not in self._progress:
                    asyncio.get_running_loop().call_later(PROGRESS_EVERY_S, self._tell_progress, path)
                self._progress[path] = said
            case _:
                pass

    def _tell_progress(self, path: str) -> None:
        if (said := self._progress.pop(path, None)) is not None:
            attempt = self.run.snapshot.nodes[path].attempt  # perhaps a later one than when the time began to run
            self._mail.append(e.NodeProgress(path, attempt, said.done, said.total, said.message))
            self._knocked.set()

    async def _wait(self) -> None:
        """Until something happens, or the next retry or deadline is due."""
        wake_at = self.wake_at()
        if wake_at is None:
            await self._knocked.wait()
            return
        seconds = max(0.0, (wake_at - clock.now()).total_seconds())
        timer = asyncio.get_running_loop().call_later(seconds, self._knocked.set)
        try:
            await self._knocked.wait()
        finally:
            timer.cancel()
