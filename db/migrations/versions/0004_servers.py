"""Servers that execute work, and the results of their health checks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.base import Instant, Json

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "servers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("last_check_at", Instant(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("capabilities", Json(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("sealed_token", sa.Text(), nullable=True),
        sa.Column("change_seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=True),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("updated_by", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_servers_project_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_servers"),
        sa.UniqueConstraint("project_id", "name", name="uq_servers_project_id_name"),
    )
    op.create_index("ix_servers_project_id_created_at_id", "servers", ["project_id", "created_at", "id"])
    op.create_index("ix_servers_enabled_due_at", "servers", ["enabled", "due_at"])
    op.create_table(
        "server_checks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("server_id", sa.String(length=64), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name="fk_server_checks_server_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_server_checks"),
    )
    op.create_index("ix_server_checks_server_id_at_id", "server_checks", ["server_id", "at", "id"])
