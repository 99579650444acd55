"""What people do to a run under way: pause it, answer it, signal it, debug it, cancel it, let a failed one go on.

Nearly all of it is a letter (``db.store.letters``): checked and stored here, made history by whoever drives the run.
Only a FAILED run has nobody who would read one, so ``retry`` takes it over for a moment and writes the event itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from db.session import Database
from db.store import admission, keyset, leases, letters, lists
from db.store import instances as store
from db.store.journal import Append, Committed, Wake, instance_row, node_row
from db.store.keyset import Filter, Slice
from engine import clock
from engine.access import Actor, Permission
from engine.executor import Executor
from engine.journal import Journal
from engine.workflows import Workflows
from flow import events as e
from flow import expressions, jsonschemas
from flow.definition import Definition
from flow.errors import Conflict, Denied, Invalid, NotFound, Problem, WorkflowError
from flow.expressions import ExpressionError
from flow.parsing import check_values
from flow.problems import ProblemCode, Problems, did_you_mean, shown
from flow.states import InstanceStatus, NodeStatus

MAX_REASON = 1_000  # characters
MAX_COMMENT = 4_000  # characters
MAX_NAME = 255  # characters of a signal's name
MAX_BREAKPOINTS = 100
#: Instances that one call may cancel or retry, and how many of them at a time.
MAX_BULK, BATCH = 10_000, 200


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one instance of many: ``refusal`` says why nothing was done with it."""

    instance_id: str
    refusal: WorkflowError | None = None


@dataclass(frozen=True, slots=True)
class Bulk:
    """A row for each instance that matched, oldest first; ``more``: others match too, call again."""

    rows: tuple[Row, ...]
    more: bool = False


class Controls:
    """Every method raises NotFound for what is not in the actor's project, Denied without the permission, Conflict if
    the run has ended or is in no state for it, and StorageUnavailable if nothing can be stored now. Those that post a
    letter give the change number of the run as it was then.
    """

    def __init__(self, database: Database, journal: Journal, executor: Executor, workflows: Workflows) -> None:
        self._database = database
        self._journal = journal
        self._executor = executor
        self._workflows = workflows

    # ---- letters

    async def cancel(self, actor: Actor, instance_id: str, reason: str | None = None) -> int:
        """Ask the run to stop; it is CANCELED when its nodes have stopped. Asking twice is asking once.

        Raises Invalid for a long reason.
        """
        actor.require(Permission.INSTANCE_RUN)
        _check_reason(reason)
        return await self._post(actor, instance_id, e.CancelRequested(by=actor.user_id, reason=reason))

    async def pause(self, actor: Actor, instance_id: str) -> int:
        """Start no more nodes; those that run finish. Asking twice is asking once."""
        actor.require(Permission.INSTANCE_RUN)
        return await self._post(actor, instance_id, e.InstancePaused(e.PauseReason.USER, by=actor.user_id))

    async def resume(self, actor: Actor, instance_id: str) -> int:
        """Go on. Raises Conflict if the run isn't paused."""
        actor.require(Permission.INSTANCE_RUN)
        return await self._post(actor, instance_id, e.InstanceResumed(by=actor.user_id))

    async def debug_continue(self, actor: Actor, instance_id: str) -> int:
        """Go on to the next breakpoint. Raises Conflict if the run isn't paused."""
        return await self.resume(actor, instance_id)

    async def debug_step(self, actor: Actor, instance_id: str) -> int:
        """Go on to the next node. Raises Conflict if the run isn't paused."""
        actor.require(Permission.INSTANCE_RUN)
        return await self._post(actor, instance_id, e.InstanceResumed(by=actor.user_id, step=True))

    async def debug_set(
        self,
        actor: Actor,
        instance_id: str,
        breakpoints: Sequence[e.Breakpoint] = (),
        *,
        stepping: bool = False,
    ) -> int:
        """Breakpoints and stepping from now on, instead of those before.

        Raises Invalid for a breakpoint on an unknown node or with an expression that can't be read.
        """
        actor.require(Permission.INSTANCE_RUN)
        debug = e.Debug(stepping=stepping, breakpoints=tuple(breakpoints))
        version = await self._workflows.version(await self._version_id(actor, instance_id))
        check_debug(version.definition, debug)
        return await self._post(actor, instance_id, e.DebugSet(debug, by=actor.user_id))

    async def debug_value_set(
        self, actor: Actor, instance_id: str, path: str, what: Literal["input", "output"], value: Any
    ) -> int:
        """Give a node of a paused run another input, or an output, with which it counts as COMPLETED.

        Raises Invalid for a value that is no JSON, NotFound for a node that the run can't have, Conflict for one that
        is past it: an input can be given before the node starts, an output as long as the node isn't running.
        """
        actor.require(Permission.INSTANCE_RUN)
        _check_json("value", value)
        version = await self._workflows.version(await self._version_id(actor, instance_id))
        if path.rpartition("/")[2] not in node_ids(version.definition):
            raise NotFound("node", path, path=("input", "path"))
        return await self._post(actor, instance_id, e.ValueSet(path, what, value, by=actor.user_id))

    async def signal(self, actor: Actor, instance_id: str, name: str, payload: Any = None) -> int:
        """Send a signal: to the node that waits for its name, or kept for the first that will.

        Raises Invalid for a payload that doesn't fit what a waiting node wants.
        """
        actor.require(Permission.INSTANCE_RUN)
        if not 1 <= len(name) <= MAX_NAME:
            problem = f"A signal's name has 1 to {MAX_NAME} characters."
            raise Invalid([Problem("/name", ProblemCode.OUT_OF_RANGE, problem)], path=("input", "name"))
        _check_json("payload", payload)
        wanted = await self._database.read(letters.waits_for_signal, actor.project_id, instance_id, name)
        unfit = [_mismatches("payload", schema, payload) if schema is not None else [] for schema in wanted]
        if unfit and all(unfit):
            raise Invalid(unfit[0], path=("input", "payload"))
        return await self._post(actor, instance_id, e.SignalReceived(name, payload, by=actor.user_id))

    async def answer(
        self,
        actor: Actor,
        instance_id: str,
        path: str,
        approved: bool,
        answer: Any = None,
        comment: str | None = None,
    ) -> int:
        """Answer the approval that waits at this node.

        Raises Conflict if it isn't waiting (any more) or has been answered, Denied for who is not among those that may
        answer, Invalid for an answer that doesn't fit the approval's form (a rejection needs none).
        """
        actor.require(Permission.INSTANCE_READ)
        awaited = await self._database.read(letters.awaited, actor.project_id, instance_id, path)
        if isinstance(awaited, e.ForApproval):
            if awaited.who and not {actor.name, actor.user_id} & set(awaited.who):
                message = f"Only {', '.join(awaited.who)} may answer this approval."
                raise Denied(Permission.INSTANCE_RUN, message)
            if awaited.form is not None and (approved or answer is not None):
                problems = _mismatches("answer", awaited.form, answer)
                if problems:
                    raise Invalid(problems, path=("input", "answer"))
        if not isinstance(awaited, e.ForApproval) or not awaited.who:
            actor.require(Permission.INSTANCE_RUN)
        _check_json("answer", answer)
        if comment is not None and len(comment) > MAX_COMMENT:
            problem = f"A comment has at most {MAX_COMMENT:,} characters."
            raise Invalid([Problem("/comment", ProblemCode.OUT_OF_RANGE, problem)], path=("input", "comment"))
        return await self._post(
            actor, instance_id, e.ApprovalAnswered(path, approved, answer, comment, by=actor.user_id)
        )

    async def _post(self, actor: Actor, instance_id: str, event: letters.Letterable) -> int:
        status = await self._database.write(letters.deliver, actor.project_id, instance_id, event, clock.now())
        self._executor.tell([_wake(instance_id, status)])
        return status.change_seq

    async def _version_id(self, actor: Actor, instance_id: str) -> str:
        rows = await self._database.read(lists.instances, actor.project_id, [instance_id])
        if instance_id not in rows:
            raise NotFound("instance", instance_id)
        return str(rows[instance_id].version_id)

    # ---- letting a failed run go on

    async def retry(self, actor: Actor, instance_id: str, paths: Sequence[str] | None = None) -> int:
        """Let a FAILED run go on from these failed nodes, or from all that failed it; it is RUNNING when this returns.

        Gives the change number of that. Raises Conflict if the run isn't FAILED, or a node isn't.
        """
        actor.require(Permission.INSTANCE_RUN)
        status = await self._database.read(store.status, actor.project_id, instance_id)
        if status is None:
            raise NotFound("instance", instance_id)
        # Shielded: who hangs up in the middle shall not leave the run held by nobody.
        return await asyncio.shield(asyncio.ensure_future(self._reopen(actor, instance_id, paths)))

    async def _reopen(self, actor: Actor, instance_id: str, paths: Sequence[str] | None) -> int:
        executor = self._executor
        claim = await self._database.write(leases.claim_failed, executor.worker, instance_id, executor.lease_s)
        if claim is None:
            status = await self._database.read(store.status, actor.project_id, instance_id)
            now = status.status if status is not None else "gone"
            message = f"Only a failed run can go on; this one is {now}."
            if now == InstanceStatus.FAILED:
                message = "Somebody else is just letting this run go on."
            raise Conflict(message, status=now)
        reopened = False
        try:
            run = await executor.loader.replayed(claim)
            wanted = failed = [path for path, node in run.snapshot.nodes.items() if node.status is NodeStatus.FAILED]
            if paths is not None:
                for path in paths:
                    node = run.snapshot.nodes.get(path)
                    if node is None:
                        raise NotFound("node execution", path)
                    if path not in failed:
                        raise Conflict(
                            f"Only a failed node can run again; {path!r} is {node.status}.", status=node.status
                        )
                wanted = list(paths)
            if not wanted:
                raise Conflict("No node of this run failed, so there is none to run again.", status="FAILED")
            event = run.reopening(e.InstanceReopened(tuple(wanted), by=actor.user_id))
            recorded = e.Recorded(run.snapshot.last_seq + 1, clock.now(), event)
            run.apply(recorded)
            append = Append(
                instance_id=instance_id,
                project_id=claim.project_id,
                worker=executor.worker,
                fence=claim.fence,
                base_seq=recorded.seq - 1,
                events=[recorded],
                instance=instance_row(instance_id, claim.project_id, run.snapshot),
                nodes=[
                    node_row(instance_id, path, run.node(path).type, run.snapshot.nodes[path])
                    for path in event.reset
                    if path in run.snapshot.nodes
                ],
                release=True,
                due_at=clock.now(),
            )
            match await self._journal.submit(append):
                case Committed(change_seq=change_seq):
                    reopened = True
                case _:
                    raise Conflict("Somebody else is just letting this run go on.", status="FAILED")
        finally:
            if not reopened:
                await self._database.write(leases.release, executor.worker, [instance_id])
        executor.wake(instance_id)
        return change_seq

    # ---- limits

    async def limit(self, actor: Actor, max_running: int | None, workflow_id: str | None = None) -> None:
        """Let at most so many runs of the workflow, or of the whole project, be under way at once (None: any number).

        Those that are under way go on; the others wait for their turn. Raises NotFound, Invalid below 1.
        """
        actor.require(Permission.WORKFLOW_WRITE)
        if max_running is not None and max_running < 1:
            problem = Problem("/maxRunning", ProblemCode.OUT_OF_RANGE, "A limit is at least 1; none means any number.")
            raise Invalid([problem], path=("input", "maxRunning"))
        admitted = await self._database.write(admission.limit, actor.project_id, workflow_id, max_running)
        for id in admitted:
            self._executor.wake(id)

    # ---- many at once

    async def cancel_many(self, actor: Actor, where: Filter, reason: str | None = None) -> Bulk:
        """Ask every run that matches to stop; those that have ended already get a row that says so."""
        actor.require(Permission.INSTANCE_RUN)
        _check_reason(reason)
        ids, more = await self._matching(actor, where)
        rows: list[Row] = []
        request = e.CancelRequested(by=actor.user_id, reason=reason)
        for batch in _batches(ids):
            found = await self._database.write(letters.deliver_all, actor.project_id, batch, request, clock.now())
            for id in batch:
                match found[id]:
                    case WorkflowError() as refusal:
                        rows.append(Row(id, refusal))
                    case status:
                        rows.append(Row(id))
                        self._executor.tell([_wake(id, status)])
        return Bulk(tuple(rows), more)

    async def retry_many(self, actor: Actor, where: Filter) -> Bulk:
        """Let every failed run that matches go on; the others get a row that says why not."""
        actor.require(Permission.INSTANCE_RUN)
        ids, more = await self._matching(actor, where)
        rows: list[Row] = []
        for batch in _batches(ids):
            results = await asyncio.gather(*(self.retry(actor, id) for id in batch), return_exceptions=True)
            for id, result in zip(batch, results, strict=True):
                if isinstance(result, BaseException) and not isinstance(result, WorkflowError):
                    raise result
                rows.append(Row(id, result if isinstance(result, WorkflowError) else None))
        return Bulk(tuple(rows), more)

    async def _matching(self, actor: Actor, where: Filter) -> tuple[list[str], bool]:
        """The ids are gathered before anything is done, since what is done may change what matches."""
        part = Slice("CREATED", limit=MAX_BULK)
        page = await self._database.read(keyset.page, lists.INSTANCE_IDS, actor.project_id, where, part)
        return [row.id for row in page.rows], page.more


def check_debug(definition: Definition, debug: e.Debug) -> None:
    """Raise Invalid for breakpoints on unknown nodes, with unreadable expressions, or too many of them."""
    problems = []
    known = node_ids(definition)
    if len(debug.breakpoints) > MAX_BREAKPOINTS:
        problem = f"There are at most {MAX_BREAKPOINTS} breakpoints."
        problems.append(Problem("/breakpoints", ProblemCode.OUT_OF_RANGE, problem))
    for place, breakpoint in enumerate(debug.breakpoints[:MAX_BREAKPOINTS]):
        pointer = f"/breakpoints/{place}"
        if breakpoint.node_id not in known:
            problem = f"There is no node {shown(breakpoint.node_id)}.{did_you_mean(breakpoint.node_id, known)}"
            problems.append(Problem(f"{pointer}/nodeId", ProblemCode.UNKNOWN_NODE, problem))
        if breakpoint.when is not None:
            try:
                expressions.compiled(breakpoint.when)
            except ExpressionError as error:
                problems.append(Problem(f"{pointer}/when", ProblemCode.BAD_EXPRESSION, error.message))
    if problems:
        raise Invalid(problems, path=("input",))


def node_ids(definition: Definition) -> set[str]:
    """The ids of all nodes, those in the bodies of loops too."""
    found = {node.id for node in definition.nodes}
    for node in definition.nodes:
        if node.type == "core/loop":
            found.update(_inner(node.parameters))
    return found


def _inner(parameters: Mapping[str, Any]) -> Iterator[str]:
    body = parameters.get("body")
    for node in body.get("nodes", []) if isinstance(body, dict) else []:
        yield str(node.get("id"))
        if node.get("type") == "core/loop":
            yield from _inner(node.get("parameters") or {})


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def _wake(instance_id: str, status: store.Status) -> Wake:
    return Wake(instance_id, status.priority, status.fence, status.owner)


def _check_reason(reason: str | None) -> None:
    if reason is not None and len(reason) > MAX_REASON:
        problem = f"A reason has at most {MAX_REASON:,} characters."
        raise Invalid([Problem("/reason", ProblemCode.OUT_OF_RANGE, problem)], path=("input", "reason"))


def _check_json(name: str, value: Any) -> None:
    """Raise Invalid for what JSON has no word for, or the databases can't store."""
    found = Problems()
    check_values(value, found)
    if found:
        problems = [Problem(f"/{name}{problem.pointer}", problem.code, problem.message) for problem in found.sorted()]
        raise Invalid(problems, path=("input", name))


def _mismatches(name: str, schema: dict[str, Any], value: Any) -> list[Problem]:
    return [
        Problem(f"/{name}{mismatch.pointer}", ProblemCode.BAD_INPUT, f"The {name} doesn't fit: {mismatch.message}")
        for mismatch in jsonschemas.mismatches(jsonschemas.validator(schema), value)
    ]
