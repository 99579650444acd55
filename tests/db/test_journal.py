"""What the journal, the leases and the inbox promise on both databases."""

from __future__ import annotations

import asyncio
import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, text

from db.models import Artifact, EventRow, Instance, NodeExecution
from db.session import Database
from db.store import access, changes, instances, leases, letters
from db.store import workflows as workflows_store
from db.store.dbclock import db_now, db_now_once
from db.store.journal import Append, Committed, Create, Exists, Lost, NewArtifact, Stale, commit, instance_row, node_row
from db.store.workflows import StoredVersion, StoredWorkflow
from flow import events as e
from flow.history import replay

AT = datetime(2026, 11, 21, 8, 0, 0, 5, UTC)


@pytest.fixture
async def database(database: Database) -> Database:
    """A database with two projects; the first has a workflow ``wf-1`` with the version ``wfv-1``."""

    await database.write(prepare)
    await database.write(access.ensure_project, "proj-b", "b", AT)
    return database


def prepare(connection: Connection) -> None:
    """A project with the workflow ``wf-1`` and its version ``wfv-1``."""
    access.ensure_project(connection, "proj-a", "a", AT)
    workflows_store.insert_workflow(connection, workflow())
    workflows_store.insert_version(connection, version())


def workflow(**fields: Any) -> StoredWorkflow:
    values: dict[str, Any] = {
        "id": "wf-1",
        "project_id": "proj-a",
        "name": "photos",
        "display_name": None,
        "description": None,
        "scenario": None,
        "status": "ACTIVE",
        "tags": ("x", "y"),
        "current_version_id": "wfv-1",
        "change_seq": 0,
        "created_at": AT,
        "created_by": None,
        "updated_at": AT,
        "updated_by": None,
    }
    return StoredWorkflow(**values | fields)


def version(**fields: Any) -> StoredVersion:
    values: dict[str, Any] = {
        "id": "wfv-1",
        "workflow_id": "wf-1",
        "project_id": "proj-a",
        "number": (1, 0, 0),
        "parent_id": None,
        "definition": {"name": "photos", "nodes": []},
        "problems": (),
        "label": None,
        "change_note": None,
        "created_at": AT,
        "created_by": None,
    }
    return StoredVersion(**values | fields)


def create(name: str = "1", *, key: str | None = None, worker: str | None = "w1", **options: Any) -> Create:
    created = e.InstanceCreated(workflow_id="wf-1", version_id="wfv-1", input={"n": name}, labels={"l": name})
    return Create(f"inst-{name}", "proj-a", e.Recorded(1, AT, created), key, worker=worker, **options)


def append(
    made: Create, *events: e.AnyEvent, before: tuple[e.AnyEvent, ...] = (), fence: int = 1, **options: Any
) -> Append:
    """These events after the first one and those ``before``, with the rows that follow from them all."""
    history = [made.created, *(e.Recorded(seq, AT, event) for seq, event in enumerate((*before, *events), 2))]
    snapshot = replay(history)
    paths = {event.path for event in events if isinstance(event, e.NodeEvent)}
    return Append(
        made.instance_id,
        made.project_id,
        worker=options.pop("worker", f"w{fence}"),
        fence=fence,
        base_seq=1 + len(before),
        events=history[1 + len(before) :],
        instance=instance_row(made.instance_id, made.project_id, snapshot),
        nodes=[node_row(made.instance_id, path, "core/noop", snapshot.nodes[path]) for path in sorted(paths)],
        **options,
    )


STARTED = e.InstanceStarted()
NODE_STARTED = e.NodeStarted(path="a", attempt=1, worker="w1")
NODE_DONE = e.NodeCompleted(path="a", attempt=1, output={"z": 1, "a": [1.5, None, "照片"]})
DONE = e.InstanceCompleted(output={"a": 1})


async def row(database: Database, id: str = "inst-1") -> Any:
    columns = (
        Instance.status,
        Instance.last_seq,
        Instance.change_seq,
        Instance.fence,
        Instance.owner,
        Instance.lease_until,
    )
    query = select(*columns, Instance.due_at, Instance.lost_claims, Instance.output, Instance.input, Instance.labels)
    return await database.read(lambda conn: conn.execute(query.where(Instance.id == id)).one())


async def test_an_instance_begins_with_its_first_event(database: Database) -> None:
    """Row and event are there together; claimed at once, its fence is 1."""
    assert await database.write(commit, [create()]) == [Committed(1)]
    found = await row(database)
    assert (found.status, found.last_seq, found.change_seq, found.fence, found.owner) == ("PENDING", 1, 1, 1, "w1")
    assert (found.input, found.labels) == ({"n": "1"}, {"l": "1"})
    [event] = await database.read(instances.events, "inst-1")
    assert event == replace_change(create().created, 1)


def replace_change(recorded: e.Recorded, change_seq: int) -> e.Recorded:
    return e.Recorded(recorded.seq, recorded.at, recorded.event, change_seq)


async def test_events_and_rows_are_written_together(database: Database) -> None:
    """A whole run: what replay says is what the rows say."""
    made = create()
    await database.write(commit, [made])
    whole = append(made, STARTED, NODE_STARTED, NODE_DONE, DONE)
    assert await database.write(commit, [whole]) == [Committed(5)]
    found = await row(database)
    assert (found.status, found.last_seq, found.change_seq, found.output) == ("COMPLETED", 5, 5, {"a": 1})
    assert (found.owner, found.lease_until) == (None, None)
    history = await database.read(instances.events, "inst-1")
    assert [(event.seq, event.change_seq, event.at) for event in history] == [(n, n, AT) for n in range(1, 6)]
    assert replay(history).output == {"a": 1}
    node = await database.read(
        lambda conn: conn.execute(select(NodeExecution.status, NodeExecution.output, NodeExecution.attempt)).one()
    )
    assert (node.status, node.attempt) == ("COMPLETED", 1)
    assert json.dumps(node.output) == json.dumps(NODE_DONE.output)  # the order of keys too


async def test_events_can_be_read_after_a_cursor(database: Database) -> None:
    """And no more than asked for; of several instances at once."""
    made, other = create(), create("2")
    await database.write(commit, [made, other])
    await database.write(commit, [append(made, STARTED, NODE_STARTED, NODE_DONE, DONE)])
    assert [event.seq for event in await database.read(instances.events, "inst-1", 2)] == [3, 4, 5]
    assert [event.seq for event in await database.read(instances.events, "inst-1", 2, 2)] == [3, 4]
    both = await database.read(instances.histories, ["inst-1", "inst-2", "inst-none"])
    assert {id: len(history) for id, history in both.items()} == {"inst-1": 5, "inst-2": 1, "inst-none": 0}


async def test_a_stale_fence_writes_nothing_and_stops_nobody_else(database: Database) -> None:
    """The member of a group whose lease is lost drops out; the others commit."""
    lost, good = create("lost"), create("good")
    await database.write(commit, [lost, good])
    before = await row(database, "inst-lost")
    group = [append(lost, STARTED, fence=0), append(good, STARTED)]
    assert await database.write(commit, group) == [Lost(), Committed(3)]
    assert await row(database, "inst-lost") == before
    assert len(await database.read(instances.events, "inst-lost")) == 1
    gone = append(create("gone"), STARTED)
    assert await database.write(commit, [gone]) == [Lost()]
    assert await database.read(changes.newest, "proj-a") == 3


async def test_a_commit_whose_reply_was_lost_may_be_repeated(database: Database) -> None:
    """The same group again has no second effect."""
    made = create(key="k")
    group = [append(made, STARTED, NODE_STARTED)]
    await database.write(commit, [made])
    first = await database.write(commit, group)
    assert await database.write(commit, group) == first
    assert await database.write(commit, [made]) == [Exists("inst-1", 3)]
    assert len(await database.read(instances.events, "inst-1")) == 3


async def test_an_append_that_does_not_follow_is_refused(database: Database) -> None:
    """No gap and no fork in the sequence."""
    made = create()
    await database.write(commit, [made])
    ahead = append(made, NODE_STARTED, before=(STARTED,))
    assert await database.write(commit, [ahead]) == [Lost()]


async def test_an_idempotency_key_makes_one_instance(database: Database) -> None:
    """In one group, in later ones, and in many at once; another project may use the same key."""
    twins = [create("1", key="k"), create("2", key="k")]
    assert await database.write(commit, twins) == [Committed(1), Exists("inst-1", 1)]
    assert await database.write(commit, [create("3", key="k")]) == [Exists("inst-1", 1)]
    outcomes = await asyncio.gather(*(database.write(commit, [create(f"r{n}", key="race")]) for n in range(20)))
    flat = [outcome for [outcome] in outcomes]
    assert sum(isinstance(outcome, Committed) for outcome in flat) == 1
    assert sum(isinstance(outcome, Exists) for outcome in flat) == 19


async def test_nothing_is_started_of_what_may_not_run(database: Database) -> None:
    """Archived, another current version, another project, gone: nothing is created, the rest of the group is."""
    old = replace(create("old"), current=True)
    await database.write(workflows_store.insert_version, version(id="wfv-2", number=(1, 1, 0)))
    await database.write(workflows_store.update_workflow, "proj-a", "wf-1", current_version_id="wfv-2")
    pinned = replace(create("pinned"), current=False)
    foreign = replace(pinned, instance_id="inst-foreign", project_id="proj-b")
    assert await database.write(commit, [old, pinned, foreign]) == [Stale(), Committed(1), Stale()]
    await database.write(workflows_store.update_workflow, "proj-a", "wf-1", status="ARCHIVED")
    assert await database.write(commit, [replace(pinned, instance_id="inst-late")]) == [Stale()]


async def test_starts_and_a_permanent_deletion_at_once_end_well(database: Database) -> None:
    """Each start is stored or refused, none breaks its group."""

    def remove(conn: Connection) -> None:
        changes.take(conn, "proj-a")
        workflows_store.delete_workflow(conn, "proj-a", "wf-1")

    starts = [database.write(commit, [create(str(n))]) for n in range(20)]
    outcomes = await asyncio.gather(*starts[:10], database.write(remove), *starts[10:])
    assert all(outcome is None or isinstance(outcome[0], Committed | Stale) for outcome in outcomes)
    assert await database.read(lambda conn: conn.execute(select(Instance.id)).all()) == []


async def test_writers_at_once_leave_no_gap_in_any_order(database: Database) -> None:
    """Twenty instances appended to by many tasks: each seq is 1..n, the project's order has each place once."""
    made = [create(str(n)) for n in range(20)]
    await database.write(commit, made)
    steps: tuple[e.AnyEvent, ...] = (STARTED, NODE_STARTED, NODE_DONE, DONE)

    async def drive(one: Create) -> None:
        for number, step in enumerate(steps):
            [outcome] = await database.write(commit, [append(one, step, before=steps[:number])])
            assert isinstance(outcome, Committed)

    await asyncio.gather(*(drive(one) for one in made))
    places = await database.read(lambda conn: sorted(conn.execute(select(EventRow.change_seq)).scalars()))
    assert places == list(range(1, 101))
    for one in made:
        assert [event.seq for event in await database.read(instances.events, one.instance_id)] == [1, 2, 3, 4, 5]


async def test_artifacts_belong_to_their_project(database: Database) -> None:
    """Their rows come with the events that refer to them, once."""
    made = create()
    await database.write(commit, [made])
    artifact = e.Artifact("art-1", "0" * 64, 100_000, "application/json", "[1, 2")
    big = e.NodeCompleted(path="a", attempt=1, artifact=artifact)
    group = [append(made, STARTED, NODE_STARTED, big, artifacts=[NewArtifact(artifact, AT)])]
    await database.write(commit, group)
    await database.write(commit, group)
    columns = (
        Artifact.id,
        Artifact.project_id,
        Artifact.instance_id,
        Artifact.sha256,
        Artifact.size,
        Artifact.created_at,
    )
    found = await database.read(lambda conn: [tuple(row) for row in conn.execute(select(*columns))])
    assert found == [("art-1", "proj-a", "inst-1", "0" * 64, 100_000, AT)]
    node = await database.read(
        lambda conn: conn.execute(select(NodeExecution.output, NodeExecution.output_artifact)).one()
    )
    assert node.output is None
    assert node.output_artifact["sha256"] == "0" * 64


# Leases


async def test_a_free_instance_is_claimed_by_one(database: Database) -> None:
    """Of many workers at once one gets it; each claim adds one to the fence."""
    await database.write(commit, [create(worker=None)])
    claims = await asyncio.gather(*(database.write(leases.claim, f"w{n}", ["inst-1"], 15.0) for n in range(10)))
    [claim] = [claim for found in claims for claim in found]
    assert (claim.instance_id, claim.project_id, claim.version_id, claim.fence) == ("inst-1", "proj-a", "wfv-1", 1)
    assert await database.write(leases.claim, "another", ["inst-1"], 15.0) == []
    assert (await row(database)).fence == 1


async def test_commits_and_renewals_of_many_instances_never_meet_head_on(database: Database) -> None:
    """Both lock rows in one order, so that nobody is told of a deadlock."""
    made = [create(f"{number:03}") for number in range(300)]
    await database.write(commit, made)
    fences = {one.instance_id: 1 for one in reversed(made)}
    appends = [append(one) for one in made]

    async def renew() -> None:
        for _ in range(30):
            await database.write(leases.renew, "w1", fences, 15.0)

    async def store() -> None:
        for step in range(30):
            await database.write(commit, random.Random(step).sample(appends, len(appends)))

    await asyncio.gather(renew(), store())


async def test_a_lease_that_is_given_back_is_due_at_once(database: Database) -> None:
    """Whatever state the instance is in, and its giver is not counted as dead."""
    made = create()
    await database.write(commit, [made])
    assert await database.write(commit, [append(made, STARTED)]) == [Committed(2)]
    assert await database.read(leases.due, 10) == []
    await database.write(leases.release, "w1", ["inst-1"])
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-1"]
    [claim] = await database.write(leases.claim, "w2", ["inst-1"], 15.0)
    assert claim.lost_claims == 0


async def test_a_lease_that_ran_out_is_taken_over_and_its_holder_is_shut_out(database: Database) -> None:
    """On the database's clock; the old fence writes nothing any more and renews nothing."""
    made = create(lease_s=-1.0)
    await database.write(commit, [made])
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-1"]
    [claim] = await database.write(leases.claim, "w2", ["inst-1"], 15.0)
    assert (claim.fence, claim.lost_claims) == (2, 1)
    assert await database.write(leases.renew, "w1", {"inst-1": 1}, 15.0) == set()
    assert await database.write(commit, [append(made, STARTED)]) == [Lost()]
    assert await database.write(leases.renew, "w2", {"inst-1": 2, "inst-none": 1}, 15.0) == {"inst-1"}
    assert await database.write(commit, [append(made, STARTED, fence=2, progress=True)]) == [Committed(2)]
    assert (await row(database)).lost_claims == 0


async def test_a_released_instance_is_woken_when_it_is_due(database: Database) -> None:
    """Not before; and by nobody but the inbox if it has no time."""
    sleeps, waits = create("sleeps"), create("waits")
    await database.write(commit, [sleeps, waits])
    past, future = AT, datetime.now(UTC) + timedelta(hours=1)
    await database.write(commit, [append(sleeps, STARTED, release=True, due_at=future)])
    await database.write(commit, [append(waits, STARTED, release=True)])
    assert await database.read(leases.due, 10) == []
    assert await database.read(leases.next_due) == future.replace(microsecond=future.microsecond)
    await database.write(leases.claim, "w2", ["inst-sleeps"], 15.0)
    again = append(sleeps, NODE_STARTED, before=(STARTED,), fence=2, release=True, due_at=past)
    assert await database.write(commit, [again]) == [Committed(5)]
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-sleeps"]


async def test_what_comes_after_the_lease_was_given_back_is_not_written(database: Database) -> None:
    """A process that stops gives its leases back while an append of its own may still be on the way."""
    made = create()
    await database.write(commit, [made])
    await database.write(leases.release, "w1", ["inst-1"])
    for late in (append(made, STARTED, release=True), append(made, STARTED)):
        assert await database.write(commit, [late]) == [Lost()]
    assert isinstance((await database.write(commit, [append(made, release=True)]))[0], Committed)
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-1"]


@pytest.mark.parametrize("now", [db_now, db_now_once])
def test_statements_with_the_clock_are_compiled_once(now: type[db_now]) -> None:
    """A statement that has no key is compiled anew at each use, which costs more than the statement itself."""
    due = select(Instance.id).where(Instance.due_at <= now(5))
    assert due._generate_cache_key() is not None
    assert due.compare(select(Instance.id).where(Instance.due_at <= now(5)))
    assert not due.compare(select(Instance.id).where(Instance.due_at <= now(6)))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_is_due_is_found_without_a_look_at_what_waits(database: Database) -> None:
    """However many they are: PostgreSQL looks into its index for both."""

    many = """
        INSERT INTO instances SELECT (jsonb_populate_record(i, jsonb_build_object(
            'id', 'inst-' || n, 'owner', null, 'lease_until', null, 'due_at', now() + interval '1 hour'))).*
        FROM instances i, generate_series(2, 5000) n
    """
    await database.write(commit, [create()])
    await database.write(lambda connection: connection.execute(text(many)) and None)
    await database.write(lambda connection: connection.execute(text("ANALYZE instances")) and None)

    def plan(connection: Connection) -> str:
        seen: list[tuple[str, Any]] = []
        event.listen(connection, "before_cursor_execute", lambda *call: seen.append((call[2], call[3])))
        leases.due(connection, 10)
        [(statement, values)] = seen
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values))

    told = await database.read(plan)
    assert len(re.findall(r"Index Cond: .*(due_at|lease_until) <= ", told)) == 2, told


async def test_urgent_instances_are_woken_first_and_no_more_than_asked_for(database: Database) -> None:
    """By priority, then by age."""

    def priorities(conn: Connection) -> None:
        for name, priority in (("1", 1), ("2", 10), ("3", 5)):
            conn.execute(text(f"UPDATE instances SET priority = {priority} WHERE id = 'inst-{name}'"))

    await database.write(commit, [create(name, worker=None) for name in "123"])
    await database.write(priorities)
    assert [due.instance_id for due in await database.read(leases.due, 2)] == ["inst-2", "inst-3"]


async def test_a_suspect_rests_before_it_is_tried_again(database: Database) -> None:
    """Whoever died on it may have been killed by somebody else: the first trial comes at once, the next ones later."""

    await database.write(commit, [create(worker=None)])
    for deaths in range(leases.POISON + 1):
        suspected = "inst-1" if deaths >= leases.SUSPECT else None
        rests = leases.SUSPECT < deaths < leases.POISON
        assert await database.read(leases.next_suspect, 0.0) == suspected
        assert await database.read(leases.next_suspect, 60.0) == (None if rests else suspected), deaths
        [claim] = await database.write(leases.claim, "dies", ["inst-1"], 0.0, suspects=suspected is not None)
        assert claim.lost_claims == deaths


async def test_a_lone_process_ends_its_predecessors_leases(database: Database) -> None:
    """At its start; then everything unfinished is due."""
    await database.write(commit, [create("1"), create("2")])
    assert await database.read(leases.due, 10) == []
    assert await database.write(leases.expire_all) == 2
    assert len(await database.read(leases.due, 10)) == 2


async def test_released_leases_are_free_at_once(database: Database) -> None:
    """Only those of the worker that releases."""
    await database.write(commit, [create("1", worker="w1"), create("2", worker="w2")])
    await database.write(leases.release, "w1", ["inst-1", "inst-2"])
    claims = await database.write(leases.claim, "w3", ["inst-1", "inst-2"], 15.0)
    assert [claim.instance_id for claim in claims] == ["inst-1"]


# The inbox


async def test_letters_are_kept_in_order_until_they_are_dealt_with(database: Database) -> None:
    """What comes in while the lease is given back wakes the instance again."""
    made = create()
    await database.write(commit, [made])
    for reason in ("one", "two"):
        await database.write(letters.put, "inst-1", e.CancelRequested(reason=reason), AT)
    lying = (await database.read(instances.inbox, ["inst-1"]))["inst-1"]
    assert [letter.event for letter in lying] == [e.CancelRequested(reason="one"), e.CancelRequested(reason="two")]
    taken = append(made, STARTED, lying[0].event, consumed=[lying[0].id], release=True)
    assert await database.write(commit, [taken]) == [Committed(3, more=True)]
    left = await database.read(instances.inbox, ["inst-1"])
    assert [letter.id for letter in left["inst-1"]] == [lying[1].id]


async def test_an_instance_of_another_project_has_no_status(database: Database) -> None:
    """It is not found."""
    await database.write(commit, [create()])
    assert await database.read(instances.status, "proj-b", "inst-1") is None
    status = await database.read(instances.status, "proj-a", "inst-1")
    assert status is not None
    assert (status.status, status.last_seq, status.change_seq, status.completed_at) == ("PENDING", 1, 1, None)


async def test_a_workflow_goes_with_its_instances(database: Database) -> None:
    """In batches, whatever they left; open ones are counted first."""
    made = [create(str(n)) for n in range(5)]
    await database.write(commit, made)
    await database.write(commit, [append(one, STARTED, NODE_STARTED) for one in made])
    await database.write(letters.put, "inst-1", e.CancelRequested(), AT)
    assert await database.read(workflows_store.open_instances, "wf-1") == 5
    assert await database.write(workflows_store.delete_instances, "wf-1", 3) == 3
    assert await database.write(workflows_store.delete_instances, "wf-1", 3) == 2
    assert await database.write(workflows_store.delete_instances, "wf-1", 3) == 0
    await database.write(workflows_store.delete_workflow, "proj-a", "wf-1")
    for table in ("events", "node_executions", "inbox", "instances", "workflow_versions", "workflows"):
        query = text(f"SELECT count(*) FROM {table}")
        assert await database.read(_scalar, query) == 0


def _scalar(conn: Connection, query: Any) -> Any:
    return conn.execute(query).scalar_one()
