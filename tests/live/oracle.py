"""What must hold of the database after every fault, in SQL.

``hold(url)`` asserts it once nobody works any more. On PostgreSQL ``guard(url)`` puts triggers beforehand, which note
every forbidden step at the moment it is taken: what a look at the end can't see (a fence that went back, an event that
was changed, an end that was undone).
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, text

from db.session import connect

ENDS = "('instance.completed', 'instance.failed', 'instance.canceled', 'instance.timed_out')"

#: What is wrong, and who shows it. Each query gives no row where all is well.
NOTHING = {
    "leases that are held": "SELECT id FROM instances WHERE owner IS NOT NULL AND completed_at IS NOT NULL",
    "offers to other workers that are left": "SELECT id, instance_id, path, owner FROM remote_attempts",
    "gates in front of ended runs": "SELECT id FROM instances WHERE gate IS NOT NULL AND completed_at IS NOT NULL",
    "letters that nobody read": "SELECT l.id, l.instance_id FROM inbox l "
    "JOIN instances i ON i.id = l.instance_id WHERE i.completed_at IS NOT NULL",
    "gaps in a history": "SELECT instance_id FROM events GROUP BY instance_id "
    "HAVING max(seq) != count(*) OR min(seq) != 1",
    "nodes committed twice": "SELECT instance_id, path FROM events WHERE type = 'node.completed' "
    "AND instance_id NOT IN (SELECT instance_id FROM events WHERE type = 'instance.reopened') "
    "GROUP BY instance_id, path HAVING count(*) > 1",
    "nodes started after they ended": "SELECT a.instance_id, a.path FROM events a JOIN events b "
    "ON a.instance_id = b.instance_id AND a.path = b.path AND b.seq > a.seq "
    "WHERE a.type = 'node.completed' AND b.type IN ('node.started', 'node.failed', 'node.canceled', 'node.lost') "
    "AND a.instance_id NOT IN (SELECT instance_id FROM events WHERE type = 'instance.reopened')",
    "rows behind their events": "SELECT id FROM instances i "
    "WHERE last_seq != (SELECT max(seq) FROM events WHERE instance_id = i.id)",
    "events out of the project's order": "SELECT a.instance_id FROM events a JOIN events b "
    "ON a.instance_id = b.instance_id AND a.seq + 1 = b.seq WHERE a.change_seq >= b.change_seq",
    "two ends of one run": f"SELECT instance_id FROM events WHERE type IN {ENDS} "
    "AND instance_id NOT IN (SELECT instance_id FROM events WHERE type = 'instance.reopened') "
    "GROUP BY instance_id HAVING count(*) > 1",
    "ends that are not the last word": "SELECT i.id, i.status, e.type FROM instances i "
    "JOIN events e ON e.instance_id = i.id AND e.seq = i.last_seq "
    "WHERE i.completed_at IS NOT NULL AND e.type != 'instance.' || lower(i.status)",
    "nodes that go on in a run that ended": "SELECT n.instance_id, n.path, n.status FROM node_executions n "
    "JOIN instances i ON i.id = n.instance_id WHERE i.completed_at IS NOT NULL "
    "AND n.status NOT IN ('COMPLETED', 'FAILED', 'CANCELED', 'SKIPPED')",
    "children of a dead parent": "SELECT c.id FROM instances c JOIN instances p ON p.id = c.parent_id "
    "WHERE c.completed_at IS NULL AND p.completed_at IS NOT NULL AND c.ends_with_parent",
}

_GUARD = [
    "CREATE SCHEMA chaos",
    "CREATE TABLE chaos.broken (rule text, row_id text)",
    """
    CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO chaos.broken VALUES (TG_ARGV[0], to_jsonb(OLD)::text);
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER chaos_fence AFTER UPDATE ON instances FOR EACH ROW WHEN (NEW.fence < OLD.fence)
    EXECUTE FUNCTION chaos.note('a fence went back')
    """,
    """
    CREATE TRIGGER chaos_end AFTER UPDATE ON instances FOR EACH ROW
    WHEN (OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at)
    EXECUTE FUNCTION chaos.note('an end was undone')
    """,
    """
    CREATE TRIGGER chaos_seq AFTER UPDATE ON instances FOR EACH ROW WHEN (NEW.last_seq < OLD.last_seq)
    EXECUTE FUNCTION chaos.note('a history became shorter')
    """,
    """
    CREATE TRIGGER chaos_offer AFTER UPDATE ON remote_attempts FOR EACH ROW WHEN (NEW.fence < OLD.fence)
    EXECUTE FUNCTION chaos.note('the fence of an offer went back')
    """,
    """
    CREATE TRIGGER chaos_events AFTER UPDATE OR DELETE ON events FOR EACH ROW
    EXECUTE FUNCTION chaos.note('an event was changed or removed')
    """,
]


async def guard(url: str) -> None:
    """Note from now on, in the database itself, whatever is done that must never be."""

    def make(connection: Connection) -> None:
        for statement in _GUARD:
            connection.execute(text(statement))

    database = connect(url)
    try:
        await database.write(make)
    finally:
        await database.close()


async def hold(url: str, waiting: Collection[str] = ()) -> None:
    """Assert what must hold of the database after every fault; no server works on it any more.

    ``waiting`` are runs that have not ended on purpose.
    """
    database = connect(url)
    try:
        await database.read(oracle, waiting)
    finally:
        await database.close()


def oracle(connection: Connection, waiting: Collection[str] = ()) -> None:
    """What must hold after every fault, in SQL."""
    unended = connection.scalars(text("SELECT id FROM instances WHERE completed_at IS NULL")).all()
    assert set(unended) - set(waiting) == set(), "runs that did not end"
    for what, query in NOTHING.items():
        assert connection.execute(text(query)).all() == [], what
    if connection.dialect.name == "postgresql" and connection.scalar(text("SELECT to_regclass('chaos.broken')")):
        assert connection.execute(text("SELECT rule, row_id FROM chaos.broken")).all() == []
