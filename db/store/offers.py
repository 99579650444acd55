"""Attempts that one worker offers and another makes, with a lease of their own.

Whoever claims one says what came of it by letters to its instance, in the transaction that removes the offer: so an
attempt has one outcome, whoever else believes to hold it. Rows of instances are locked before those of offers, both in
id order, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Table, case, delete, insert, literal, null, or_, select, tuple_, update

from db.models import Artifact, InboxItem, Instance, RemoteAttempt
from db.store import bulk
from db.store.admission import AGEING_S
from db.store.dbclock import db_now, db_now_once
from db.store.entries import ARTIFACT_COLUMNS, NewArtifact, Offer, Wake
from db.store.leases import rouse
from flow import events as e

_OFFERS: Table = RemoteAttempt.__table__  # type: ignore[assignment]
_ARTIFACTS: Table = Artifact.__table__  # type: ignore[assignment]
_NO_SYNC: dict[str, Any] = {"synchronize_session": False}

#: Offers whose lease ran out that are dealt with at once.
BATCH = 200
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Taken:
    """An offer that this worker holds now, under ``fence``."""

    id: str
    instance_id: str
    project_id: str
    path: str
    attempt: int
    lane: str
    gpus: int
    fence: int
    call: Any
    artifact: e.Artifact | None


@dataclass(frozen=True, slots=True)
class Report:
    """What the holder of an offer has to say to its instance, in this order; ``over``: nothing more follows."""

    id: str
    instance_id: str
    fence: int
    events: Sequence[e.NodeEvent]
    over: bool = False
    artifacts: Sequence[NewArtifact] = ()


def put(connection: Connection, instance_id: str, project_id: str, offers: Sequence[Offer]) -> None:
    """Store the offers, for anybody to take."""
    values = [
        {
            "id": offer.id,
            "instance_id": instance_id,
            "project_id": project_id,
            "path": offer.path,
            "attempt": offer.attempt,
            "lane": offer.lane,
            "labels": joined(offer.labels),
            "gpus": offer.gpus,
            "priority": offer.priority,
            "call": offer.call,
            "call_artifact": None if offer.artifact is None else msgspec.to_builtins(offer.artifact),
            "fence": 0,
            "revoked": False,
            "created_at": db_now(),
            "ranked_at": db_now(-AGEING_S * offer.priority),  # as ``db.store.admission.rank`` has it for instances
        }
        for offer in offers
    ]
    for start in range(0, len(values), 200):
        connection.execute(insert(_OFFERS).values(values[start : start + 200]))


def joined(labels: Iterable[str]) -> str:
    """Labels as they are stored."""
    return ",".join(sorted(set(labels)))


def claim(
    connection: Connection, worker: str, lease_s: float, labels: frozenset[str], room: Mapping[str, int], gpus: int
) -> list[Taken]:
    """Take offers that fit: as many per lane as ``room`` says, and not more graphics cards than there are.

    The runs of paused instances start nothing, so their offers stay.
    """
    free = {lane: places for lane, places in room.items() if places > 0}
    fitting: list[Row[Any]] = []
    for wanted, lane in _kinds(connection):
        if lane in free and set(wanted.split(",")) - {""} <= labels:
            fitting += connection.execute(
                select(RemoteAttempt.id, RemoteAttempt.lane, RemoteAttempt.gpus, RemoteAttempt.ranked_at)
                .join(Instance, Instance.id == RemoteAttempt.instance_id)
                .where(RemoteAttempt.lease_until.is_(None), RemoteAttempt.revoked.is_(False))
                .where(RemoteAttempt.labels == wanted, RemoteAttempt.lane == lane)
                .where(RemoteAttempt.gpus <= gpus, Instance.status != "PAUSED")
                .order_by(RemoteAttempt.ranked_at)
                .limit(free[lane] * (2 if gpus else 1))  # of those that want cards not all may have them
                .with_for_update(skip_locked=True, of=RemoteAttempt)
            )
    chosen: list[str] = []
    for offer in sorted(fitting, key=lambda offer: offer.ranked_at or _EVER):
        if free[offer.lane] > 0 and offer.gpus <= gpus:
            free[offer.lane] -= 1
            gpus -= offer.gpus
            chosen.append(offer.id)
    if not chosen:
        return []
    taken = (
        update(RemoteAttempt)
        .where(RemoteAttempt.id.in_(chosen))
        .values(owner=worker, fence=RemoteAttempt.fence + 1, lease_until=db_now(lease_s))
        .returning(
            RemoteAttempt.id,
            RemoteAttempt.instance_id,
            RemoteAttempt.project_id,
            RemoteAttempt.path,
            RemoteAttempt.attempt,
            RemoteAttempt.lane,
            RemoteAttempt.gpus,
            RemoteAttempt.fence,
            RemoteAttempt.call,
            RemoteAttempt.call_artifact,
        )
    )
    rows = connection.execute(taken, execution_options=_NO_SYNC)
    return [
        Taken(
            id=row.id,
            instance_id=row.instance_id,
            project_id=row.project_id,
            path=row.path,
            attempt=row.attempt,
            lane=row.lane,
            gpus=row.gpus,
            fence=row.fence,
            call=row.call,
            artifact=None if row.call_artifact is None else msgspec.convert(row.call_artifact, e.Artifact),
        )
        for row in rows
    ]


def _kinds(connection: Connection) -> Iterator[tuple[str, str]]:
    """Labels and lane of all that is open, each once: a step in the index for each, however many offers there are."""
    kind = tuple_(RemoteAttempt.labels, RemoteAttempt.lane)
    found = select(RemoteAttempt.labels, RemoteAttempt.lane).where(RemoteAttempt.lease_until.is_(None))
    found = found.order_by(RemoteAttempt.labels, RemoteAttempt.lane).limit(1)
    last = connection.execute(found).one_or_none()
    while last is not None:
        yield last.labels, last.lane
        last = connection.execute(found.where(kind > tuple_(last.labels, last.lane))).one_or_none()


def renew(connection: Connection, worker: str, fences: Mapping[str, int], lease_s: float) -> set[str]:
    """Extend the leases of these offers; the ids of those that are still held and wanted."""
    if not fences:
        return set()
    _lock(connection, fences)
    statement = (
        update(RemoteAttempt)
        .where(RemoteAttempt.id.in_(list(fences)), RemoteAttempt.owner == worker)
        .values(lease_until=db_now(lease_s))
        .returning(RemoteAttempt.id, RemoteAttempt.fence, RemoteAttempt.revoked)
    )
    rows = connection.execute(statement, execution_options=_NO_SYNC)
    return {id for id, fence, revoked in rows if fences[id] == fence and not revoked}


def report(connection: Connection, worker: str, reports: Sequence[Report]) -> list[Wake]:
    """Write what the holders of these offers have to say, and remove the offers that are over.

    Nothing is written for one that another worker holds by now. Gives whom to tell of it.
    """
    held = _instances(connection, {report.instance_id for report in reports})
    ids = [report.id for report in reports]
    _lock(connection, ids)
    query = select(RemoteAttempt.id, RemoteAttempt.fence, RemoteAttempt.owner).where(RemoteAttempt.id.in_(ids))
    fences = {id: fence for id, fence, owner in connection.execute(query) if owner == worker}
    letters: list[tuple[str, e.NodeEvent]] = []
    over: list[str] = []
    artifacts: list[tuple[Any, ...]] = []
    for said in reports:
        if fences.get(said.id) != said.fence:
            continue
        letters += [(said.instance_id, event) for event in said.events]
        if said.over:
            over.append(said.id)
        for new in said.artifacts:
            project_id, file = held[said.instance_id].project_id, new.artifact
            artifacts.append(
                (file.id, project_id, said.instance_id, file.sha256, file.size, file.media_type, new.created_at)
            )
    if artifacts:
        bulk.insert(connection, _ARTIFACTS, ARTIFACT_COLUMNS, artifacts, conflict=" ON CONFLICT (id) DO NOTHING")
    if over:
        connection.execute(delete(RemoteAttempt).where(RemoteAttempt.id.in_(over)), execution_options=_NO_SYNC)
    return _post(connection, letters, held)


def expire(connection: Connection) -> list[Wake]:
    """Tell the instances of attempts whose holder has not been heard of that they are lost; whom to wake for it."""
    gone = RemoteAttempt.lease_until <= db_now_once()
    query = select(RemoteAttempt.id, RemoteAttempt.instance_id).where(RemoteAttempt.lease_until.is_not(None), gone)
    found = connection.execute(query.limit(BATCH)).all()
    if not found:
        return []
    held = _instances(connection, {row.instance_id for row in found})
    ids = [row.id for row in found]
    _lock(connection, ids)
    statement = (
        delete(RemoteAttempt)
        .where(RemoteAttempt.id.in_(ids), gone)
        .returning(
            RemoteAttempt.instance_id,
            RemoteAttempt.path,
            RemoteAttempt.attempt,
            RemoteAttempt.owner,
            RemoteAttempt.revoked,
        )
    )
    letters: list[tuple[str, e.NodeEvent]] = []
    for instance_id, path, attempt, owner, revoked in connection.execute(statement, execution_options=_NO_SYNC):
        lost = e.NodeCanceled(path, attempt) if revoked else e.NodeLost(path, attempt, owner)
        letters += [(instance_id, e.NodeStarted(path, attempt, owner)), (instance_id, lost)]
    return _post(connection, letters, held)


def release(connection: Connection, worker: str, ids: Sequence[str]) -> None:
    """Give offers back that were taken but not begun. The lease of one that was revoked meanwhile has run out."""
    _lock(connection, ids)
    mine = RemoteAttempt.id.in_(list(ids)), RemoteAttempt.owner == worker
    wanted = RemoteAttempt.revoked.is_(False)
    values = {
        "owner": case((wanted, null()), else_=RemoteAttempt.owner),
        "lease_until": case((wanted, null()), else_=db_now()),
    }
    connection.execute(update(RemoteAttempt).where(*mine).values(**values), execution_options=_NO_SYNC)


def revoke(connection: Connection, instance_id: str, paths: Sequence[str]) -> list[Wake]:
    """Take back what the instance, whose row is locked, does not want any more; whom to tell of it.

    What nobody holds is gone at once, and a letter says so; a holder stops its work and says so itself.
    """
    mine = RemoteAttempt.instance_id == instance_id, RemoteAttempt.path.in_(list(paths))
    free = or_(RemoteAttempt.lease_until.is_(None), RemoteAttempt.lease_until <= db_now_once())
    gone = delete(RemoteAttempt).where(*mine, free).returning(RemoteAttempt.path, RemoteAttempt.attempt)
    letters: list[tuple[str, e.NodeEvent]] = [
        (instance_id, e.NodeCanceled(path, attempt))
        for path, attempt in connection.execute(gone, execution_options=_NO_SYNC)
    ]
    told = update(RemoteAttempt).where(*mine).values(revoked=True).returning(RemoteAttempt.id, RemoteAttempt.owner)
    wakes = [Wake(id, owner=owner) for id, owner in connection.execute(told, execution_options=_NO_SYNC)]
    return wakes + _post(connection, letters, _instances(connection, {instance_id}))


def waiting(connection: Connection) -> bool:
    """Whether anything is offered at all: one look into an index."""
    offered = select(literal(1)).where(RemoteAttempt.lease_until.is_(None)).limit(1)
    return connection.execute(offered).first() is not None


def expired(connection: Connection) -> bool:
    """Whether some holder has not been heard of for a whole lease."""
    gone = select(literal(1)).where(RemoteAttempt.lease_until <= db_now_once()).limit(1)
    return connection.execute(gone).first() is not None


def expire_all(connection: Connection) -> None:
    """End every lease now, as ``leases.expire_all``."""
    held = RemoteAttempt.lease_until.is_not(None)
    connection.execute(update(RemoteAttempt).where(held).values(lease_until=db_now()), execution_options=_NO_SYNC)


def _lock(connection: Connection, ids: Iterable[str]) -> None:
    if connection.dialect.name != "sqlite":
        wanted = RemoteAttempt.id.in_(list(ids))
        connection.execute(select(RemoteAttempt.id).where(wanted).order_by(RemoteAttempt.id).with_for_update())


@dataclass(frozen=True, slots=True)
class _Held:
    project_id: str
    owner: str | None
    fence: int
    priority: int
    open: bool


def _instances(connection: Connection, ids: Iterable[str]) -> dict[str, _Held]:
    query = (
        select(
            Instance.id, Instance.project_id, Instance.owner, Instance.fence, Instance.priority, Instance.completed_at
        )
        .where(Instance.id.in_(list(ids)))
        .order_by(Instance.id)
        .with_for_update(key_share=True)
    )
    return {
        row.id: _Held(row.project_id, row.owner, row.fence, row.priority, row.completed_at is None)
        for row in connection.execute(query)
    }


def _post(connection: Connection, letters: Sequence[tuple[str, e.NodeEvent]], held: Mapping[str, _Held]) -> list[Wake]:
    """Put letters into the inboxes of those that have not ended."""
    wanted = [(id, event) for id, event in letters if id in held and held[id].open]
    if not wanted:
        return []
    values = [{"instance_id": id, "data": msgspec.to_builtins(event), "created_at": db_now()} for id, event in wanted]
    for start in range(0, len(values), 200):
        connection.execute(insert(InboxItem).values(values[start : start + 200]))
    ids = sorted({id for id, _ in wanted})
    rouse(connection, ids)
    return [Wake(id, held[id].priority, held[id].fence, held[id].owner) for id in ids]
