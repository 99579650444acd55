"""The order of changes in a project: every change takes the next place, in the transaction that makes it."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from db.models import Project
from db.store import bulk
from flow.errors import NotFound

_TAKE = "UPDATE projects SET change_seq = change_seq + $1 WHERE id = $2 RETURNING change_seq"


def take(conn: Connection, project_id: str, n: int = 1) -> int:
    """Take the next ``n`` places in the project's order and return the first of them.

    The project's row stays locked until the commit, so a reader never sees place 8 before 7, and whatever is
    read after this call in the same transaction can't be changed by another writer of the project.
    Raises NotFound if there is no such project.
    """
    rows = bulk.execute(conn, _TAKE, (n, project_id))
    if not rows:
        raise NotFound("project", project_id)
    return int(rows[0][0]) - n + 1


def hold(conn: Connection, project_ids: Iterable[str]) -> None:
    """Lock the projects' rows until the commit: nobody else changes or starts anything in them meanwhile.

    In id order, so that two processes never wait for each other in a circle. SQLite's writer holds everything anyway.
    """
    if conn.dialect.name != "sqlite":
        wanted = Project.id.in_(sorted(set(project_ids)))
        conn.execute(select(Project.id).where(wanted).order_by(Project.id).with_for_update())


def newest(conn: Connection, project_id: str) -> int:
    """The last place that was given out. Raises NotFound if there is no such project."""
    last = conn.execute(select(Project.change_seq).where(Project.id == project_id)).scalar_one_or_none()
    if last is None:
        raise NotFound("project", project_id)
    return int(last)
