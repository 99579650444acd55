"""Servers that execute work, and what their health checks found."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, Instant, Json


class Server(Base):
    """A registered place that executes work. How many of its slots are taken is not here: the tasks' ledger says.

    ``failures`` is how many checks failed in a row. ``due_at``, on the *database's* clock, is when it is checked next.
    ``sealed_token`` is what the server wants to be told, encrypted for this row alone.
    """

    __tablename__ = "servers"
    __table_args__ = (
        UniqueConstraint("project_id", "name"),
        Index(None, "project_id", "created_at", "id"),
        Index(None, "enabled", "due_at"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(String(2048))
    type: Mapped[str] = mapped_column(String(16))
    enabled: Mapped[bool] = mapped_column(Boolean)
    batch_size: Mapped[int] = mapped_column(Integer)
    status: Mapped[str] = mapped_column(String(16))
    failures: Mapped[int] = mapped_column(Integer)
    due_at: Mapped[datetime] = mapped_column(Instant)
    last_check_at: Mapped[datetime | None] = mapped_column(Instant)
    latency_ms: Mapped[float | None] = mapped_column(Float)
    capabilities: Mapped[Any] = mapped_column(Json, nullable=True)
    last_error: Mapped[str | None] = mapped_column(Text)
    sealed_token: Mapped[str | None] = mapped_column(Text)
    change_seq: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Instant)
    created_by: Mapped[str | None] = mapped_column(String(64))
    updated_at: Mapped[datetime] = mapped_column(Instant)
    updated_by: Mapped[str | None] = mapped_column(String(64))


class ServerCheck(Base):
    """What one health check found, and the server's status after it."""

    __tablename__ = "server_checks"
    __table_args__ = (Index(None, "server_id", "at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    server_id: Mapped[str] = mapped_column(ForeignKey("servers.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(Instant)
    outcome: Mapped[str] = mapped_column(String(16))
    latency_ms: Mapped[float | None] = mapped_column(Float)
    message: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
