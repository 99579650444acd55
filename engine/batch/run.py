"""One task in the hands of its holder, from where the ledger says it stands to its end.

Every step is in the ledger before the next one begins: an item is RUNNING before it is submitted (under an id that is
the same each time), its reference is stored before it is followed, its outputs lie in their places before it is
COMPLETED. So whoever takes the task over goes on from the ledger alone. All writes are under the hold's fence; the
first that is refused (LeaseLost) ends the run, since somebody else has the task or has ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec

from db.session import Database
from db.store import items as ledger
from db.store import tasks as store
from db.store.items import NewItem, Taken
from db.store.keyset import Record
from db.store.tasks import Hold
from engine import clock
from engine.batch import fetching
from engine.batch.expansion import Chunk, Walk
from engine.batch.outputs import OutputRefused, Staging, place, sha256_of
from engine.batch.plan import Plan, plan
from engine.batch.sharing import Sharing
from engine.bus import Bus
from engine.definitions import PinnedVersion
from engine.files import Files
from engine.output import MAX_INLINE
from engine.servers.contract import Done, Failed, ServerClient, ServerFailed
from engine.servers.health import Unusable
from engine.servers.servers import Servers
from flow import batches
from flow.batches import Counts, Pace
from flow.errors import Category, Failure, Invalid, LeaseLost, NotFound, StorageUnavailable
from flow.tasks import WORKFLOW, BatchSpec, TaskStatus, TaskStep

#: Progress is written and told at most this often.
NOTE_S = 0.25
#: Servers, and what people ask for, are looked at again at least this often.
LOOK_S = 1.0
#: How long an item that is cancelled may take to stop; its server keeps being told by then.
CANCEL_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all runs of one process share. ``changed(project_id, change_seq)`` is told of each change."""

    database: Database
    servers: Servers
    files: Files
    bus: Bus
    version: Callable[[str], Coroutine[Any, Any, PinnedVersion]]
    changed: Callable[[str, int], None]


def asked_topic(task_id: str) -> str:
    """The topic on which the holder of a task hears that somebody wants something of it."""
    return f"{task_id}:asked"


class TaskRun:
    """``run`` returns when the task has ended. Cancelling it leaves the work running where it runs."""

    def __init__(self, surroundings: Surroundings, hold: Hold) -> None:
        self._around = surroundings
        self._database = surroundings.database
        self._hold = hold
        self._changed = asyncio.Event()
        self._under_way: dict[str, tuple[Taken, asyncio.Task[None]]] = {}
        self._shares: dict[str, float] = {}
        self._lost_on: set[str] = set()
        self._message: str | None = None
        self._refs: dict[str, tuple[ServerClient, str]] = {}
        self._may_wait = True
        self._stop: TaskStep | None = None  # CANCEL: asked for; FAIL: out of time
        self._stopped_by_item = False
        self._noted: Any = None
        self._noted_at = 0.0
        self._plan: Plan
        self._sharing: Sharing
        self._pace: Pace

    async def run(self) -> None:
        """Raises LeaseLost when somebody else has taken the task, or ended it; StorageUnavailable."""
        row = await self._write(store.begin, self._hold, clock.now())
        self._tell(row.change_seq)
        try:
            version = await self._around.version(row.version_id or "")
        except (NotFound, Invalid) as error:
            await self._end(TaskStep.FAIL, Failure("WORKFLOW_NOT_FOUND", Category.VALIDATION, error.message))
            return
        self._plan = plan(row, version)
        self._sharing = Sharing(self._database, self._around.servers, row.project_id, self._plan.servers)
        self._pace = Pace(clock.monotonic(), _counts(row).ended)
        await self._sharing.refresh()
        beside = [
            asyncio.create_task(self._listen(topic)) for topic in (asked_topic(row.id), f"servers:{row.project_id}")
        ]
        expanding = None
        if isinstance(self._plan.spec, BatchSpec) and not row.expanded:
            expanding = asyncio.create_task(self._expand(self._plan.spec, row), name="batch expansion")
            expanding.add_done_callback(lambda _: self._changed.set())
            beside.append(expanding)
        try:
            for item in await self._database.read(ledger.running, row.id):
                self._spawn(item)
            await self._drive(expanding)
        except LeaseLost:
            await self._abandon()
            raise
        finally:
            tasks = [*beside, *(task for _, task in self._under_way.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the loop

    async def _drive(self, expanding: asyncio.Task[None] | None) -> None:
        looked = 0.0
        while True:
            self._changed.clear()
            if expanding is not None and expanding.done():
                expanding.result()
                expanding, self._may_wait = None, True
            if clock.monotonic() - looked >= LOOK_S or self._lost_on:
                looked = clock.monotonic()
                await self._look()
            if self._stop is not None or self._stopped_by_item:
                break
            wait = await self._hand_out()
            if not self._under_way and not self._may_wait and wait is None and expanding is None:
                break
            await self._note()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_S, wait if wait is not None else LOOK_S, NOTE_S * 2)):
                    await self._changed.wait()
        if expanding is not None:
            expanding.cancel()
            await asyncio.gather(expanding, return_exceptions=True)
        await self._wind_up()

    async def _look(self) -> None:
        """What people ask for, how the servers are, and whether the time is over."""
        row = await self._database.read(store.tasks, self._hold.project_id, [self._hold.task_id])
        if self._hold.task_id not in row:
            raise LeaseLost(self._hold.task_id, self._hold.fence)
        if row[self._hold.task_id].cancel_requested_at is not None:
            self._stop = TaskStep.CANCEL
        elif self._plan.deadline is not None and clock.now() >= self._plan.deadline:
            self._stop = TaskStep.FAIL
        await self._sharing.refresh()
        for item, task in list(self._under_way.values()):
            if self._sharing.gone(item.server_id) and item.id not in self._lost_on:
                self._lost_on.add(item.id)
                task.cancel()

    async def _hand_out(self) -> float | None:
        """Give items to every server with a free slot; in how many seconds the next one may go, if one waits."""
        usable = self._sharing.usable()
        if not usable:
            self._message = self._sharing.waits()
            return LOOK_S
        self._message = None
        wanting = False
        for server_id, slots in usable:
            mine = sum(item.server_id == server_id for item, _ in self._under_way.values())
            if mine >= slots:
                wanting = True
                continue
            if not self._may_wait:
                continue
            taken = await self._write(ledger.take, self._hold, server_id, slots, slots - mine, clock.now())
            for item in taken:
                self._spawn(item)
            wanting = wanting or bool(taken)
        if not self._may_wait:
            return None
        waiting = await self._database.read(ledger.waiting, self._hold.task_id)
        if not waiting.items:
            self._may_wait = False
            return None
        return LOOK_S if wanting or waiting.in_s <= 0 else max(0.01, waiting.in_s)

    def _spawn(self, item: Taken) -> None:
        task = asyncio.create_task(self._guarded(item), name=f"item {item.id}")
        self._under_way[item.id] = item, task

    async def _guarded(self, item: Taken) -> None:
        """The item until it has ended, or is given back. A server that is gone cancels it, and only that."""
        try:
            try:
                await self._item(item)
            except asyncio.CancelledError:
                if item.id not in self._lost_on:
                    raise
                self._sharing.lost(item.server_id)
                failure = Failure("SERVER_LOST", Category.WORKER_LOST, "Its server is lost.")
                await self._failed(item, Failed(failure, server_lost=True), submitted=item.id in self._refs)
            except StorageUnavailable as error:
                log.warning("task item %s: %s", item.id, error.message)
                await asyncio.sleep(LOOK_S)
                raise
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._broken = error
        finally:
            self._under_way.pop(item.id, None)
            self._shares.pop(item.id, None)
            self._refs.pop(item.id, None)
            self._lost_on.discard(item.id)
            self._changed.set()

    _broken: Exception | None = None

    # ---- one item

    async def _item(self, item: Taken) -> None:
        try:
            client = await self._sharing.client(item.server_id)
        except (NotFound, Unusable) as error:
            failure = Failure("SERVER_LOST", Category.WORKER_LOST, str(error))
            await self._failed(item, Failed(failure, server_lost=True), submitted=item.ref is not None)
            return
        ref = item.ref
        if ref is None:
            ref = await self._submit(item, client)
            if ref is None:
                return
        self._refs[item.id] = client, ref
        outcome = await client.follow(ref, lambda share, said: self._report(item, share, said))
        match outcome:
            case Done():
                self._sharing.worked(item.server_id)
                await self._done(item, client, ref, outcome)
            case Failed():
                if not outcome.server_lost:
                    self._sharing.worked(item.server_id)
                await self._failed(item, outcome, submitted=True)

    async def _submit(self, item: Taken, client: ServerClient) -> str | None:
        """Hand the item over; the reference, stored, or None if it could not be."""
        sha256 = None
        staging = self._plan.staging(item)
        try:
            if item.path:
                sha256 = await asyncio.to_thread(self._read, item.path)
            if staging is not None:
                await asyncio.to_thread(staging.make)
        except OSError as error:
            code = "FILE_NOT_FOUND" if isinstance(error, FileNotFoundError) else "FILE_UNREADABLE"
            failure = Failure(code, Category.VALIDATION, f"{error.filename!r}: {error.strerror or error}.")
            await self._failed(item, Failed(failure), submitted=False)
            return None
        callback = None
        if self._sharing.http(item.server_id) and self._plan.batch is None:
            token = secrets.token_urlsafe(32)
            execution = self._plan.row.execution_id
            digest = hashlib.sha256(token.encode()).hexdigest()
            await self._write(store.set_token, self._hold, execution, digest)
            callback = {"execution": execution, "token": token}
        try:
            ref = await client.submit(self._plan.work(item, clock.now(), callback))
        except ServerFailed as error:
            await self._failed(item, error.failed, submitted=False)
            return None
        instance = ref if self._sharing.local(item.server_id) else None
        await self._write(ledger.submitted, self._hold, item.id, ref, instance, sha256)
        return ref

    def _read(self, path: str) -> str:
        """The digest of an input, which must still lie where nodes may touch it."""
        if not self._around.files.allows(path):
            raise PermissionError(errno.EACCES, "It leads out of the folders that nodes may touch", path)
        return sha256_of(path)

    def _report(self, item: Taken, share: float | None, said: str) -> None:
        if share is not None:
            self._shares[item.id] = min(1.0, max(0.0, share))
        if said and self._plan.batch is None:
            self._message = said[:1_000]

    async def _done(self, item: Taken, client: ServerClient, ref: str, done: Done) -> None:
        staging = self._plan.staging(item)
        try:
            outputs = await self._outputs(item, staging, client, ref, done)
        except ServerFailed as error:
            await self._failed(item, error.failed, submitted=True)
            return
        except OutputRefused as error:
            await self._failed(item, Failed(Failure(error.code, Category.VALIDATION, str(error))), submitted=True)
            return
        except OSError as error:
            message = f"The outputs can't be written: {error.strerror or error}."
            failure = Failure("OUTPUT_NOT_WRITTEN", Category.RESOURCE, message)
            await self._failed(item, Failed(failure), submitted=True)
            return
        result = _bounded(done.output)
        now = clock.now()
        await self._write(ledger.finish, self._hold, item, TaskStatus.COMPLETED, now, outputs=outputs, result=result)
        if staging is not None:
            await asyncio.to_thread(staging.discard)

    async def _outputs(
        self, item: Taken, staging: Staging | None, client: ServerClient, ref: str, done: Done
    ) -> list[dict[str, Any]]:
        if staging is None:
            return [fetching.told(file) for file in done.files]
        there = await fetching.fetch(staging, client, ref, done.files)
        placed = await asyncio.to_thread(place, staging, item.relative)
        return [*there, *(each.row() for each in placed)]

    async def _failed(self, item: Taken, failed: Failed, *, submitted: bool) -> None:
        failure, now = failed.failure, clock.now()
        if failed.server_lost:
            self._sharing.lost(item.server_id)
        if self._stop is not None or (failure.category is Category.CANCELED and not failed.server_lost):
            error = msgspec.to_builtins(failure)
            await self._write(ledger.finish, self._hold, item, TaskStatus.CANCELED, now, error=error)
            await self._discard(item)
            return
        decision = batches.after_failure(
            failure,
            server_lost=failed.server_lost,
            submitted=submitted,
            failures=item.failures,
            losses=item.losses,
            retries=self._plan.retries,
        )
        match decision:
            case batches.Again(in_s, counts):
                error = msgspec.to_builtins(failure)
                await self._write(
                    ledger.give_back, self._hold, item.id, in_s=in_s, error=error,
                    failed=counts == "failure", lost=counts == "loss",
                )  # fmt: skip
                self._may_wait = True
            case batches.GiveUp(last):
                error = msgspec.to_builtins(last)
                await self._write(ledger.finish, self._hold, item, TaskStatus.FAILED, now, error=error)
                await self._discard(item)
                batch = self._plan.batch
                if batch is not None and batch.on_item_error == "stop":
                    self._stopped_by_item = True

    async def _discard(self, item: Taken) -> None:
        staging = self._plan.staging(item)
        if staging is not None:
            await asyncio.to_thread(staging.discard)

    # ---- the folders

    async def _expand(self, spec: BatchSpec, row: Record) -> None:
        """Look through the folders, in a thread, and write down what is found, a piece in each transaction."""
        files = self._around.files
        walk = Walk(
            spec.target_folders,
            batches.file_matcher(spec.file_patterns),
            tuple(word.casefold() for word in spec.folder_keywords),
            spec.recursive,
            files.allows,
        )
        again = row.cursor is not None or row.total > 0
        pieces = walk.chunks(row.cursor)
        cursor: Any = row.cursor
        while (chunk := await asyncio.to_thread(_next, pieces)) is not None:
            cursor = chunk.cursor
            found = [_new_item(file) for file in chunk.files]
            await self._write(ledger.add, self._hold, found, cursor, chunk.warnings, clock.now(), again=again)
            self._may_wait = self._may_wait or bool(found)
            self._changed.set()
        await self._write(ledger.add, self._hold, [], cursor, {}, clock.now(), over=True)

    # ---- the end

    async def _wind_up(self) -> None:
        """Nothing new is begun. What runs is cancelled if the task is to stop, or else ends by itself."""
        if self._stop is not None:
            await asyncio.gather(*(self._cancel(client, ref) for client, ref in list(self._refs.values())))
        cancelled = self._stop is not None
        by = clock.monotonic() + CANCEL_S
        while self._under_way:
            self._changed.clear()
            await self._note()
            if not cancelled:
                await self._look()
                if self._stop is not None:
                    await asyncio.gather(*(self._cancel(client, ref) for client, ref in list(self._refs.values())))
                    cancelled, by = True, clock.monotonic() + CANCEL_S
            elif clock.monotonic() > by:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTE_S):
                    await self._changed.wait()
        for item, task in list(self._under_way.values()):  # a server that can't be stopped, or told
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            error = msgspec.to_builtins(Failure("CANCELED", Category.CANCELED, "It did not stop in time."))
            await self._write(ledger.finish, self._hold, item, TaskStatus.CANCELED, clock.now(), error=error)
        if self._stop is not None or self._stopped_by_item:
            while await self._write(ledger.cancel_pending, self._hold, clock.now()):
                pass
        await self._ended()

    async def _ended(self) -> None:
        row = await self._row()
        counts = _counts(row)
        match self._stop:
            case TaskStep.CANCEL:
                await self._end(TaskStep.CANCEL, None, counts)
            case TaskStep.FAIL:
                message = f"Its time of {row.timeout_s:g} s is over. {batches.summary(counts)}"
                await self._end(TaskStep.FAIL, Failure("TASK_TIMEOUT", Category.TIMEOUT, message), counts)
            case _ if self._plan.batch is not None:
                step, failure = batches.batch_end(counts, self._stopped_by_item)
                await self._end(step, failure, counts)
            case _:
                await self._end_as_item(counts)

    async def _end_as_item(self, counts: Counts) -> None:
        """A task of one run ends as its run did."""
        item = await self._database.read(ledger.only, self._hold.task_id)
        match item.status:
            case TaskStatus.COMPLETED:
                result = item.result
                if self._plan.row.type != WORKFLOW and isinstance(result, dict):
                    result = result.get("output", result)
                await self._end(TaskStep.COMPLETE, None, counts, result)
            case TaskStatus.CANCELED:
                await self._end(TaskStep.CANCEL, None, counts)
            case _:
                await self._end(TaskStep.FAIL, msgspec.convert(item.error, Failure, strict=False), counts)

    async def _end(
        self, step: TaskStep, failure: Failure | None, counts: Counts | None = None, result: Any = None
    ) -> None:
        values: dict[str, Any] = {"result": result}
        if counts is not None:
            values |= {"progress": batches.progress(counts, True) if counts.total else 1.0}
            if self._plan.batch is not None:
                values |= {"message": batches.summary(counts), "result": {
                    "total": counts.total, "done": counts.done, "failed": counts.failed, "canceled": counts.canceled,
                }}  # fmt: skip
        if failure is not None:
            values |= {"error": msgspec.to_builtins(failure), "message": failure.message}
        self._tell(await self._write(store.end, self._hold, step, clock.now(), **values))

    async def _abandon(self) -> None:
        """Somebody else has the task. If they ended it, stop what still runs of it; if not, it is theirs to follow."""
        with contextlib.suppress(StorageUnavailable):
            row = (await self._database.read(store.tasks, self._hold.project_id, [self._hold.task_id])).get(
                self._hold.task_id
            )
            if row is None or row.completed_at is not None:
                await asyncio.gather(*(self._cancel(client, ref) for client, ref in list(self._refs.values())))

    async def _cancel(self, client: ServerClient, ref: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await client.cancel(ref)
        except (ServerFailed, TimeoutError) as error:
            log.warning("a server can't be told to stop %s: %s", ref, error)

    # ---- telling

    async def _note(self) -> None:
        """Write down how far it is, if that has changed, and not too often."""
        if self._broken is not None:
            raise self._broken
        at = clock.monotonic()
        if at - self._noted_at < NOTE_S:
            return
        row = await self._row()
        counts = _counts(row)
        self._pace.note(at, counts.ended)
        share = batches.progress(counts, row.expanded, sum(self._shares.values()))
        message = self._message or (batches.summary(counts) if self._plan.batch is not None else row.message)
        seen = (counts, row.expanded, round(share, 4), message)
        if seen == self._noted:
            return
        self._noted, self._noted_at = seen, at
        left = self._pace.left_s(counts) if row.expanded else None
        values = {
            "progress": share,
            "message": message,
            "rate": self._pace.rate(),
            "eta_at": None if left is None or left > 315_360_000 else clock.now() + timedelta(seconds=left),
        }
        self._tell(await self._write(store.note, self._hold, clock.now(), **values))

    def _tell(self, change_seq: int) -> None:
        bus, project_id, task_id = self._around.bus, self._hold.project_id, self._hold.task_id
        bus.publish(task_id, (task_id,))
        bus.publish(f"tasks:{project_id}", (task_id,))
        self._around.changed(project_id, change_seq)

    async def _listen(self, topic: str) -> None:
        with self._around.bus.subscribe(topic) as subscription:
            while True:
                await subscription.take()
                subscription.overflowed = False
                await self._look()
                self._changed.set()

    # ---- the database

    async def _row(self) -> Record:
        rows = await self._database.read(store.tasks, self._hold.project_id, [self._hold.task_id])
        if self._hold.task_id not in rows:
            raise LeaseLost(self._hold.task_id, self._hold.fence)
        return rows[self._hold.task_id]

    async def _write(self, change: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._database.write(change, *args, **kwargs)


def _next(pieces: Any) -> Chunk | None:
    return next(pieces, None)


def _new_item(file: Any) -> NewItem:
    error = None if file.failure is None else msgspec.to_builtins(file.failure)
    return NewItem(clock.new_id("item"), file.path, file.relative, file.size, error)


def _counts(row: Record) -> Counts:
    return Counts(row.total, row.done, row.failed, row.canceled)


def _bounded(output: Any) -> Any:
    """The run's output, or only how large it is."""
    size = len(msgspec.json.encode(output))
    return output if size <= MAX_INLINE else {"truncated": True, "bytes": size}
