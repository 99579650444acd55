"""What Alembic runs: the migrations, on the connection and in the transaction that ``db.migrate`` gave."""

from __future__ import annotations

from typing import Any

from alembic import context

from db.models import Base


def _note(_context: Any = None, step: Any = None, *_: Any, **__: Any) -> None:
    applied.append(step.up_revision_id)


applied: list[str] = context.config.attributes["applied"]

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
    compare_type=True,
    on_version_apply=_note,
)
with context.begin_transaction():
    context.run_migrations()
