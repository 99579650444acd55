"""Servers and their health checks in SQL. Every look-up for people is scoped by project inside the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from db.models import Meta, Project, Server, ServerCheck
from db.store import tasks
from db.store.dbclock import db_now, db_now_once
from db.store.keyset import Listing, Record
from flow.servers import CHECKS_KEPT, CheckOutcome, Load, ServerStatus, checked

_S, _C = Server, ServerCheck

SERVERS = Listing(
    columns=(
        _S.id, _S.project_id, _S.name, _S.url, _S.type, _S.enabled, _S.batch_size, _S.status, _S.failures,
        _S.last_check_at, _S.latency_ms, _S.capabilities, _S.last_error, _S.sealed_token, _S.change_seq,
        _S.created_at, _S.created_by, _S.updated_at, _S.updated_by,
    ),
    fields={
        "id": _S.id, "name": _S.name, "url": _S.url, "type": _S.type, "status": _S.status, "enabled": _S.enabled,
        "batch_size": _S.batch_size, "created_at": _S.created_at,
    },
    orders={"CREATED": (_S.created_at, _S.id), "NAME": (_S.name, _S.id)},
    project=_S.project_id,
)  # fmt: skip

CHECKS = Listing(
    columns=(_C.id, _C.server_id, _C.at, _C.outcome, _C.latency_ms, _C.message, _C.status),
    fields={"outcome": _C.outcome},
    orders={"AT": (_C.at, _C.id)},
    parent=_C.server_id,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredServer:
    """A server's row."""

    id: str
    project_id: str
    name: str
    url: str
    type: str
    enabled: bool
    batch_size: int
    status: str
    failures: int
    last_check_at: datetime | None
    latency_ms: float | None
    capabilities: Any
    last_error: str | None
    sealed_token: str | None
    change_seq: int
    created_at: datetime
    created_by: str | None
    updated_at: datetime
    updated_by: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found; ``id`` is the new row's, ``at`` when it was asked."""

    id: str
    at: datetime
    outcome: CheckOutcome
    latency_ms: float | None
    capabilities: Any
    message: str | None


def insert_server(conn: Connection, server: StoredServer, due_in_s: float = 0.0) -> None:
    """Insert a server, due to be checked so soon; its name must be free in the project."""
    conn.execute(insert(Server).values(**_columns(server), due_at=db_now(due_in_s)))


def update_server(conn: Connection, /, project_id: str, id: str, *, due: bool = False, **values: Any) -> None:
    """Set some columns of a server; ``due``: check it at once."""
    if due:
        values["due_at"] = db_now()
    conn.execute(update(Server).where(Server.project_id == project_id, Server.id == id).values(**values))


def delete_server(conn: Connection, project_id: str, id: str) -> None:
    """Remove a server and its history."""
    conn.execute(delete(Server).where(Server.project_id == project_id, Server.id == id))


def server(conn: Connection, project_id: str, id: str, *, lock: bool = False) -> StoredServer | None:
    """The server of that id; with ``lock``, nobody else changes it until the commit."""
    query = _query().where(Server.project_id == project_id, Server.id == id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else StoredServer(**row._asdict())


def server_named(conn: Connection, project_id: str, name: str) -> StoredServer | None:
    """The server of that name."""
    row = conn.execute(_query().where(Server.project_id == project_id, Server.name == name)).one_or_none()
    return None if row is None else StoredServer(**row._asdict())


def servers(conn: Connection, project_id: str, ids: Sequence[str]) -> dict[str, Record]:
    """Those of the servers that exist in the project."""
    query = select(*SERVERS.columns).where(Server.project_id == project_id, Server.id.in_(ids))
    return {row.id: row for row in conn.execute(query)}


def online(conn: Connection, project_id: str) -> list[StoredServer]:
    """The project's servers that are enabled and ONLINE, in the order in which they were registered."""
    wanted = Server.project_id == project_id, Server.enabled, Server.status == ServerStatus.ONLINE.value
    query = _query().where(*wanted).order_by(Server.created_at, Server.id)
    return [StoredServer(**row._asdict()) for row in conn.execute(query)]


def count(conn: Connection, project_id: str) -> int:
    """How many servers the project has."""
    return len(conn.execute(select(Server.id).where(Server.project_id == project_id)).all())


def loads(conn: Connection, ids: Sequence[str]) -> dict[str, Load]:
    """What each of the servers works on, by the tasks' ledger."""
    running, current = tasks.running_by_server(conn, ids), tasks.current_by_server(conn, ids)
    return {id: Load(running.get(id, 0), current.get(id)) for id in ids}


# ---- the first start ------------------------------------------------------------------------------------------


def projects(conn: Connection) -> list[str]:
    """Every project's id."""
    return list(conn.execute(select(Project.id).order_by(Project.id)).scalars())


def once(conn: Connection, key: str, value: str) -> bool:
    """True the first time that anybody says this key on this database, in the transaction that commits it."""
    dialect: Any = postgresql if conn.dialect.name == "postgresql" else sqlite
    row = dialect.insert(Meta).values(key=key, value=value).on_conflict_do_nothing()
    return bool(conn.execute(row).rowcount)


# ---- health checks --------------------------------------------------------------------------------------------


def claim_due(conn: Connection, every_s: float, limit: int) -> list[StoredServer]:
    """Take the enabled servers whose check is due: nobody else is given them before ``every_s`` seconds are over."""
    due = (
        select(Server.id)
        .where(Server.enabled, Server.due_at <= db_now_once())
        .order_by(Server.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    ids = list(conn.execute(due).scalars())
    if not ids:
        return []
    conn.execute(update(Server).where(Server.id.in_(ids)).values(due_at=db_now(every_s)))
    return [StoredServer(**row._asdict()) for row in conn.execute(_query().where(Server.id.in_(ids)))]


def due_in(conn: Connection) -> float | None:
    """Seconds until the next check is due, below 0 if it is overdue; None if there is no enabled server."""
    query = select(Server.due_at, db_now().label("now")).where(Server.enabled).order_by(Server.due_at).limit(1)
    row = conn.execute(query).one_or_none()
    return None if row is None else float((row.due_at - row.now).total_seconds())


def record(conn: Connection, asked: StoredServer, found: Found) -> tuple[ServerStatus, ServerStatus] | None:
    """Keep what a check of ``asked`` found, and move the server by it: its status before and after.

    None, and nothing is kept, if the server is gone or stands elsewhere by now: what was found is another's.
    """
    row = server(conn, asked.project_id, asked.id, lock=True)
    if row is None or (row.url, row.type, row.sealed_token) != (asked.url, asked.type, asked.sealed_token):
        return None
    before = ServerStatus(row.status)
    after, failures = checked(before, row.failures, found.outcome)
    values: dict[str, Any] = {"status": after.value, "failures": failures, "last_check_at": found.at}
    values |= {"latency_ms": found.latency_ms, "last_error": found.message if found.outcome.failed else None}
    if found.capabilities is not None:
        values["capabilities"] = found.capabilities
    conn.execute(update(Server).where(Server.id == row.id).values(**values))
    conn.execute(
        insert(ServerCheck).values(
            id=found.id,
            server_id=row.id,
            at=found.at,
            outcome=found.outcome.value,
            latency_ms=found.latency_ms,
            message=found.message,
            status=after.value,
        )
    )
    old = (
        select(ServerCheck.id)
        .where(ServerCheck.server_id == row.id)
        .order_by(ServerCheck.at.desc(), ServerCheck.id.desc())
        .offset(CHECKS_KEPT)
    )
    stale = list(conn.execute(old.limit(1_000)).scalars())
    if stale:
        conn.execute(delete(ServerCheck).where(ServerCheck.id.in_(stale)))
    return before, after


_NAMES = tuple(StoredServer.__dataclass_fields__)


def _query() -> Any:
    return select(*(getattr(Server, name) for name in _NAMES))


def _columns(row: StoredServer) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _NAMES}
