"""One task in the hands of its holder, from where the ledger says it stands to its end.

Three things go on beside each other: the folders are looked through, free slots are filled (``attempts`` has what runs
in them), and what changed is told. All writes are under the hold's fence; the first that is refused (LeaseLost) ends
the run, since somebody else has the task or has ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec

from db.store import items as ledger
from db.store import tasks as store
from db.store.items import NewItem
from db.store.keyset import Record
from db.store.tasks import Hold
from engine import clock
from engine.batch.attempts import CANCEL_S, Attempts, Surroundings
from engine.batch.expansion import Chunk, FoundFile, walk_of
from engine.batch.line import Rank
from engine.batch.outputs import Staging, staged
from engine.batch.plan import Plan, plan
from engine.batch.sharing import Sharing
from flow import batches
from flow.batches import Counts, Pace
from flow.errors import Category, Failure, Invalid, LeaseLost, NotFound, StorageUnavailable
from flow.tasks import WORKFLOW, BatchSpec, TaskStatus, TaskStep

#: Progress is written and told at most this often.
NOTE_S = 0.25
#: Servers, and what people ask for, are looked at again at least this often.
LOOK_S = 1.0
PIECE = 500  # items that are looked up at once
FULL = "Waits for a free place: its servers work on other tasks."

log = logging.getLogger(__name__)


def asked_topic(task_id: str) -> str:
    """The topic on which the holder of a task hears that somebody wants something of it."""
    return f"{task_id}:asked"


class TaskRun:
    """``run`` returns when the task has ended or has stepped aside. Cancelling it leaves the work running where it is.

    ``steps_aside`` is asked again and again: with the task's rank while it can only wait, or None; it may make room.
    """

    def __init__(self, around: Surroundings, hold: Hold, steps_aside: Callable[[Rank | None], bool]) -> None:
        self._around = around
        self._steps_aside = steps_aside
        self._database = around.database
        self._hold = hold
        self._changed = asyncio.Event()
        self._looked = float("-inf")
        self._stop: TaskStep | None = None  # CANCEL: asked for; FAIL: out of time, or for the reason of ``_failure``
        self._failure: Failure | None = None
        self._message: str | None = None  # what it waits for
        self._noted: Any = None
        self._noted_at = float("-inf")
        self._plan: Plan
        self._sharing: Sharing
        self._attempts: Attempts
        self._pace: Pace
        self._rank: Rank

    async def run(self) -> None:
        """Raises LeaseLost when somebody else has taken the task, or ended it; StorageUnavailable."""
        row = await self._database.write(store.begin, self._hold, clock.now())
        self._tell(row.change_seq)
        try:
            version = await self._around.version(row.version_id or "")
        except (NotFound, Invalid) as error:
            failure = Failure("WORKFLOW_NOT_FOUND", Category.VALIDATION, error.message)
            at = clock.now()
            self._tell(await self._database.write(ledger.fail_task, self._hold, msgspec.to_builtins(failure), at))
            return
        self._plan = plan(row, version)
        self._sharing = Sharing(self._database, self._around.servers, row.project_id, self._plan.servers)
        self._attempts = Attempts(self._around, self._hold, self._plan, self._sharing, self._changed)
        self._pace = Pace(clock.monotonic(), _counts(row).ended)
        self._rank = _rank(row)
        await self._sharing.refresh()
        topics = (asked_topic(row.id), f"servers:{row.project_id}")
        beside = [asyncio.create_task(self._listen(topic), name=f"hears {topic}") for topic in topics]
        expanding = None
        if isinstance(self._plan.spec, BatchSpec) and not row.expanded:
            expanding = asyncio.create_task(self._expand(self._plan.spec, row), name=f"expands {row.id}")
            expanding.add_done_callback(lambda _: self._changed.set())
            beside.append(expanding)
        try:
            running = await self._database.read(ledger.running, row.id)
            if running or _counts(row).ended:
                self._attempts.message = row.message  # before that, it says what the task waited for
            for item in running:
                self._attempts.begin(item)
            if await self._drive(expanding):
                await self._wind_up()
            else:
                await self._database.write(store.step_aside, self._hold, self._left_s())
        except LeaseLost:
            await self._abandon()
            raise
        finally:
            for task in beside:
                task.cancel()
            self._around.line.leave(row.id)
            await asyncio.gather(*beside, return_exceptions=True)
            await self._attempts.close()

    # ---- the loop

    async def _drive(self, expanding: asyncio.Task[None] | None) -> bool:
        """Until there is nothing more to hand out, or it is to stop; False if it steps aside."""
        while True:
            self._changed.clear()
            if expanding is not None and expanding.done():
                expanding.result()
                expanding, self._attempts.waiting = None, True
            await self._look()
            if self._stop is not None or self._attempts.stopped:
                break
            wait = await self._hand_out()
            if wait is None and not self._attempts and expanding is None and not self._attempts.waiting:
                break
            only_waits = not self._attempts and expanding is None and self._message is not None
            if self._steps_aside(self._rank if only_waits else None):
                if (await self._row()).message != self._message:
                    await self._note()
                return False
            await self._note()
            await self._change(min(LOOK_S, NOTE_S * 2, LOOK_S if wait is None else wait))
        if expanding is not None:
            expanding.cancel()
            await asyncio.gather(expanding, return_exceptions=True)
        return True

    async def _look(self) -> None:
        """What people ask for, how the servers are, and whether the time is over; not too often."""
        if self._attempts.broken is not None:
            raise self._attempts.broken
        at = clock.monotonic()
        if at - self._looked < LOOK_S:
            return
        self._looked = at
        row = await self._row()
        self._rank = _rank(row)
        if row.completed_at is not None:
            raise LeaseLost(self._hold.task_id, self._hold.fence)
        if row.cancel_requested_at is not None:
            self._stop = TaskStep.CANCEL
        elif self._plan.deadline is not None and clock.now() >= self._plan.deadline:
            self._stop = TaskStep.FAIL
        await self._sharing.refresh()
        if self._stop is None and self._sharing.none_left():
            message = "Every server that it was to run on is deleted. Run it on another one: taskExecute with `server`."
            self._stop, self._failure = TaskStep.FAIL, Failure("SERVER_DELETED", Category.VALIDATION, message)
        self._attempts.lose(self._sharing.gone)

    async def _hand_out(self) -> float | None:
        """Give items to every server with a free slot; when to look again, in seconds, or None if none waits."""
        wait, wanted = await self._handed_out()
        self._around.line.wait(self._hold.task_id, self._rank, wanted, self._changed)
        return wait

    async def _handed_out(self) -> tuple[float | None, list[str]]:
        """Also the servers of which it would take another slot."""
        if not self._attempts.waiting:
            return None, []
        usable = self._sharing.usable()
        named = [id for id, _ in usable if id is not None]
        free = [(id, slots, slots - self._attempts.on(id)) for id, slots in usable if self._attempts.on(id) < slots]
        if usable and not free:
            return LOOK_S, named
        self._attempts.waiting = False  # before the question: whatever comes after it sets it again
        waiting = await self._database.read(ledger.waiting, self._hold.task_id)
        if not waiting.items:
            self._message = None
            return None, []
        self._attempts.waiting = True
        if waiting.in_s > 0:
            return max(0.01, waiting.in_s), []
        if not usable:
            self._message = self._sharing.waits()
            return LOOK_S, []
        begun = False
        for id, slots, most in free:
            if self._around.line.lets(self._rank, id):
                for item in await self._database.write(ledger.take, self._hold, id, slots, most, clock.now()):
                    self._attempts.begin(item)
                    begun = True
        self._message = None if self._attempts else FULL
        if begun and not (await self._database.read(ledger.waiting, self._hold.task_id)).items:
            return LOOK_S, []  # it has all that it wants
        return LOOK_S, named

    async def _change(self, within_s: float) -> None:
        """Wait until something changes, at most so long."""
        within_s = min(within_s, self._left_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    def _left_s(self) -> float:
        """Seconds until the task's time is over."""
        if self._plan.deadline is None:
            return float("inf")
        return max(0.01, (self._plan.deadline - clock.now()).total_seconds())

    async def _expand(self, spec: BatchSpec, row: Record) -> None:
        """Look through the folders, in a thread, and write down what is found, a piece in each transaction."""
        pieces = walk_of(spec, self._around.files.allows).chunks(row.cursor)
        again = row.cursor is not None or row.total > 0
        cursor: Any = row.cursor
        while (chunk := await asyncio.to_thread(_next, pieces)) is not None:
            cursor = chunk.cursor
            found = [_new_item(file) for file in chunk.files]
            await self._database.write(ledger.add, self._hold, found, cursor, chunk.warnings, clock.now(), again=again)
            if found:
                self._attempts.waiting = True
                self._changed.set()
        await self._database.write(ledger.add, self._hold, [], cursor, {}, clock.now(), over=True)

    async def _listen(self, topic: str) -> None:
        with self._around.bus.subscribe(topic) as subscription:
            while True:
                await subscription.take()
                subscription.overflowed = False
                self._looked = float("-inf")
                self._changed.set()

    # ---- the end

    async def _wind_up(self) -> None:
        """Nothing new is begun. What runs is cancelled if the task is to stop, or else ends by itself."""
        self._around.line.leave(self._hold.task_id)
        cancelled = False
        by = float("inf")
        while self._attempts and clock.monotonic() < by:
            if self._stop is not None and not cancelled:
                cancelled, by = True, clock.monotonic() + CANCEL_S
                await self._attempts.cancel()
            self._changed.clear()
            await self._note()
            await self._look()
            if self._attempts:
                await self._change(NOTE_S)
        await self._attempts.give_up()
        if self._attempts.broken is not None:
            raise self._attempts.broken
        while await self._database.write(ledger.cancel_rest, self._hold, clock.now()):
            pass
        await self._tidy()
        await self._end()

    async def _tidy(self) -> None:
        """Remove the staging of items that ended when somebody died before they could."""
        root = self._plan.output_root
        try:
            left = [] if root is None else await asyncio.to_thread(staged, root)
        except OSError as error:  # the items have said what is wrong with the folder
            log.warning("the staging under %s can't be tidied: %s", root, error)
            return
        for start in range(0, len(left), PIECE):
            ids = left[start : start + PIECE]
            rows = await self._database.read(store.items, self._hold.project_id, ids)
            for id in ids:
                if root is not None and id in rows and rows[id].task_id == self._hold.task_id:
                    await asyncio.to_thread(Staging(root, id, 0).discard)

    async def _end(self) -> None:
        row = await self._row()
        counts = _counts(row)
        step, failure, result = TaskStep.COMPLETE, None, None
        match self._stop:
            case TaskStep.CANCEL:
                step = TaskStep.CANCEL
            case TaskStep.FAIL if self._failure is not None:
                step, failure = TaskStep.FAIL, self._failure
            case TaskStep.FAIL:
                message = f"Its time of {row.timeout_s:g} s is over. {batches.summary(counts)}"
                step, failure = TaskStep.FAIL, Failure("TASK_TIMEOUT", Category.TIMEOUT, message)
            case _ if self._plan.batch is not None:
                step, failure = batches.batch_end(counts, self._attempts.stopped)
            case _:
                step, failure, result = await self._end_of_item()
        progress = batches.progress(counts, True) if counts.total else 1.0
        values: dict[str, Any] = {"progress": progress, "message": self._attempts.message, "result": result}
        if self._plan.batch is not None:
            bare = 0
            if self._plan.output_root is not None and counts.done:
                bare = await self._database.read(ledger.without_outputs, self._hold.task_id)
            values |= {"message": batches.summary(counts, bare), "result": msgspec.to_builtins(counts)}
        if failure is not None:
            values |= {"message": failure.message, "error": msgspec.to_builtins(failure)}
        self._tell(await self._database.write(store.end, self._hold, step, clock.now(), **values))

    async def _end_of_item(self) -> tuple[TaskStep, Failure | None, Any]:
        """A task of one run ends as its run did."""
        item = await self._database.read(ledger.only, self._hold.task_id)
        match item.status:
            case TaskStatus.COMPLETED:
                result = item.result
                if self._plan.row.type != WORKFLOW and isinstance(result, dict):
                    result = result.get("output", result)  # of the workflow around the node
                return TaskStep.COMPLETE, None, result
            case TaskStatus.CANCELED:
                return TaskStep.CANCEL, None, None
            case _:
                return TaskStep.FAIL, msgspec.convert(item.error, Failure, strict=False), None

    async def _abandon(self) -> None:
        """Somebody else has the task. If they ended it, stop what still runs of it; if not, it is theirs to follow."""
        with contextlib.suppress(StorageUnavailable):
            rows = await self._database.read(store.tasks, self._hold.project_id, [self._hold.task_id])
            row = rows.get(self._hold.task_id)
            if row is None or row.completed_at is not None:
                await self._attempts.cancel()

    # ---- telling

    async def _note(self) -> None:
        """Write down how far it is, if that has changed, and not too often."""
        at = clock.monotonic()
        if at - self._noted_at < NOTE_S:
            return
        row = await self._row()
        counts = _counts(row)
        self._pace.note(at, counts.ended)
        shares = self._attempts.shares
        share = batches.progress(counts, row.expanded, sum(shares.values()))
        own = self._attempts.message
        if self._plan.batch is not None:
            own = batches.summary(counts) if counts.total or row.expanded else "Looks through its folders."
        message = self._message or own
        seen = (counts, row.expanded, round(share, 4), message)
        if seen == self._noted:
            return
        self._noted, self._noted_at = seen, at
        left = self._pace.left_s(counts) if row.expanded else None
        eta = None if left is None or left > batches.LONGEST.total_seconds() else clock.now() + timedelta(seconds=left)
        values = {"progress": share, "message": message, "rate": self._pace.rate(), "eta_at": eta}
        self._tell(await self._database.write(ledger.note, self._hold, shares, clock.now(), **values))

    def _tell(self, change_seq: int) -> None:
        self._around.tell(self._hold, change_seq)

    async def _row(self) -> Record:
        rows = await self._database.read(store.tasks, self._hold.project_id, [self._hold.task_id])
        if self._hold.task_id not in rows:
            raise LeaseLost(self._hold.task_id, self._hold.fence)
        return rows[self._hold.task_id]


def _next(pieces: Iterator[Chunk]) -> Chunk | None:
    return next(pieces, None)


def _new_item(file: FoundFile) -> NewItem:
    error = None if file.failure is None else msgspec.to_builtins(file.failure)
    return NewItem(clock.new_id("item"), file.path, file.relative, file.size, error)


def _counts(row: Record) -> Counts:
    return Counts(row.total, row.done, row.failed, row.canceled)


def _rank(row: Record) -> Rank:
    return -row.priority, row.created_at, row.id
