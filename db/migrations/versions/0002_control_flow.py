"""Control flow: parents, forks, pauses, waits, concurrency and results that are used again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.base import Instant, Json

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns, indexes and one table."""
    op.add_column("projects", sa.Column("max_running", sa.Integer(), nullable=True))
    op.add_column("workflows", sa.Column("max_running", sa.Integer(), nullable=True))
    for column in (
        sa.Column("pause_reason", sa.String(length=16), nullable=True),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("parent_path", sa.Text(), nullable=True),
        sa.Column("ends_with_parent", sa.Boolean(), nullable=True),
        sa.Column("fork_of", sa.String(length=64), nullable=True),
        sa.Column("concurrency_key", sa.String(length=255), nullable=True),
        sa.Column("concurrency_limit", sa.Integer(), nullable=True),
        sa.Column("gate", sa.String(length=16), nullable=True),
    ):
        op.add_column("instances", column)
    # Whoever has not begun yet is due; from now on that is written with the instance.
    op.execute(
        "UPDATE instances SET due_at = created_at WHERE completed_at IS NULL AND lease_until IS NULL "
        "AND status = 'PENDING' AND due_at IS NULL"
    )
    lost = sa.text("lost_claims > 0")
    op.create_index("ix_instances_suspect", "instances", ["lost_claims"], sqlite_where=lost, postgresql_where=lost)
    op.create_index("ix_instances_parent_id", "instances", ["parent_id"])
    open_ = sa.text("completed_at IS NULL")
    op.create_index(
        "ix_instances_running",
        "instances",
        ["project_id", "workflow_id", "concurrency_key", "gate"],
        sqlite_where=open_,
        postgresql_where=open_,
    )
    gated = sa.text("gate IS NOT NULL")
    op.create_index("ix_instances_gate", "instances", ["project_id"], sqlite_where=gated, postgresql_where=gated)
    op.add_column("node_executions", sa.Column("awaited", Json(), nullable=True))
    op.add_column("node_executions", sa.Column("cached", sa.Boolean(), nullable=True))
    op.create_table(
        "node_results",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("output", Json(), nullable=True),
        sa.Column("artifact", Json(), nullable=True),
        sa.Column("instance_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_node_results_project_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_node_results"),
    )
    op.create_index("ix_node_results_expires_at", "node_results", ["expires_at"])
