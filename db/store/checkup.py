"""What ``mirrorflow doctor`` asks a PostgreSQL about itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from db.store.dbclock import db_now


@dataclass(frozen=True, slots=True)
class Server:
    """``now`` is its own instant; ``used`` of ``most`` connections are taken."""

    version: str
    now: datetime
    used: int
    most: int


def server(connection: Connection) -> Server:
    """The server behind the connection."""
    version, now, used = connection.execute(
        select(
            func.current_setting("server_version"),
            db_now(),
            select(func.count()).select_from(text("pg_stat_activity")).where(text("backend_type = 'client backend'"))
            .scalar_subquery(),
        )
    ).one()  # fmt: skip
    most = connection.execute(select(func.current_setting("max_connections"))).scalar_one()
    return Server(version.split()[0], now, used, int(most))
