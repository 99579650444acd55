"""The processes that run nodes: what each can do, what it does now, and when it was last heard of.

All of it is on the database's clock, so that workers with clocks that differ agree on who is alive.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, case, cast, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB

from db.models import Worker
from db.store.dbclock import db_now, db_now_once
from db.store.keyset import Compare, Listing

#: A live worker is heard of this often.
HEARTBEAT_S = 5.0
#: A worker that was silent for three heartbeats is OFFLINE until it is heard of again.
OFFLINE_AFTER_S = 3 * HEARTBEAT_S
#: So long after it was last heard of, a worker's row is forgotten.
FORGET_AFTER_S = 86_400.0

State = Literal["ONLINE", "DRAINING", "OFFLINE"]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as it was at its last heartbeat. ``slots`` and ``running`` are counts by placement."""

    id: str
    host: str
    pid: int
    version: str
    labels: frozenset[str]
    gpus: int
    slots: dict[str, int]
    running: dict[str, int]
    instances: int
    state: State

    @property
    def draining(self) -> bool:
        """Whether it takes no new work."""
        return self.state == "DRAINING"

    def fits(self, labels: Collection[str], gpus: int = 0) -> bool:
        """Whether it takes new work that needs all these labels and that many GPUs."""
        return self.state == "ONLINE" and self.labels.issuperset(labels) and self.gpus >= gpus

    def free(self, placement: str | None = None) -> int:
        """Its free places, in one placement or in all; below zero if more wait than there are places."""
        places = self.slots if placement is None else {placement: self.slots.get(placement, 0)}
        return sum(most - self.running.get(each, 0) for each, most in places.items())


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a worker says of itself."""

    id: str
    host: str
    pid: int
    version: str
    labels: frozenset[str]
    gpus: int
    slots: dict[str, int]
    running: dict[str, int]
    instances: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """The answer to a heartbeat: whether the worker drains, by its own word or somebody's wish, and who is alive."""

    draining: bool
    live: tuple[WorkerInfo, ...]


_silent = or_(Worker.stopped_at.is_not(None), Worker.heartbeat_at < db_now_once(-OFFLINE_AFTER_S))
_state: ColumnElement[Any] = case((_silent, "OFFLINE"), (Worker.draining, "DRAINING"), else_="ONLINE").label("state")


def _label(dialect: str, compare: Compare) -> ColumnElement[bool]:
    """``label`` contains: one of the worker's labels is exactly this."""
    if dialect == "postgresql":
        return cast(Worker.labels, JSONB).bool_op("@>")(literal([compare.value], JSONB))
    each = func.json_each(Worker.labels).table_valued("value")
    return exists(select(1).select_from(each).where(each.c.value == compare.value))


#: Every worker that is not forgotten. ``now`` is the database's present instant.
WORKERS = Listing(
    columns=(
        Worker.id, Worker.host, Worker.pid, Worker.version, Worker.labels, Worker.gpus, Worker.slots, Worker.running,
        Worker.instances, Worker.started_at, Worker.heartbeat_at, Worker.stopped_at, _state, db_now().label("now"),
    ),
    fields={
        "id": Worker.id, "host": Worker.host, "version": Worker.version, "state": _state, "label": _label,
        "started_at": Worker.started_at,
    },
    orders={"STARTED": (Worker.started_at, Worker.id), "HOST": (Worker.host, Worker.id)},
    shared=True,
)  # fmt: skip


def beat(connection: Connection, worker: Heartbeat) -> Heard:
    """Note that the worker lives and what it does; its first heartbeat registers it.

    A wish that it drain stays until it stops: whoever restarts takes a new id.
    """
    now = {
        "version": worker.version,
        "labels": sorted(worker.labels),
        "gpus": worker.gpus,
        "slots": worker.slots,
        "running": worker.running,
        "instances": worker.instances,
        "heartbeat_at": db_now(),
        "stopped_at": None,
    }
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    first = {"id": worker.id, "host": worker.host[:255], "pid": worker.pid, "started_at": db_now()}
    row = dialect.insert(Worker).values(**first, **now, draining=worker.draining)
    either = Worker.draining if not worker.draining else True
    statement = row.on_conflict_do_update(index_elements=[Worker.id], set_=now | {"draining": either})
    draining = connection.execute(statement.returning(Worker.draining)).scalar_one()
    return Heard(bool(draining), live(connection))


def live(connection: Connection) -> tuple[WorkerInfo, ...]:
    """Every worker that was heard of within the last three heartbeats and has not stopped, by id."""
    query = select(
        Worker.id,
        Worker.host,
        Worker.pid,
        Worker.version,
        Worker.labels,
        Worker.gpus,
        Worker.slots,
        Worker.running,
        Worker.instances,
        _state,
    ).where(Worker.heartbeat_at >= db_now_once(-OFFLINE_AFTER_S), Worker.stopped_at.is_(None))
    return tuple(
        WorkerInfo(**(row._asdict() | {"labels": frozenset(row.labels)}))
        for row in connection.execute(query.order_by(Worker.id))
    )


def stop(connection: Connection, id: str) -> None:
    """The worker has stopped in order; it is OFFLINE from now on."""
    connection.execute(update(Worker).where(Worker.id == id).values(stopped_at=db_now(), running={}, instances=0))


def ask_to_drain(connection: Connection, id: str) -> State | None:
    """Have the worker take no new work, as its next heartbeat will tell it; its state before, None if there is none.

    Nothing is asked of one that is OFFLINE.
    """
    state: State | None = connection.execute(select(_state).where(Worker.id == id)).scalar_one_or_none()
    if state == "ONLINE":
        connection.execute(update(Worker).where(Worker.id == id).values(draining=True))
    return state


def forget(connection: Connection, most: int = 100) -> int:
    """Delete the rows of workers that were not heard of for a day, at most so many; how many were deleted."""
    gone = select(Worker.id).where(Worker.heartbeat_at < db_now_once(-FORGET_AFTER_S)).limit(most)
    # Materialised first: a DELETE that selects from its own table takes locks in any order.
    ids: Sequence[str] = connection.execute(gone.order_by(Worker.heartbeat_at)).scalars().all()
    if not ids:
        return 0
    still = Worker.heartbeat_at < db_now_once(-FORGET_AFTER_S)
    return connection.execute(delete(Worker).where(Worker.id.in_(ids), still)).rowcount
