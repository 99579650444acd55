"""Who holds which instance, and which instances nobody holds who should.

A lease is measured on the database's clock alone. A claim adds one to the fence; only who knows the newest fence can
append, so a worker that slept past its lease can write nothing, however long it believes to hold it.

An instance whose holders died twice without any progress is a *suspect*: perhaps it kills them. Suspects are left out
of ordinary claims and taken one at a time, so that the next death tells whose fault it was, and nobody is blamed for
having been there. Who dies on a suspect may have been killed by somebody else again: so a suspect rests before each
further trial, longer each time, and only one that outlasts a storm of kills is taken for the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, union_all, update

from db.models import InboxItem, Instance
from db.store.admission import rank
from db.store.dbclock import db_now, db_now_once


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease that was just taken. ``lost_claims``: workers that died holding this instance without any progress."""

    instance_id: str
    project_id: str
    version_id: str
    fence: int
    priority: int
    lost_claims: int


@dataclass(frozen=True, slots=True)
class Due:
    """An instance that nobody holds and that has something to do."""

    instance_id: str
    priority: int
    created_at: datetime


#: Deaths without progress after which an instance is a suspect.
SUSPECT = 2
#: Deaths without progress after which it is given up: the last three came while it was the one suspect, each after a
#: longer rest.
POISON = 5

_died = and_(Instance.owner.is_not(None), Instance.lease_until.is_not(None))
_deaths = Instance.lost_claims + case((_died, 1), else_=0)


def claim(
    connection: Connection, worker: str, instance_ids: Sequence[str], lease_s: float, *, suspects: bool = False
) -> list[Claim]:
    """Take the leases that are free; there is no Claim for one that is taken, has ended, waits at a gate, or is a
    suspect's.

    ``suspects``: take only suspects instead.
    """
    if not instance_ids:
        return []
    _lock(connection, instance_ids)
    statement = (
        update(Instance)
        .where(
            Instance.id.in_(list(instance_ids)),
            Instance.completed_at.is_(None),
            Instance.gate.is_(None),
            _free(),
            _deaths >= SUSPECT if suspects else _deaths < SUSPECT,
        )
        .values(
            owner=worker,
            fence=Instance.fence + 1,
            lease_until=db_now(lease_s),
            due_at=None,
            lost_claims=_deaths,
        )
        .returning(
            Instance.id,
            Instance.project_id,
            Instance.version_id,
            Instance.fence,
            Instance.priority,
            Instance.lost_claims,
        )
    )
    rows = connection.execute(statement, execution_options={"synchronize_session": False})
    return [Claim(*row) for row in rows]


def claim_failed(connection: Connection, worker: str, instance_id: str, lease_s: float) -> Claim | None:
    """Take an instance that has FAILED, to let it go on; None if it hasn't, or somebody else is about to."""
    statement = (
        update(Instance)
        .where(Instance.id == instance_id, Instance.status == "FAILED", _free())
        .values(owner=worker, fence=Instance.fence + 1, lease_until=db_now(lease_s), lost_claims=0)
        .returning(Instance.id, Instance.project_id, Instance.version_id, Instance.fence, Instance.priority)
    )
    row = connection.execute(statement, execution_options={"synchronize_session": False}).one_or_none()
    return None if row is None else Claim(*row, lost_claims=0)


def with_letters(connection: Connection, worker: str) -> list[str]:
    """The instances held by this worker that have something in their inbox."""
    query = select(InboxItem.instance_id).where(
        InboxItem.instance_id.in_(select(Instance.id).where(Instance.owner == worker, Instance.completed_at.is_(None)))
    )
    return list(connection.execute(query.distinct()).scalars())


def renew(connection: Connection, worker: str, fences: dict[str, int], lease_s: float) -> set[str]:
    """Extend the leases that are still held; the ids of those that are."""
    if not fences:
        return set()
    _lock(connection, fences)
    statement = (
        update(Instance)
        .where(Instance.id.in_(list(fences)), Instance.owner == worker)
        .values(lease_until=db_now(lease_s))
        .returning(Instance.id, Instance.fence)
    )
    rows = connection.execute(statement, execution_options={"synchronize_session": False})
    return {id for id, fence in rows if fences[id] == fence}


def release(connection: Connection, worker: str, instance_ids: Sequence[str]) -> None:
    """Give leases back without an append, for others to claim at once: they are due."""
    connection.execute(
        update(Instance)
        .where(Instance.id.in_(list(instance_ids)), Instance.owner == worker)
        .values(owner=None, lease_until=None, due_at=db_now()),
        execution_options={"synchronize_session": False},
    )


def expire_all(connection: Connection) -> int:
    """End every lease now. Only for a process that knows itself to be the only one on this database, at its start."""
    result = connection.execute(
        # Only open ones have a lease; to say so spares looking through all the others.
        update(Instance)
        .where(Instance.completed_at.is_(None), Instance.lease_until > db_now_once())
        .values(lease_until=db_now()),
        execution_options={"synchronize_session": False},
    )
    return result.rowcount


def rouse(connection: Connection, instance_ids: Sequence[str]) -> None:
    """Make the instances due, if nobody holds them: whoever forgets to wake them, the sweep does not."""
    unheld = update(Instance).where(
        Instance.id.in_(instance_ids), Instance.lease_until.is_(None), Instance.completed_at.is_(None)
    )
    connection.execute(unheld.values(due_at=db_now()), execution_options={"synchronize_session": False})


def due(connection: Connection, limit: int) -> list[Due]:
    """Instances to be woken: their lease ran out, or their time has come; the best rank first.

    Those that only wait cost nothing here, however many they are: the index holds them at its other end.
    """
    free = and_(Instance.completed_at.is_(None), Instance.gate.is_(None), _deaths < SUSPECT)
    columns = (Instance.id, Instance.priority, Instance.created_at, rank().label("rank"))
    # Two ranges of one index: as one condition, SQLite would go through all who wait.
    due = union_all(
        select(*columns).where(free, Instance.lease_until.is_not(None), Instance.lease_until <= db_now_once()),
        select(*columns).where(free, Instance.lease_until.is_(None), Instance.due_at <= db_now_once()),
    ).subquery()
    query = select(due.c.id, due.c.priority, due.c.created_at).order_by(due.c.rank, due.c.id).limit(limit)
    return [Due(*row) for row in connection.execute(query)]


def next_suspect(connection: Connection, lease_s: float) -> str | None:
    """The suspect to try next: the one with the fewest deaths, so that the likeliest culprit comes last.

    The first trial comes at once, the second after as long as a lease lasts, the third after four times as long.
    """
    rested = case(
        (_deaths == SUSPECT + 1, db_now(-lease_s)), (_deaths == SUSPECT + 2, db_now(-4 * lease_s)), else_=db_now()
    )
    query = (
        select(Instance.id)
        .where(Instance.completed_at.is_(None), Instance.lost_claims > 0, _free(), _deaths >= SUSPECT)
        .where(or_(Instance.due_at.is_(None), Instance.due_at <= db_now_once()))
        .where(or_(Instance.lease_until.is_(None), Instance.lease_until <= rested))
        .order_by(_deaths, Instance.created_at)
        .limit(1)
    )
    return connection.execute(query).scalar()


def next_due(connection: Connection) -> datetime | None:
    """The earliest instant at which an instance that nobody holds wants to be woken."""
    query = select(func.min(Instance.due_at)).where(
        Instance.completed_at.is_(None),
        Instance.gate.is_(None),
        Instance.lease_until.is_(None),
        Instance.due_at.is_not(None),
    )
    return connection.execute(query).scalar()


def _lock(connection: Connection, instance_ids: Iterable[str]) -> None:
    """Lock the rows in id order, as the journal does: an UPDATE takes them in any order, and may meet it head-on."""
    if connection.dialect.name != "sqlite":
        wanted = Instance.id.in_(list(instance_ids))
        connection.execute(select(Instance.id).where(wanted).order_by(Instance.id).with_for_update())


def _free() -> ColumnElement[bool]:
    return or_(Instance.lease_until.is_(None), Instance.lease_until <= db_now_once())
