"""What a database's error means to a caller, in words with a remedy and without SQL."""

from __future__ import annotations

import re

from sqlalchemy.exc import TimeoutError as PoolTimeout

from flow.errors import StorageUnavailable

#: PostgreSQL's SQLSTATEs for what is not the statement's fault: connection, password, no such database, deadlock and
#: serialization, resources (a full disk, too many connections), a lock or a statement that took too long, an operator
#: (shutdown), the system, a read-only server, no tables, a PgBouncer that mixes up prepared statements.
UNAVAILABLE_STATES = ("08", "26", "28", "3D", "40", "53", "55P03", "57", "58", "25006", "25P03", "42P01", "42P05")

_PGBOUNCER = (
    "A PgBouncer in transaction mode stands before the database and doesn't know prepared statements. Give it "
    "`max_prepared_statements = 500` (PgBouncer 1.21 or newer), or `pool_mode = session`. Nothing was stored."
)

#: States in which waiting doesn't help: somebody must change the settings or the server.
_HOPELESS = ("28", "3D", "42501")

_BY_STATE = {
    "28": "The database server refuses this user or its password. Check MIRRORFLOW_DATABASE_URL.",
    "3D": "The database server has no database of that name. Create it (`createdb`), or check MIRRORFLOW_DATABASE_URL.",
    "42501": "The database's user may not do that: give it all rights on the database of Mirrorflow.",
    "53300": "The database has no connection left: raise its max_connections, or lower MIRRORFLOW_DATABASE_POOL.",
    "53100": "The disk of the database server is full. Nothing was stored; free some space and try again.",
    "55P03": "Another program holds a lock in the database for too long. Nothing was stored; try again.",
    "57014": "The database took too long for a statement. Nothing was stored; try again.",
    "57P03": "The database server is starting or stopping. Nothing was stored; try again.",
    "25006": "The database server is read-only (a replica?). Name the primary in MIRRORFLOW_DATABASE_URL.",
    "42P01": "The database has no Mirrorflow tables. Run `mirrorflow db upgrade`.",
    "26": _PGBOUNCER,
    "42P05": _PGBOUNCER,
    "40": "The database undid the change because others got in its way. Nothing was stored; try again.",
}

_BY_WORDS = [
    (r"database is locked", "The database is locked by another program. Nothing was stored; try again."),
    (r"full|no space", "The disk is full. Nothing was stored; free some space and try again."),
    (r"disk i/o error", "The disk reports an error. Nothing was stored; check the disk and try again."),
    (
        r"not a database|malformed",
        "The database file is damaged or no SQLite database. Restore a backup or name another.",
    ),
    (r"unable to open", "The database file can't be opened. Check that its folder exists and may be written to."),
    (r"readonly|read-only", "The database file is read-only. Make it and its folder writable."),
    (r"no such table|does not exist", "The database has no Mirrorflow tables. Run `mirrorflow db upgrade`."),
    (r"name or service not known|name resolution|nodename", "The name of the database server is not known here."),
    (
        r"connect call failed|connection refused|no such file",
        "The database server can't be reached. Nothing was stored; try again.",
    ),
    (
        r"connect|refused|closed|terminat|shut",
        "The database server can't be reached, or the connection broke. If something was being stored, it is unknown "
        "whether it was: look, or try again (a start with the same idempotencyKey is safe).",
    ),
]


def state_of(error: BaseException) -> str:
    """PostgreSQL's SQLSTATE; empty for an error that has none."""
    return str(getattr(getattr(error, "orig", None) or error, "sqlstate", None) or "")


def hopeless(error: BaseException) -> bool:
    """True if the same will be said however often it is tried: a wrong password, no such database."""
    return state_of(error).startswith(_HOPELESS)


def unavailable(error: Exception) -> StorageUnavailable:
    """What went wrong, for whoever asked for something."""
    if isinstance(error, PoolTimeout):
        message = "All connections to the database are in use. Try again, or raise MIRRORFLOW_DATABASE_POOL."
        return StorageUnavailable(message)
    state = state_of(error)
    for length in (5, 2):
        if (remedy := _BY_STATE.get(state[:length])) is not None:
            return StorageUnavailable(remedy)
    said = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    for pattern, remedy in _BY_WORDS:
        if re.search(pattern, said, re.IGNORECASE):
            return StorageUnavailable(remedy)
    return StorageUnavailable(f"The database can't be used now ({said.splitlines()[0][:200]}). Try again.")
