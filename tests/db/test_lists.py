"""Lists on both databases: every filter and order, nested pages, and cursors that join without gap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from db.models import EventRow, Instance, NodeExecution, Project, Workflow, WorkflowVersion
from db.session import Database
from db.store import keyset, lists
from db.store.keyset import All, Compare, Either, Filter, Not, Slice
from flow import events as e

START = datetime(2026, 11, 21, 8, tzinfo=UTC)


def fill(connection: Connection) -> None:
    """A project with two workflows, each with four instances of two nodes; labels, tags and states differ."""
    connection.execute(insert(Project).values(id="proj-1", name="one", change_seq=100, created_at=START))
    for w in range(2):
        connection.execute(
            insert(Workflow).values(
                id=f"wf-{w}",
                project_id="proj-1",
                name=f"flow {w}",
                status="ACTIVE",
                tags=["x", f"t{w}"],
                current_version_id=f"wfv-{w}-2",
                change_seq=w,
                created_at=START,
                updated_at=START + timedelta(hours=w),
            )
        )
        for patch in (9, 10, 2):
            connection.execute(
                insert(WorkflowVersion).values(
                    id=f"wfv-{w}-{patch}",
                    workflow_id=f"wf-{w}",
                    project_id="proj-1",
                    major=1,
                    minor=0,
                    patch=patch,
                    definition={"name": "x"},
                    problems=[],
                    created_at=START,
                )
            )
        for i in range(4):
            id = f"inst-{w}{i}"
            connection.execute(
                insert(Instance).values(
                    id=id,
                    project_id="proj-1",
                    workflow_id=f"wf-{w}",
                    version_id=f"wfv-{w}-2",
                    trigger_type="api",
                    status=["RUNNING", "COMPLETED"][i % 2],
                    priority=i,
                    labels={"n": str(i)} if i else None,
                    created_at=START + timedelta(minutes=i // 2),
                    last_seq=2,
                    change_seq=10 * w + i + 1,
                    completed_at=START if i % 2 else None,
                )
            )
            created = e.InstanceCreated(workflow_id=f"wf-{w}", version_id=f"wfv-{w}-2")
            for seq, event in ((1, created), (2, e.InstanceStarted())):
                connection.execute(
                    insert(EventRow).values(
                        instance_id=id,
                        seq=seq,
                        change_seq=10 * w + i + seq - 1,
                        type=e.Recorded(seq, START, event).type,
                        at=START,
                        data=e.encode(event).decode(),
                    )
                )
            for n in range(3):
                connection.execute(
                    insert(NodeExecution).values(
                        instance_id=id,
                        path=f"n{n}",
                        ordinal=n,
                        node_id=f"n{n}",
                        node_type="core/noop",
                        last_seq=n + 1,
                        status="COMPLETED",
                        attempt=1,
                        started_seq=1,
                    )
                )


@pytest.fixture
async def filled(database: Database) -> Database:
    await database.write(fill)
    return database


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (Compare("status", "eq", "RUNNING"), "00 02 10 12"),
        (Compare("status", "in", ("RUNNING", "FAILED")), "00 02 10 12"),
        (Compare("priority", "gte", 2), "02 03 12 13"),
        (Compare("created_at", "lte", START), "00 01 10 11"),
        (Compare("completed_at", "eq", None), "00 02 10 12"),
        (Compare("label", "eq", ("n", "3")), "03 13"),
        (Not(Compare("label", "eq", ("n", "3"))), "00 01 02 10 11 12"),
        (Not(Compare("completed_at", "gte", START)), "00 02 10 12"),
        (Either((Compare("id", "eq", "inst-00"), Compare("priority", "eq", 3))), "00 03 13"),
        (All((Compare("workflow", "eq", "wf-1"), Not(Compare("status", "eq", "RUNNING")))), "11 13"),
        (Either(()), ""),
        (All(()), "00 01 02 03 10 11 12 13"),
    ],
)
async def test_filters(filled: Database, where: Filter, found: str) -> None:
    """Each comparator and connective finds exactly what it says; what is unknown does not match, so its not does."""
    page = await filled.read(keyset.page, lists.INSTANCES, "proj-1", where, Slice("CREATED", limit=50))
    assert sorted(row.id.removeprefix("inst-") for row in page.rows) == found.split()
    assert await filled.read(keyset.count, lists.INSTANCES, "proj-1", where) == len(found.split())


async def test_texts_and_tags(filled: Database) -> None:
    """`contains` takes its text literally and ignores case; a tag is matched whole."""
    for compare, found in (
        (Compare("name", "contains", "FLOW"), 2),
        (Compare("name", "contains", "%"), 0),
        (Compare("tag", "contains", "t1"), 1),
        (Compare("tag", "contains", "t"), 0),
    ):
        assert await filled.read(keyset.count, lists.WORKFLOWS, "proj-1", compare) == found


@pytest.mark.parametrize("order", ["CREATED", "CHANGED"])
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_join_in_both_directions(filled: Database, order: str, descending: bool) -> None:
    """Forwards from the beginning and backwards from the end give the same rows in the same order."""

    async def walk(backward: bool) -> list[str]:
        seen: list[str] = []
        key = None
        while True:
            part = Slice(order, descending, 3, None if backward else key, key if backward else None, backward)
            page = await filled.read(keyset.page, lists.INSTANCES, "proj-1", keyset.EVERY, part)
            ids = [row.id for row in page.rows]
            seen = ids + seen if backward else seen + ids
            if not page.more:
                return seen
            key = keyset.key(lists.INSTANCES, order, page.rows[0 if backward else -1])

    forward = await walk(False)
    assert len(set(forward)) == 8
    assert await walk(True) == forward


async def test_versions_order_as_numbers(filled: Database) -> None:
    """1.0.10 comes after 1.0.9, for several workflows in one statement."""
    part = Slice("VERSION", descending=True, limit=2)
    found = await filled.read(keyset.pages, lists.VERSIONS, ["wf-0", "wf-1"], keyset.EVERY, part)
    for page in found.values():
        assert [row.patch for row in page.rows] == [10, 9]
        assert page.more
    assert await filled.read(keyset.counts, lists.VERSIONS, ["wf-0", "none"], keyset.EVERY) == {"wf-0": 3, "none": 0}


async def test_nested_pages_go_on_and_back(filled: Database) -> None:
    """A page for one parent and for many agree, after a key and from the end too."""
    first = Slice("PLACE", limit=2)
    for part in (first, Slice("PLACE", limit=2, after=(0, "n0")), Slice("PLACE", limit=2, backward=True)):
        many = await filled.read(keyset.pages, lists.NODES, ["inst-00", "inst-01"], keyset.EVERY, part)
        one = await filled.read(keyset.pages, lists.NODES, ["inst-00"], keyset.EVERY, part)
        paths = [row.path for row in one["inst-00"].rows]
        assert [[row.path for row in page.rows] for page in many.values()] == [paths, paths]
        assert {page.more for page in many.values()} == {one["inst-00"].more}
        assert len(paths) == 2


async def test_events_by_instance_type_and_place(filled: Database) -> None:
    """Some events of many instances, decoded, at most so many of each."""
    found = await filled.read(lists.events, ["inst-00", "inst-01"], 0, 1)
    assert [[event.seq for event in events] for events in found.values()] == [[1], [1]]
    started = await filled.read(lists.events, ["inst-00", "inst-01"], 0, 5, type="instance.started")
    assert [[event.seq for event in events] for events in started.values()] == [[2], [2]]
    assert await filled.read(lists.events, ["inst-00"], 2, 5) == {"inst-00": []}


async def test_changes_say_what_is_new_changed_and_gone(filled: Database) -> None:
    """Born in the window: added; before it: updated; not matching: removed; windows join at their cut."""
    running = Compare("status", "eq", "RUNNING")
    found = await filled.read(lists.changes, "proj-1", running, 2, 100, 50)
    assert [row.id for row in found.added] == ["inst-10", "inst-12"]
    assert [row.id for row in found.updated] == ["inst-02"]
    assert found.removed == ("inst-03", "inst-11", "inst-13")
    assert found.change_seq == 100
    cut = await filled.read(lists.changes, "proj-1", keyset.EVERY, 0, 100, 3)
    assert (cut.change_seq, len(cut.added) + len(cut.updated)) == (3, 3)
    assert await filled.read(lists.latest_change, "proj-1") == 100


async def test_look_ups_by_id_stay_in_the_project(filled: Database) -> None:
    """Nothing of another project is found, whatever its id."""
    queries: list[tuple[Any, str]] = [
        (lists.instances, "inst-00"),
        (lists.workflows, "wf-0"),
        (lists.versions, "wfv-0-2"),
        (lists.definitions, "wfv-0-2"),
    ]
    for query, id in queries:
        assert set(await filled.read(query, "proj-1", [id, "none"])) == {id}
        assert await filled.read(query, "proj-2", [id]) == {}
    assert await filled.read(lists.workflow_id, "proj-1", "flow 0") == "wf-0"
    assert await filled.read(lists.version_id, "proj-1", "wf-0", (1, 0, 10)) == "wfv-0-10"
    assert await filled.read(lists.version_id, "proj-1", "wf-0", None) == "wfv-0-2"
    assert set(await filled.read(lists.nodes, [("inst-00", "n1"), ("inst-00", "no")])) == {("inst-00", "n1")}
