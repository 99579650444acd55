"""Tasks as their callers see them: batches over files, single runs in the background, and what is done to them later.

What runs them is in ``engine.batch``; here it is checked, stored, and somebody woken.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from db.session import Database
from db.store import changes
from db.store import items as ledger
from db.store import tasks as store
from db.store.keyset import Record
from engine import clock
from engine.access import Actor, Permission
from engine.batch import asking, reports
from engine.batch.answers import Plan, PlannedFile, Retried, ServerCheck, Started, Unavailable
from engine.batch.asking import Asking
from engine.batch.attempts import Surroundings
from engine.batch.driver import WAKE, Driver
from engine.batch.line import Line
from engine.batch.plan import spec_of
from engine.batch.reports import Report
from engine.batch.run import asked_topic
from engine.batch.sharing import ENGINE_SLOTS
from engine.bus import Bus
from engine.files import Files
from engine.servers.servers import Servers
from engine.workflows import Workflows
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.problems import ProblemCode
from flow.servers import Unavailability
from flow.states import after
from flow.tasks import (
    BATCH,
    TASK_TRANSITIONS,
    TERMINAL_TASK,
    BatchSpec,
    RunSpec,
    TaskStatus,
    TaskStep,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Plan", "PlannedFile", "Retried", "ServerCheck", "Started", "Tasks", "Unavailable"]

MAX_REASON = 1_000  # characters
MAX_ITEMS = 1_000  # that one call may name


class Tasks:
    """Every method raises NotFound for what is not in the actor's project, Denied without the permission, and
    StorageUnavailable if nothing can be stored now. ``change_seq`` is the project's place of the change.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        workflows: Workflows,
        servers: Servers,
        files: Files,
        publish: Callable[[str, int], None],
        *,
        worker: str,
        lease_s: float,
    ) -> None:
        self._database = database
        self._bus = bus
        self._publish = publish
        self._asking = Asking(database, workflows, files)
        around = Surroundings(database, servers, files, bus, workflows.version, publish, Line())
        self.driver = Driver(database, bus, lambda: around, worker=worker, lease_s=lease_s)

    async def start(self, *, alone: bool = False) -> None:
        """Run tasks in this process; ``alone``: what a dead predecessor held is taken at once."""
        await self.driver.start(alone=alone)

    async def stop(self) -> None:
        """Let go of the tasks that run here; their work goes on where it runs, to be followed again."""
        await self.driver.stop()

    # ---- batches

    async def batch_plan(self, actor: Actor, spec: BatchSpec, *, first: int = 20) -> Plan:
        """What ``batch_start`` would do (``dryRun``), with the first so many files; stores nothing.

        Raises as ``batch_start`` does, but for servers that are not available.
        """
        actor.require(Permission.TASK_RUN)
        resolved = await self._asking.batch(actor, spec)
        assert isinstance(resolved.spec, BatchSpec)
        counted = await self._asking.planned(resolved.spec, first)
        files = tuple(
            PlannedFile(file.path, file.relative, file.size, file.failure.message if file.failure else None)
            for file in counted.first
        )
        return Plan(counted.files, counted.bytes, files, resolved.servers, counted.warnings, counted.more)

    async def batch_start(self, actor: Actor, spec: BatchSpec) -> Started:
        """Store the batch and begin; its folders are looked through afterwards.

        Raises Invalid with every problem (folders that aren't there or are outside of the allowed roots, an output
        inside of a target, numbers out of range), NotFound for the workflow or a server, and Conflict with the code
        SERVER_UNAVAILABLE and ``details`` ``reason`` (an ``Unavailable``), ``server``, ``status``, ``task`` if none
        of the servers can take it now.
        """
        return await self.create(actor, spec)

    async def check(self, actor: Actor, spec: BatchSpec) -> ServerCheck:
        """Whether a batch could start now, and if not, why. Raises NotFound for an unknown server, and nothing for
        folders.
        """
        actor.require(Permission.TASK_READ)
        servers = await self._asking.servers_of(actor.project_id, spec.servers)
        found = await self._asking.available(actor.project_id, servers)
        try:
            await self._asking.version(actor, spec.workflow_id, spec.workflow_name, spec.version_id)
        except (NotFound, Conflict, Invalid) as refusal:
            reason = Unavailable.WORKFLOW_NOT_FOUND
            if found is None:
                return ServerCheck(False, None, None, 0, refusal.message, reason)
            server = found.server
            return ServerCheck(False, server.id, server.name, server.batch_size, refusal.message, reason)
        if found is None:
            return ServerCheck(True, None, None, ENGINE_SLOTS, "This engine itself takes it.")
        server = found.server
        return ServerCheck(
            found.available,
            server.id,
            server.name,
            server.batch_size,
            found.message,
            None if found.reason is None else Unavailable(found.reason.value),
            server.status if found.reason is Unavailability.NOT_ONLINE else None,
            found.load.task_id if found.reason is Unavailability.BUSY else None,
        )

    # ---- any task

    async def create(self, actor: Actor, spec: BatchSpec | RunSpec, *, start: bool = True) -> Started:
        """A task of any type. With ``start`` False it stays PENDING until ``execute``.

        Raises as ``batch_start`` does; Invalid for an unknown node type, and parameters or an input that don't fit.
        """
        actor.require(Permission.TASK_RUN)
        if isinstance(spec, BatchSpec):
            resolved = await self._asking.batch(actor, spec)
        else:
            resolved = await self._asking.run(actor, spec)
        if start:
            await self._require_available(actor, resolved.servers, waits=isinstance(spec, RunSpec))
        id, item, at = clock.new_id("task"), clock.new_id("item"), clock.now()

        def change(connection: Connection) -> Started:
            seq = changes.take(connection, actor.project_id)
            single = isinstance(resolved.spec, RunSpec)
            store.insert_task(
                connection,
                id=id,
                project_id=actor.project_id,
                type=BATCH if isinstance(resolved.spec, BatchSpec) else resolved.spec.type,
                name=resolved.name,
                description=spec.description,
                status=TaskStatus.PENDING,
                priority=spec.priority,
                timeout_s=None if spec.timeout is None else spec.timeout.total_seconds(),
                spec=msgspec.to_builtins(resolved.spec),
                workflow_id=resolved.workflow_id,
                version_id=resolved.version_id,
                total=int(single),
                expanded=single,
                change_seq=seq,
                created_at=at,
                created_by=actor.user_id,
                updated_at=at,
            )
            if single:
                ledger.insert_only(connection, id, item)
            execution, token = self._begin(connection, actor, id, resolved.servers, at) if start else (None, None)
            return Started(id, execution, token, seq)

        started = await self._database.write(change)
        self._tell(actor.project_id, id, started.change_seq, wake=start)
        return started

    async def update(
        self,
        actor: Actor,
        task_id: str,
        *,
        name: str | msgspec.UnsetType = msgspec.UNSET,
        description: str | msgspec.UnsetType | None = msgspec.UNSET,
        parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET,
        priority: int | msgspec.UnsetType = msgspec.UNSET,
    ) -> int:
        """Change a task that has not started; the change number. Raises Conflict if it has, Invalid."""
        actor.require(Permission.TASK_RUN)
        before = await self._row(actor, task_id)
        given = {"name": name, "description": description, "priority": priority, "parameters": parameters}
        given = {key: value for key, value in given.items() if value is not msgspec.UNSET}
        spec = msgspec.structs.replace(spec_of(before), **given)
        resolved = None
        if isinstance(spec, RunSpec) and "parameters" in given:
            resolved = await self._asking.run(actor, spec)
        elif problems := asking.spec_problems(spec):
            raise Invalid(problems, path=("input",))

        def change(connection: Connection) -> int:
            seq = changes.take(connection, actor.project_id)
            row = store.locked(connection, actor.project_id, task_id)
            store.expect(row, frozenset({TaskStatus.PENDING}), "Only a task that has not started can be changed.")
            if row.spec != before.spec:
                raise Conflict("Somebody else has changed the task at this moment. Look at it and try again.")
            values: dict[str, Any] = {"spec": msgspec.to_builtins(spec if resolved is None else resolved.spec)}
            if resolved is not None:
                values |= {"workflow_id": resolved.workflow_id, "version_id": resolved.version_id}
            values |= {key: value for key, value in given.items() if key != "parameters"}
            store.set_task(connection, task_id, **values, change_seq=seq, updated_at=clock.now())
            return seq

        return self._tell(actor.project_id, task_id, await self._database.write(change))

    async def delete(self, actor: Actor, task_id: str) -> int:
        """Remove a finished task, its executions and items; what they wrote stays. The change number.

        Raises Conflict if it has not finished: cancel it first.
        """
        actor.require(Permission.TASK_RUN)

        def bar(connection: Connection) -> None:
            row = store.locked(connection, actor.project_id, task_id)
            store.expect(row, TERMINAL_TASK, "Only a finished task can be deleted: cancel it first.")

        def remove(connection: Connection) -> int:
            seq = changes.take(connection, actor.project_id)
            bar(connection)
            store.delete_task(connection, actor.project_id, task_id)
            return seq

        await self._database.write(bar)
        while await self._database.write(ledger.delete_some, task_id):
            pass
        return self._tell(actor.project_id, task_id, await self._database.write(remove))

    async def cancel(self, actor: Actor, task_id: str, reason: str | None = None) -> int:
        """Ask the task to stop; it is CANCELED when its running items have stopped. Asking twice is asking once.

        The change number. Raises Conflict if it has ended, Invalid for a long reason.
        """
        actor.require(Permission.TASK_RUN)
        problems = asking.json_problems("reason", reason)
        if reason is not None and len(reason) > MAX_REASON:
            problem = f"A reason has at most {MAX_REASON:,} characters."
            problems.append(Problem("/reason", ProblemCode.OUT_OF_RANGE.value, problem))
        if problems:
            raise Invalid(problems, path=("input", "reason"))

        def change(connection: Connection) -> int:
            seq, at = changes.take(connection, actor.project_id), clock.now()
            row = store.locked(connection, actor.project_id, task_id)
            after(TASK_TRANSITIONS, TaskStatus(row.status), TaskStep.CANCEL)
            if row.status == TaskStatus.PENDING and row.owner is None:
                ledger.settle(connection, task_id, TaskStatus.CANCELED, at)
                ledger.recount(connection, task_id)
                return store.close(connection, row, TaskStep.CANCEL, at, seq, message=reason)
            values = {"cancel_requested_at": row.cancel_requested_at or at, "change_seq": seq, "updated_at": at}
            store.set_task(connection, task_id, **values)
            if row.owner is None:  # it stepped aside
                store.make_due(connection, task_id)
            return seq

        seq = await self._database.write(change)
        self._bus.publish(asked_topic(task_id), (task_id,))
        self._bus.publish(WAKE, (task_id,))
        return self._tell(actor.project_id, task_id, seq)

    async def execute(self, actor: Actor, task_id: str, server: str | None = None) -> Started:
        """Run an existing task, again if it has ended, on that server (id or name; None: as it was created).

        Of a batch, only what isn't completed runs, and files that came since. Raises Conflict if it runs already or
        waits to, if its workflow may not be run any more, or (SERVER_UNAVAILABLE) as ``batch_start``; NotFound if the
        workflow is gone.
        """
        actor.require(Permission.TASK_RUN)
        before = await self._row(actor, task_id)
        spec = spec_of(before)
        own = spec.servers if isinstance(spec, BatchSpec) else ((spec.server,) if spec.server else ())
        version = await self._asking.version(actor, before.workflow_id, None, before.version_id)
        servers = own
        if server is not None:
            servers = await self._asking.fitting(actor.project_id, {"/server": server}, version)
        await self._require_available(actor, servers, waits=isinstance(spec, RunSpec) and server is None)
        if server is not None:
            if isinstance(spec, BatchSpec):
                spec = msgspec.structs.replace(spec, servers=servers)
            else:
                spec = msgspec.structs.replace(spec, server=servers[0])

        def change(connection: Connection) -> Started:
            seq = changes.take(connection, actor.project_id)
            row = self._reopened(connection, actor, task_id, msgspec.to_builtins(spec))
            if row.completed_at is not None:
                again = ["FAILED", "CANCELED"] if row.type == BATCH else ["FAILED", "CANCELED", "COMPLETED"]
                ledger.reopen(connection, task_id, again)
                ledger.recount(connection, task_id)
                if row.type == BATCH:
                    store.set_task(connection, task_id, expanded=False, cursor=None, warnings={})
            store.set_task(connection, task_id, change_seq=seq)
            execution, token = self._begin(connection, actor, task_id, servers, clock.now())
            return Started(task_id, execution, token, seq)

        started = await self._database.write(change)
        self._tell(actor.project_id, task_id, started.change_seq, wake=True)
        return started

    async def items_retry(
        self, actor: Actor, task_id: str, *, failed: bool = True, items: Sequence[str] | None = None
    ) -> Retried:
        """Run the failed items of a finished task again (with ``failed`` False the canceled ones too), or only these.

        Raises Conflict if the task has not finished or there is no such item, NotFound for an item.
        """
        actor.require(Permission.TASK_RUN)
        before = await self._row(actor, task_id)
        if items is not None:
            await self._require_items(actor, task_id, items)
        spec = spec_of(before)
        servers = spec.servers if isinstance(spec, BatchSpec) else ((spec.server,) if spec.server else ())
        await self._asking.version(actor, before.workflow_id, None, before.version_id)

        def change(connection: Connection) -> Retried:
            seq = changes.take(connection, actor.project_id)
            row = self._reopened(connection, actor, task_id, before.spec)
            if row.completed_at is None:
                raise Conflict("The task has not finished: its items can't be retried yet.", status=row.status)
            number = ledger.reopen(connection, task_id, ["FAILED"] if failed else ["FAILED", "CANCELED"], items)
            if not number:
                raise Conflict("There is no such item: nothing failed.", status=row.status)
            ledger.recount(connection, task_id)
            store.set_task(connection, task_id, change_seq=seq)
            execution, _ = self._begin(connection, actor, task_id, servers, clock.now())
            return Retried(number, execution, seq)

        retried = await self._database.write(change)
        self._tell(actor.project_id, task_id, retried.change_seq, wake=True)
        return retried

    async def execution_status_set(
        self,
        actor: Actor,
        execution_id: str,
        token: str,
        status: TaskStatus,
        *,
        progress: float | None = None,
        message: str | None = None,
        result: Any = None,
        error: str | None = None,
    ) -> int:
        """What the runner of an execution reports; the change number. An end uses the token up, ends the task and
        stops whatever still runs of it.

        Raises Denied for a wrong or used token, IllegalTransition (a Conflict), Invalid.
        """
        problems = asking.report_problems(status, progress, message, result, error)
        if problems:
            raise Invalid(problems, path=("input",))
        report = Report(execution_id, token, status, clock.now(), progress, message, result, error)
        seq, task_id = await self._database.write(reports.record, actor.project_id, report)
        self._bus.publish(asked_topic(task_id), (task_id,))
        return self._tell(actor.project_id, task_id, seq)

    # ---- inside

    async def _row(self, actor: Actor, task_id: str) -> Record:
        rows = await self._database.read(store.tasks, actor.project_id, [task_id])
        if task_id not in rows:
            raise NotFound("task", task_id)
        return rows[task_id]

    async def _require_items(self, actor: Actor, task_id: str, ids: Sequence[str]) -> None:
        if len(ids) > MAX_ITEMS:
            problem = f"At most {MAX_ITEMS:,} items can be named; leave them out for all that failed."
            raise Invalid([Problem("/items", ProblemCode.OUT_OF_RANGE.value, problem)], path=("input", "items"))
        rows = await self._database.read(store.items, actor.project_id, list(ids))
        for id in ids:
            if id not in rows or rows[id].task_id != task_id:
                raise NotFound("task item", id, path=("input", "items"))

    async def _require_available(self, actor: Actor, servers: tuple[str, ...], *, waits: bool) -> None:
        """Raise the Conflict of a server that can't take work now. ``waits``: it may have no free place yet."""
        found = await self._asking.available(actor.project_id, servers)
        if found is None or found.reason is None or (waits and found.reason is Unavailability.BUSY):
            return
        raise Conflict(
            found.message,
            code="SERVER_UNAVAILABLE",
            reason=found.reason.value,
            server=found.server.id,
            status=found.server.status,
            task=found.load.task_id,
        )

    def _reopened(self, connection: Connection, actor: Actor, task_id: str, spec: Any) -> Record:
        """The row as it was; the task is PENDING and knows nothing of its last end."""
        row = store.locked(connection, actor.project_id, task_id)
        status = TaskStatus(row.status)
        if status is TaskStatus.PENDING and row.execution_id is None:
            store.set_task(connection, task_id, spec=spec)
            return row
        if status is TaskStatus.PENDING:
            raise Conflict("The task waits to run already.", status=row.status)
        pending = after(TASK_TRANSITIONS, status, TaskStep.AGAIN)
        store.set_task(
            connection, task_id, status=pending, spec=spec, progress=0.0, message=None, result=None, error=None,
            cancel_requested_at=None, started_at=None, completed_at=None,
        )  # fmt: skip
        return row

    def _begin(
        self, connection: Connection, actor: Actor, task_id: str, servers: Sequence[str], at: datetime
    ) -> tuple[str, str]:
        """The next execution, due now: its id and its token."""
        id, token = clock.new_id("exec"), secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        server = servers[0] if len(servers) == 1 else None
        store.insert_execution(
            connection, task_id, actor.project_id, id, server_id=server, token_sha256=digest, at=at, by=actor.user_id
        )
        store.make_due(connection, task_id)
        return id, token

    def _tell(self, project_id: str, task_id: str, change_seq: int, *, wake: bool = False) -> int:
        self._bus.publish(task_id, (task_id,))
        self._bus.publish(f"tasks:{project_id}", (task_id,))
        self._publish(project_id, change_seq)
        if wake:
            self.driver.wake()
            self._bus.publish(WAKE, (task_id,))
        return change_seq
