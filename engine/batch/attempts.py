"""The items of one task that are under way: each from a server's free slot to its end, or back to where it waits.

Every step is in the ledger before the next one begins: an item is RUNNING before it is submitted (under an id that is
the same each time), its reference is stored before it is followed, its outputs lie in their places before it is
COMPLETED. So whoever takes the task over goes on from the ledger alone.
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
from typing import Any

import msgspec

from db.session import Database
from db.store import items as ledger
from db.store import tasks as store
from db.store.items import Taken
from db.store.tasks import Hold
from engine import clock, output
from engine.batch import fetching
from engine.batch.line import Line
from engine.batch.outputs import OutputRefused, place, sha256_of
from engine.batch.plan import Plan
from engine.batch.sharing import Sharing
from engine.bus import Bus
from engine.definitions import PinnedVersion
from engine.files import Files
from engine.nodes.contract import plain_text
from engine.servers.contract import Done, Failed, ServerClient, ServerFailed
from engine.servers.health import Unusable
from engine.servers.servers import Servers
from flow import batches
from flow.errors import Category, Failure, NotFound, StorageUnavailable
from flow.parsing import check_values
from flow.problems import Problems
from flow.tasks import TaskStatus

#: How long an item that is cancelled may take to stop.
CANCEL_S = 30.0
#: Wait after the database could not be asked.
PAUSE_S = 1.0
MAX_DETAILS = 16 * 1024  # bytes of JSON of a failure

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
    line: Line

    def tell(self, hold: Hold, change_seq: int) -> None:
        """The task has changed."""
        self.bus.publish(hold.task_id, (hold.task_id,))
        self.bus.publish(f"tasks:{hold.project_id}", (hold.task_id,))
        self.changed(hold.project_id, change_seq)


class Attempts:
    """``changed`` is set whenever an item is no longer under way, or something is to be told.

    ``waiting``: an item was given back, so that there is one to hand out. ``stopped``: one failed for good, and the
    batch is to stop then. ``message``: what a single run says of itself. ``broken``: what an item met that is none of
    its business; the task can't go on.
    """

    def __init__(self, around: Surroundings, hold: Hold, plan: Plan, sharing: Sharing, changed: asyncio.Event) -> None:
        self._around = around
        self._database = around.database
        self._hold = hold
        self._plan = plan
        self._sharing = sharing
        self._changed = changed
        self._under_way: dict[str, tuple[Taken, asyncio.Task[None]]] = {}
        self._refs: dict[str, tuple[ServerClient, str]] = {}
        self._shares: dict[str, float] = {}
        self._lost: set[str] = set()
        self._cancelling = False
        self.waiting = True
        self.stopped = False
        self.message: str | None = None
        self.broken: Exception | None = None

    def __len__(self) -> int:
        """How many items are under way."""
        return len(self._under_way)

    @property
    def shares(self) -> dict[str, float]:
        """How far each of them is, from 0 to 1, by id, of those that say so."""
        return dict(self._shares)

    def on(self, server_id: str | None) -> int:
        """How many of them are on that server."""
        return sum(item.server_id == server_id for item, _ in self._under_way.values())

    def begin(self, item: Taken) -> None:
        """Go on with an item that is RUNNING in the ledger, from where it is."""
        self._under_way[item.id] = item, asyncio.create_task(self._guarded(item), name=f"item {item.id}")

    def lose(self, gone: Callable[[str | None], bool]) -> None:
        """Take back the items of the servers that are gone."""
        for item, task in list(self._under_way.values()):
            if gone(item.server_id) and item.id not in self._lost:
                self._lost.add(item.id)
                task.cancel()

    async def cancel(self) -> None:
        """Have every server stop its items; they end as CANCELED, or as what they came to before that."""
        self._cancelling = True
        await asyncio.gather(*(self._stop(client, ref) for client, ref in list(self._refs.values())))

    async def give_up(self) -> None:
        """End what did not stop in time."""
        for item, task in list(self._under_way.values()):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._finish(item, TaskStatus.CANCELED, failure=_failure("CANCELED", "It did not stop in time."))

    async def close(self) -> None:
        """Leave what is under way to whoever comes next."""
        tasks = [task for _, task in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- one item

    async def _guarded(self, item: Taken) -> None:
        try:
            await self._attempt(item)
        except asyncio.CancelledError:
            if item.id not in self._lost:
                raise
            await self._recovered(item)
        except StorageUnavailable as error:
            log.warning("task item %s: %s", item.id, error.message)
            await asyncio.sleep(PAUSE_S)
            self.broken = error
        except Exception as error:
            self.broken = error
        finally:
            self._under_way.pop(item.id, None)
            self._refs.pop(item.id, None)
            self._shares.pop(item.id, None)
            self._lost.discard(item.id)
            self._changed.set()
            self._around.line.freed(item.server_id)

    async def _recovered(self, item: Taken) -> None:
        """Its server is gone: that cancelled the wait for it, and nothing else."""
        current = asyncio.current_task()
        assert current is not None
        current.uncancel()
        try:
            lost = Failed(_failure("SERVER_LOST", "Its server is lost."), server_lost=True)
            await self._failed(item, lost, submitted=item.id in self._refs)
        except Exception as error:
            self.broken = error

    async def _attempt(self, item: Taken) -> None:
        try:
            client = await self._sharing.client(item.server_id)
        except (NotFound, Unusable) as error:
            lost = Failed(_failure("SERVER_LOST", str(error)), server_lost=True)
            await self._failed(item, lost, submitted=item.ref is not None)
            return
        ref = item.ref
        if ref is None:
            if self._cancelling:
                await self._finish(item, TaskStatus.CANCELED)
                return
            try:
                ref = await self._submit(item, client)
            except ServerFailed as error:
                await self._failed(item, error.failed, submitted=False)
                return
            if ref is None:
                return
        self._refs[item.id] = client, ref
        if self._cancelling:
            await self._stop(client, ref)
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
        """Hand the item over; the reference, stored, or None if its file is at fault. Raises ServerFailed."""
        sha256 = None
        staging = self._plan.staging(item)
        try:
            if item.path:
                sha256 = await asyncio.to_thread(self._digest, item.path)
        except OSError as error:
            code = "FILE_NOT_FOUND" if isinstance(error, FileNotFoundError) else "FILE_UNREADABLE"
            failure = _failure(code, f"{item.path!r} can't be read: {error.strerror or error}.", Category.VALIDATION)
            await self._failed(item, Failed(failure), submitted=False)
            return None
        try:
            if staging is not None:
                await asyncio.to_thread(staging.make)
        except OSError as error:
            await self._failed(item, Failed(_not_written(error)), submitted=True)
            return None
        ref = await client.submit(self._plan.work(item, clock.now(), await self._callback(item)))
        instance = ref if self._sharing.local(item.server_id) else None
        await self._database.write(ledger.submitted, self._hold, item.id, ref, instance, sha256)
        return ref

    async def _callback(self, item: Taken) -> dict[str, Any] | None:
        """Where the runner of a single run may report its end, with a token that is only its own."""
        execution = self._plan.row.execution_id
        if self._plan.batch is not None or execution is None or not self._sharing.http(item.server_id):
            return None
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        await self._database.write(store.set_token, self._hold, execution, digest)
        return {"execution": execution, "token": token}

    def _digest(self, path: str) -> str:
        """The digest of an input, which must still lie where nodes may touch it."""
        if not self._around.files.allows(path):
            raise PermissionError(errno.EACCES, "it leads out of the folders that nodes may touch", path)
        return sha256_of(path)

    def _report(self, item: Taken, share: float | None, said: str) -> None:
        if share is not None:
            self._shares[item.id] = min(1.0, max(0.0, share))
        if said and self._plan.batch is None:
            self.message = plain_text(said, 1_000)

    async def _done(self, item: Taken, client: ServerClient, ref: str, done: Done) -> None:
        staging = self._plan.staging(item)
        try:
            result = _bounded(done.output)
            if staging is None:
                local = done.files if self._sharing.local(item.server_id) else ()
                outputs = await fetching.lying(local, self._around.files.allows)
            else:
                there = await fetching.fetch(staging, client, ref, done.files)
                placed = await asyncio.to_thread(place, staging, item.relative)
                outputs = [*there, *(each.row() for each in placed)]
        except ServerFailed as error:
            await self._failed(item, error.failed, submitted=True)
            return
        except OutputRefused as error:
            await self._failed(item, Failed(_failure(error.code, str(error), Category.VALIDATION)), submitted=True)
            return
        except OSError as error:
            await self._failed(item, Failed(_not_written(error)), submitted=True)
            return
        except output.OutputRefused as error:
            await self._failed(item, Failed(error.failure), submitted=True)
            return
        await self._finish(item, TaskStatus.COMPLETED, outputs=outputs, result=result)

    async def _failed(self, item: Taken, failed: Failed, *, submitted: bool) -> None:
        failure = _storable(failed.failure)
        if failed.server_lost:
            self._sharing.lost(item.server_id, failure.message[:300])
        if self._cancelling or (failure.category is Category.CANCELED and not failed.server_lost):
            await self._finish(item, TaskStatus.CANCELED, failure=failure)
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
                await self._database.write(
                    ledger.give_back, self._hold, item.id, in_s=in_s, error=msgspec.to_builtins(failure),
                    failed=counts == "failure", lost=counts == "loss",
                )  # fmt: skip
                self.waiting = True
            case batches.GiveUp(last):
                await self._finish(item, TaskStatus.FAILED, failure=last)
                batch = self._plan.batch
                self.stopped = self.stopped or (batch is not None and batch.on_item_error == "stop")

    async def _finish(
        self,
        item: Taken,
        status: TaskStatus,
        *,
        failure: Failure | None = None,
        outputs: list[dict[str, Any]] | None = None,
        result: Any = None,
    ) -> None:
        """First the ledger, then the staging: the other way round, a death in between would lose the outputs' trace."""
        error = None if failure is None else msgspec.to_builtins(failure)
        await self._database.write(
            ledger.finish, self._hold, item, status, clock.now(), outputs=outputs or [], result=result, error=error
        )
        staging = self._plan.staging(item)
        if staging is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(staging.discard)

    async def _stop(self, client: ServerClient, ref: str) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await client.cancel(ref)
        except (ServerFailed, TimeoutError) as error:
            log.warning("a server can't be told to stop %s: %s", ref, error)


def _failure(code: str, message: str, category: Category = Category.WORKER_LOST) -> Failure:
    return Failure(code, category, message[:2_000])


def _not_written(error: OSError) -> Failure:
    message = f"The outputs can't be written: {error.strerror or error}."
    return _failure("OUTPUT_NOT_WRITTEN", message, Category.RESOURCE)


def _storable(failure: Failure) -> Failure:
    """The failure in text that any database takes, whatever a server says."""
    details = failure.details
    problems = Problems()
    check_values(details, problems)
    if problems or len(msgspec.json.encode(details)) > MAX_DETAILS:
        details = {}
    code, message = plain_text(failure.code, 100), plain_text(failure.message, 2_000)
    return msgspec.structs.replace(failure, code=code, message=message, details=details, traceback=None)


def _bounded(given: Any) -> Any:
    """The run's output, or only how large it is. Raises OutputRefused for what is no JSON."""
    plain, text = output.encoded(given)
    return plain if len(text) <= output.MAX_INLINE else {"truncated": True, "bytes": len(text)}
