"""The processes that run nodes, as everybody may see them, and how one is asked to stop taking work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated

import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset
from db.store.workers import WORKERS
from engine.access import Permission
from engine.nodes.contract import Placement
from flow import errors
from graph.objects import choice
from graph.paging import (
    After,
    Before,
    Connection,
    DateTimeFilter,
    First,
    IdFilter,
    Last,
    StringFilter,
    connection,
    part,
    refuse,
    where,
)
from graph.permissions import Info, caller, mutation, query, subscription
from graph.results import Conflict, NotFound, PermissionDenied

filter_of = where

#: How many workers one subscription can follow by id.
MOST_IDS = 100
#: How many workers are looked at for a subscription.
MOST_WORKERS = 1_000


@strawberry.enum(description="Whether a worker takes work.")
class WorkerState(Enum):
    """By its heartbeats."""

    ONLINE = choice("ONLINE", "It takes work.")
    DRAINING = choice("DRAINING", "It finishes what it has and takes no new work.")
    OFFLINE = choice("OFFLINE", "It has stopped, or missed three heartbeats; others take over what it had.")


@strawberry.type(description="How many nodes a worker runs at once in one kind of place.")
class WorkerSlots:
    """One entry of the counts."""

    placement: Placement = field(description="What kind of place.")
    total: int = field(description="How many nodes run there at once.")
    running: int = field(description="How many run there now.")


@strawberry.type(description="A process that runs nodes. A server without workers of its own is one too.")
class Worker:
    """A row of ``workers``."""

    id: strawberry.ID = field(description="Its id, new at each start; `NodeExecution.worker` names it.")
    host: str = field(description="The name of its machine.")
    pid: int = field(description="Its process id there.")
    version: str = field(description="Its version of the program; all workers should have the same.")
    labels: list[str] = field(description="What it offers, such as gpu or eu; nodes ask for it in `runsOn`.")
    gpus: int = field(description="How many GPUs it has.")
    slots: list[WorkerSlots] = field(description="Its places for nodes, by kind.")
    running: int = field(description="How many nodes it ran at its last heartbeat.")
    instances: int = field(description="How many instances it drove at its last heartbeat.")
    state: WorkerState = field(description="Whether it takes work.")
    started_at: datetime = field(description="When it started.")
    heartbeat_at: datetime = field(description="When it was last heard of: every 5 seconds while it is well.")
    stopped_at: datetime | None = field(description="When it stopped in order, if it did.")
    uptime: timedelta = field(description="How long it has been there, or was until it was last heard of.")
    viewer_can_drain: bool = field(description="True when you may drain it now.")


def worker(row: keyset.Record, admin: bool) -> Worker:
    """The row as the schema shows it."""
    state = WorkerState(row.state)
    end = row.now if state is not WorkerState.OFFLINE else row.stopped_at or row.heartbeat_at
    known = [each for each in Placement if each in row.slots]
    return Worker(
        id=strawberry.ID(row.id),
        host=row.host,
        pid=row.pid,
        version=row.version,
        labels=sorted(row.labels),
        gpus=row.gpus,
        slots=[WorkerSlots(placement=each, total=row.slots[each], running=row.running.get(each, 0)) for each in known],
        running=sum(row.running.values()),
        instances=row.instances,
        state=state,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        stopped_at=row.stopped_at,
        uptime=max(timedelta(0), end - row.started_at),
        viewer_can_drain=admin and state is WorkerState.ONLINE,
    )


# ---- lists ----------------------------------------------------------------------------------------------------


@strawberry.input(description="Compares a worker's state.")
class WorkerStateFilter:
    """``eq`` or ``in``."""

    eq: WorkerState | None = field(default=UNSET, description="Is exactly this.")
    in_: list[WorkerState] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Looks among a worker's labels.")
class WorkerLabelFilter:
    """``contains``."""

    contains: str | None = field(default=UNSET, description="One of the labels is exactly this.")


@strawberry.input(description="Which workers. Everything that is given must hold.")
class WorkerWhere:
    """See ``db.store.workers.WORKERS``."""

    id: IdFilter | None = field(default=None, description="By id.")
    host: StringFilter | None = field(default=None, description="By machine.")
    version: StringFilter | None = field(default=None, description="By version.")
    state: WorkerStateFilter | None = field(default=None, description="By state.")
    label: WorkerLabelFilter | None = field(default=None, description="By a label.")
    started_at: DateTimeFilter | None = field(default=None, description="By when they started.")
    and_: list[WorkerWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[WorkerWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: WorkerWhere | None = field(default=None, name="not", description="This does not hold.")


@strawberry.enum(description="The order of a list of workers.")
class WorkerOrder(Enum):
    """Order and direction."""

    STARTED_DESC = choice("STARTED_DESC", "The newest first.")
    STARTED_ASC = choice("STARTED_ASC", "The oldest first.")
    HOST_ASC = choice("HOST_ASC", "By machine.")
    HOST_DESC = choice("HOST_DESC", "By machine, backwards.")


@strawberry.type
class WorkerQuery:
    """Workers by id and as a list."""

    @query(Permission.WORKER_READ, "One worker by its id; null if none is known by it.")
    async def worker(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The worker's id.")]
    ) -> Worker | None:
        """One row."""
        rows = await _rows(info, keyset.Compare("id", "eq", id), 1)
        return worker(rows[0], _admin(info)) if rows else None

    @query(
        Permission.WORKER_READ,
        "The workers of this installation, those that were heard of within the last day; the newest first unless you "
        "say otherwise.",
    )
    async def workers(
        self,
        info: Info,
        where: Annotated[WorkerWhere | None, argument(name="where", description="Only those that match.")] = None,
        order_by: Annotated[WorkerOrder, argument(description="In which order.")] = WorkerOrder.STARTED_DESC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Worker]:
        """One page."""
        order, _, direction = order_by.value.partition("_")
        asked = part(WORKERS, order, direction == "DESC", first, after, last, before)
        wanted, admin = filter_of(where), _admin(info)
        project, db = caller(info).project_id, info.context.engine.database
        page = await db.read(keyset.page, WORKERS, project, wanted, asked)
        return connection(
            WORKERS,
            asked,
            page,
            lambda row: worker(row, admin),
            lambda: db.read(keyset.count, WORKERS, project, wanted),
        )


# ---- draining -------------------------------------------------------------------------------------------------


@strawberry.input(description="Which worker is to take no more work.")
class WorkerDrainInput:
    """See ``engine.workers``."""

    id: strawberry.ID = field(description="The worker's id.")


@strawberry.type(
    description="The worker was asked; within a few seconds it takes no new work. A process that only works then ends "
    "when it is idle."
)
class WorkerDrainPayload:
    """Who drains."""

    worker: Worker = field(description="The worker.")


WorkerDrainResult = Annotated[
    WorkerDrainPayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkerDrainResult", description="A worker that drains, or why it does not."),
]


@strawberry.type
class WorkerMutation:
    """Draining."""

    @mutation(
        Permission.WORKER_ADMIN,
        "Have a worker take no new work: it finishes what it has, or leaves it to others. A process that only works "
        "then ends; a server goes on without its worker. Twice is once.",
    )
    async def worker_drain(
        self, info: Info, input: Annotated[WorkerDrainInput, argument(description="Which one.")]
    ) -> WorkerDrainResult:
        """Asks the worker."""
        await info.context.engine.workers.ask_to_drain(caller(info), input.id)
        rows = await _rows(info, keyset.Compare("id", "eq", input.id), 1)
        if not rows:
            raise errors.NotFound("worker", input.id, path=("input", "id"))
        return WorkerDrainPayload(worker=worker(rows[0], _admin(info)))


# ---- watching -------------------------------------------------------------------------------------------------


@strawberry.type
class WorkerSubscription:
    """Workers, live."""

    @subscription(
        Permission.WORKER_READ,
        "Each worker now, and again whenever it changed: when it starts, becomes busy or idle, drains, stops or falls "
        "silent, and its figures with each heartbeat. A heartbeat that says nothing new is none.",
    )
    async def worker_updated(
        self,
        info: Info,
        ids: Annotated[
            list[strawberry.ID] | None, argument(description="Only these workers: 100 at most; null: all.")
        ] = None,
    ) -> AsyncIterator[Worker]:
        """Reads the registry when somebody says that it changed, and compares."""
        if ids is not None and len(ids) > MOST_IDS:
            raise refuse("BAD_PAGE", f"`ids` can hold {MOST_IDS} ids at most, not {len(ids)}.", "ids")
        wanted = keyset.EVERY if ids is None else keyset.Compare("id", "in", tuple(ids))
        admin = _admin(info)
        seen: dict[str, object] = {}
        async with aclosing(info.context.engine.workers.changes(caller(info))) as changes:
            async for _ in changes:
                before, seen = seen, {}
                rows = await _rows(info, wanted, MOST_WORKERS)
                if not before and (unknown := set(ids or ()) - {row.id for row in rows}):
                    raise errors.NotFound("worker", min(unknown), path=("ids",))
                for row in rows:
                    seen[row.id] = now = _without_clocks(row)
                    if now != before.get(row.id):
                        yield worker(row, admin)


def _without_clocks(row: keyset.Record) -> object:
    return [value for name, value in row._mapping.items() if name not in {"heartbeat_at", "now"}]


async def _rows(info: Info, wanted: keyset.Filter, most: int) -> keyset.Rows:
    asked = keyset.Slice("STARTED", descending=True, limit=most)
    page = await info.context.engine.database.read(keyset.page, WORKERS, caller(info).project_id, wanted, asked)
    return page.rows


def _admin(info: Info) -> bool:
    return caller(info).may(Permission.WORKER_ADMIN)
