"""Keep offered attempts in the order in which they are taken.

To take the most urgent of many all of them were read and sorted: 36 ms of PostgreSQL's time with 10,000 of them, for
each node that a worker took. An offer made by a program of an earlier revision has no place in the order (NULL) and is
taken all the same.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db.base import Instant

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add a column and an index by it. Offers that are open now come by their age."""
    op.add_column("remote_attempts", sa.Column("ranked_at", Instant(), nullable=True))
    op.execute("UPDATE remote_attempts SET ranked_at = created_at")
    open_ = sa.text("lease_until IS NULL")
    op.create_index(
        "ix_remote_attempts_open",
        "remote_attempts",
        ["labels", "lane", "ranked_at"],
        sqlite_where=open_,
        postgresql_where=open_,
    )
