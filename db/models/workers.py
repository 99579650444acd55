"""Many processes on one database: the workers, what they may take from each other, and what they must agree on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Instant, Json


class Meta(Base):
    """Something that every process on this database must agree on, by name."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Worker(Base):
    """A process that runs nodes, and when it was last heard of on the database's clock.

    ``slots`` and ``running`` are counts by placement; ``instances`` is how many it drives.
    """

    __tablename__ = "workers"
    __table_args__ = (Index(None, "heartbeat_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[str] = mapped_column(String(64))
    labels: Mapped[list[str]] = mapped_column(Json)
    gpus: Mapped[int] = mapped_column(Integer)
    slots: Mapped[dict[str, int]] = mapped_column(Json)
    running: Mapped[dict[str, int]] = mapped_column(Json)
    instances: Mapped[int] = mapped_column(Integer)
    draining: Mapped[bool] = mapped_column(Boolean)
    started_at: Mapped[datetime] = mapped_column(Instant)
    heartbeat_at: Mapped[datetime] = mapped_column(Instant)
    stopped_at: Mapped[datetime | None] = mapped_column(Instant)


class RemoteAttempt(Base):
    """A node's attempt that is offered to any worker with the labels and a free place in the lane.

    ``labels`` are sorted and joined by commas. Of those open, the one with the earliest ``ranked_at`` is the next.
    ``lease_until`` is an instant on the *database's* clock; ``fence`` grows with every claim, and only its holder may
    report. ``revoked``: its run does not want it any more.
    """

    __tablename__ = "remote_attempts"
    __table_args__ = (
        UniqueConstraint("instance_id", "path", "attempt"),
        Index(None, "lease_until", "labels"),
        Index(
            "ix_remote_attempts_open",
            "labels",
            "lane",
            "ranked_at",
            sqlite_where=text("lease_until IS NULL"),
            postgresql_where=text("lease_until IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(512))
    attempt: Mapped[int] = mapped_column(Integer)
    lane: Mapped[str] = mapped_column(String(16))
    labels: Mapped[str] = mapped_column(String(1024))
    gpus: Mapped[int] = mapped_column(Integer)
    priority: Mapped[int] = mapped_column(Integer)
    call: Mapped[Any] = mapped_column(Json, nullable=True)
    call_artifact: Mapped[Any] = mapped_column(Json, nullable=True)
    created_at: Mapped[datetime] = mapped_column(Instant)
    ranked_at: Mapped[datetime | None] = mapped_column(Instant)
    owner: Mapped[str | None] = mapped_column(String(64))
    fence: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[datetime | None] = mapped_column(Instant)
    revoked: Mapped[bool] = mapped_column(Boolean, default=False)
