"""What the executor reads of instances, and the inbox that everybody else writes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from db.models import EventRow, InboxItem, Instance
from flow import events as e


@dataclass(frozen=True, slots=True)
class Letter:
    """Something for an instance's holder: ``kind`` and its fields are an event's (``flow.events``)."""

    id: int
    event: e.AnyEvent


@dataclass(frozen=True, slots=True)
class Status:
    """Where an instance stands; ``owner`` and ``fence`` are known only to who has locked its row."""

    project_id: str
    status: str
    last_seq: int
    change_seq: int
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    owner: str | None = None
    fence: int = 0
    priority: int = 5


def status(connection: Connection, project_id: str, instance_id: str) -> Status | None:
    """Where the instance stands; None if the project has no such instance."""
    query = select(
        Instance.project_id,
        Instance.status,
        Instance.last_seq,
        Instance.change_seq,
        Instance.completed_at,
        Instance.cancel_requested_at,
    ).where(Instance.id == instance_id, Instance.project_id == project_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else Status(*row)


def events(connection: Connection, instance_id: str, after: int = 0, limit: int | None = None) -> list[e.Recorded]:
    """The instance's events with ``seq`` > ``after``, in order."""
    query = (
        select(EventRow.seq, EventRow.at, EventRow.data, EventRow.change_seq)
        .where(EventRow.instance_id == instance_id, EventRow.seq > after)
        .order_by(EventRow.seq)
        .limit(limit)
    )
    return [e.Recorded(seq, at, e.decode(data), change_seq) for seq, at, data, change_seq in connection.execute(query)]


def histories(connection: Connection, instance_ids: Sequence[str]) -> dict[str, list[e.Recorded]]:
    """All events of several instances, each in order."""
    found: dict[str, list[e.Recorded]] = {id: [] for id in instance_ids}
    query = (
        select(EventRow.instance_id, EventRow.seq, EventRow.at, EventRow.data, EventRow.change_seq)
        .where(EventRow.instance_id.in_(list(instance_ids)))
        .order_by(EventRow.instance_id, EventRow.seq)
    )
    for id, seq, at, data, change_seq in connection.execute(query):
        found[id].append(e.Recorded(seq, at, e.decode(data), change_seq))
    return found


def inbox(connection: Connection, instance_ids: Sequence[str]) -> dict[str, list[Letter]]:
    """What lies in the instances' inboxes, oldest first."""
    found: dict[str, list[Letter]] = {}
    query = (
        select(InboxItem.id, InboxItem.instance_id, InboxItem.data)
        .where(InboxItem.instance_id.in_(list(instance_ids)))
        .order_by(InboxItem.id)
    )
    for id, instance_id, data in connection.execute(query):
        found.setdefault(instance_id, []).append(Letter(id, _letter(data)))
    return found


def _letter(data: Any) -> e.AnyEvent:
    event: e.AnyEvent = msgspec.convert(data, e.AnyEvent)
    return event
