"""Runs: the instances, their events (the truth), and the projections and queues around them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Instant, Json, JsonText


class Instance(Base):
    """One run: a projection of its events, and the lease on it.

    ``fence`` grows by one with every claim; only its holder may append. ``lease_until`` is an instant on the
    *database's* clock. ``due_at`` is when an unheld instance wants to be woken (a retry, a deadline). ``gate`` is set
    while a limit (``db.store.admission``) keeps the run from starting, and says which; nobody claims it then.
    """

    __tablename__ = "instances"
    __table_args__ = (
        Index(None, "project_id", "change_seq"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "workflow_id", "created_at", "id"),
        Index(
            "uq_instances_idempotency_key",
            "project_id",
            "idempotency_key",
            unique=True,
            sqlite_where=text("idempotency_key IS NOT NULL"),
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index(
            "ix_instances_open",
            "lease_until",
            "due_at",
            sqlite_where=text("completed_at IS NULL"),
            postgresql_where=text("completed_at IS NULL"),
        ),
        Index(None, "parent_id"),
        Index(
            "ix_instances_suspect",
            "lost_claims",
            sqlite_where=text("lost_claims > 0"),
            postgresql_where=text("lost_claims > 0"),
        ),
        Index(
            "ix_instances_running",
            "project_id",
            "workflow_id",
            "concurrency_key",
            "gate",
            sqlite_where=text("completed_at IS NULL"),
            postgresql_where=text("completed_at IS NULL"),
        ),
        Index(
            "ix_instances_gate",
            "project_id",
            sqlite_where=text("gate IS NOT NULL"),
            postgresql_where=text("gate IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    workflow_id: Mapped[str] = mapped_column(ForeignKey("workflows.id", ondelete="CASCADE"))
    version_id: Mapped[str] = mapped_column(ForeignKey("workflow_versions.id", ondelete="CASCADE"), index=True)
    status: Mapped[str] = mapped_column(String(16))
    trigger_type: Mapped[str] = mapped_column(String(32))
    input: Mapped[Any] = mapped_column(Json, nullable=True)
    output: Mapped[Any] = mapped_column(Json, nullable=True)
    output_artifact: Mapped[Any] = mapped_column(Json, nullable=True)
    error: Mapped[Any] = mapped_column(Json, nullable=True)
    labels: Mapped[dict[str, str] | None] = mapped_column(Json)
    priority: Mapped[int] = mapped_column(Integer)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(Instant)
    created_by: Mapped[str | None] = mapped_column(String(64))
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    completed_at: Mapped[datetime | None] = mapped_column(Instant)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(Instant)
    last_seq: Mapped[int] = mapped_column(Integer)
    change_seq: Mapped[int] = mapped_column(BigInteger)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(Instant)
    due_at: Mapped[datetime | None] = mapped_column(Instant)
    lost_claims: Mapped[int] = mapped_column(Integer, default=0)
    pause_reason: Mapped[str | None] = mapped_column(String(16))
    parent_id: Mapped[str | None] = mapped_column(String(64))
    parent_path: Mapped[str | None] = mapped_column(Text)
    ends_with_parent: Mapped[bool | None] = mapped_column(Boolean)
    fork_of: Mapped[str | None] = mapped_column(String(64))
    concurrency_key: Mapped[str | None] = mapped_column(String(255))
    concurrency_limit: Mapped[int | None] = mapped_column(Integer)
    gate: Mapped[str | None] = mapped_column(String(16))


class EventRow(Base):
    """One event of an instance, as ``flow.events.encode`` wrote it; ``path`` is None for the instance's own."""

    __tablename__ = "events"
    __table_args__ = {"sqlite_with_rowid": False}

    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    change_seq: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str] = mapped_column(String(32))
    path: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Instant)
    data: Mapped[str] = mapped_column(JsonText)


class NodeExecution(Base):
    """What became of one node in one run (in a loop: in one iteration); exists from the node's first event on."""

    __tablename__ = "node_executions"
    __table_args__ = {"sqlite_with_rowid": False}

    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer)
    node_id: Mapped[str] = mapped_column(String(255))
    node_type: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16))
    skip_reason: Mapped[str | None] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    completed_at: Mapped[datetime | None] = mapped_column(Instant)
    due_at: Mapped[datetime | None] = mapped_column(Instant)
    started_seq: Mapped[int] = mapped_column(Integer)
    output: Mapped[Any] = mapped_column(Json, nullable=True)
    output_artifact: Mapped[Any] = mapped_column(Json, nullable=True)
    error: Mapped[Any] = mapped_column(Json, nullable=True)
    progress: Mapped[Any] = mapped_column(Json, nullable=True)
    usage: Mapped[Any] = mapped_column(Json, nullable=True)
    worker: Mapped[str | None] = mapped_column(String(64))
    last_seq: Mapped[int] = mapped_column(Integer)
    awaited: Mapped[Any] = mapped_column(Json, nullable=True)
    cached: Mapped[bool | None] = mapped_column(Boolean)


class NodeResult(Base):
    """What a node gave once, to be used again by equal nodes of the same project until it expires.

    ``key`` is the SHA-256 of everything that the output depends on (``engine.cache``).
    """

    __tablename__ = "node_results"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    output: Mapped[Any] = mapped_column(Json, nullable=True)
    artifact: Mapped[Any] = mapped_column(Json, nullable=True)
    instance_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(Instant)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class InboxItem(Base):
    """Something for an instance's holder from anybody else: a cancel request, a signal, an answer."""

    __tablename__ = "inbox"
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), index=True)
    data: Mapped[Any] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Instant)


class Artifact(Base):
    """A value too large for an event: the file is under the data folder by its SHA-256, this row says whose it is."""

    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    instance_id: Mapped[str | None] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(Instant)
