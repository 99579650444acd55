"""What children, letters, gates and kept results promise on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import select, text

from db.models import InboxItem, Instance
from db.session import Database
from db.store import access, admission, children, instances, leases, letters, results
from db.store.entries import Append, Committed, Create, Skipped
from db.store.journal import commit
from flow import events as e
from flow.errors import Category, Conflict, Failure, NotFound
from tests.db.test_journal import AT, DONE, NODE_STARTED, STARTED, append, create, prepare

CANCEL = e.CancelRequested()
FAILED = e.InstanceFailed(error=Failure("X", Category.CODE, "no"))


@pytest.fixture
async def database(database: Database) -> Database:
    """A database with a project and its workflow ``wf-1``."""

    await database.write(prepare)
    return database


def keyed(name: str, key: str | None = None, limit: int | None = 1, **options: Any) -> Create:
    """An instance with a concurrency key."""
    made = create(name, worker=None, limit=limit, **options)
    event = msgspec.structs.replace(made.created.event, concurrency_key=key)
    return replace(made, created=msgspec.structs.replace(made.created, event=event))


def child_of(parent: Create, name: str, *, policy: str = "cancel") -> Create:
    made = create(name, worker=None)
    above = e.Parent(parent.instance_id, "a", on_parent_end=policy)  # type: ignore[arg-type]
    event = msgspec.structs.replace(made.created.event, parent=above)
    return replace(made, created=msgspec.structs.replace(made.created, event=event))


async def inbox(database: Database) -> list[tuple[str, str]]:
    """(instance, type) of all letters."""
    query = select(InboxItem.instance_id, InboxItem.data).order_by(InboxItem.id)
    return await database.read(lambda conn: [(id, data["type"]) for id, data in conn.execute(query)])


async def gates(database: Database) -> dict[str, str | None]:
    query = select(Instance.id, Instance.gate).where(Instance.completed_at.is_(None))
    return await database.read(lambda conn: {row.id: row.gate for row in conn.execute(query)})


async def test_a_child_is_there_with_the_event_that_names_it(database: Database) -> None:
    """In one transaction, once, also when the reply of the commit was lost; it is due at once."""
    made = create()
    await database.write(commit, [made])
    entry = append(made, STARTED, NODE_STARTED, children=[child_of(made, "child")])
    [first] = await database.write(commit, [entry])
    assert isinstance(first, Committed)
    assert [wake.id for wake in first.woken] == ["inst-child"]
    [again] = await database.write(commit, [entry])
    assert isinstance(again, Committed)
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-child"]
    found = await database.read(children.startable, "proj-a", "inst-child", "photos", None)
    assert found is not None
    assert (found.workflow_id, found.version_id, found.ancestors) == ("wf-1", "wfv-1", frozenset({"wf-1"}))


async def test_the_end_of_an_instance_reaches_parent_and_children(database: Database) -> None:
    """The letter to the parent is in the same transaction; children that end with it are told to, others aren't."""
    parent = create("parent")
    await database.write(commit, [parent])
    kept, ends = child_of(parent, "kept", policy="abandon"), child_of(parent, "ends")
    await database.write(commit, [append(parent, STARTED, children=[kept, ends], release=True)])
    ended = e.ChildEnded(path="a", instance_id="inst-kept", status="COMPLETED")
    await database.write(leases.claim, "w1", ["inst-kept"], 15.0)
    [outcome] = await database.write(commit, [append(kept, STARTED, DONE, letters=[("inst-parent", ended)])])
    assert isinstance(outcome, Committed)
    assert [wake.id for wake in outcome.woken] == ["inst-parent"]
    assert "inst-parent" in [due.instance_id for due in await database.read(leases.due, 10)]
    [claim] = await database.write(leases.claim, "w2", ["inst-parent"], 15.0)
    failing = append(parent, FAILED, before=(STARTED,), fence=claim.fence)
    [outcome] = await database.write(commit, [failing])
    assert isinstance(outcome, Committed)
    assert [wake.id for wake in outcome.woken] == ["inst-ends"]
    assert await inbox(database) == [("inst-ends", "instance.cancel_requested")]
    late = append(ends, STARTED, DONE, letters=[("inst-parent", ended)])
    await database.write(leases.claim, "w1", ["inst-ends"], 15.0)
    [outcome] = await database.write(commit, [late])
    assert isinstance(outcome, Committed)
    assert outcome.woken == ()


async def test_families_that_end_at_once_do_not_block_each_other(database: Database) -> None:
    """Parents write to children and children to parents, from many connections: no deadlock, no letter lost."""
    pairs = []
    for number in range(10):
        parent = create(f"p{number}")
        child = child_of(parent, f"c{number}")
        await database.write(commit, [parent])
        await database.write(commit, [append(parent, STARTED, children=[child])])
        await database.write(leases.claim, "w1", [child.instance_id], 15.0)
        pairs.append((parent, child))

    async def end(entry: Append) -> Any:
        return await database.write(commit, [entry])

    endings = []
    for parent, child in pairs:
        ended = e.ChildEnded(path="a", instance_id=child.instance_id, status="COMPLETED")
        endings.append(end(append(child, STARTED, DONE, letters=[(parent.instance_id, ended)])))
        endings.append(end(append(parent, FAILED, before=(STARTED,))))
    outcomes = await asyncio.gather(*endings)
    assert all(isinstance(outcome, Committed) for [outcome] in outcomes)


async def test_letters_are_refused_at_once_and_counted_before_they_are_read(database: Database) -> None:
    """A pause that lies in the inbox can be resumed; a cancellation is asked for once; an end takes no letter."""
    made = create()
    await database.write(commit, [made])
    send = letters.deliver
    with pytest.raises(Conflict, match="not paused"):
        await database.write(send, "proj-a", "inst-1", e.InstanceResumed(), AT)
    for event in (e.InstancePaused(e.PauseReason.USER), e.InstancePaused(e.PauseReason.USER), e.InstanceResumed()):
        await database.write(send, "proj-a", "inst-1", event, AT)
    await asyncio.gather(*(database.write(send, "proj-a", "inst-1", CANCEL, AT) for _ in range(5)))
    assert [kind for _, kind in await inbox(database)] == [
        "instance.paused",
        "instance.resumed",
        "instance.cancel_requested",
    ]
    with pytest.raises(NotFound):
        await database.write(send, "proj-b", "inst-1", CANCEL, AT)
    await database.write(commit, [append(made, STARTED, DONE)])
    assert await inbox(database) == []
    with pytest.raises(Conflict, match="COMPLETED"):
        await database.write(send, "proj-a", "inst-1", e.SignalReceived("go"), AT)


async def test_an_approval_takes_one_answer_of_many_at_once(database: Database) -> None:
    """Also from many connections, and before its holder has read the first."""
    made = create()
    await database.write(commit, [made])
    waiting = e.NodeWaiting("a", 1, e.ForApproval("?", who=("x",)))
    await database.write(commit, [append(made, STARTED, NODE_STARTED, waiting, release=True)])
    assert await database.read(letters.awaited, "proj-a", "inst-1", "a") == e.ForApproval("?", who=("x",))
    answer = e.ApprovalAnswered("a", True)
    results = await asyncio.gather(
        *(database.write(letters.deliver, "proj-a", "inst-1", answer, AT) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, instances.Status) for result in results) == 1
    assert all(isinstance(result, instances.Status | Conflict) for result in results)
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-1"]


async def test_a_failed_instance_is_claimed_by_one_to_go_on(database: Database) -> None:
    """Under a new fence; the row is RUNNING again and not completed."""
    made = create()
    await database.write(commit, [made])
    assert await database.write(leases.claim_failed, "w2", "inst-1", 15.0) is None
    await database.write(commit, [append(made, STARTED, FAILED)])
    claims = await asyncio.gather(*(database.write(leases.claim_failed, "w2", "inst-1", 15.0) for _ in range(5)))
    [claim] = [claim for claim in claims if claim is not None]
    assert claim.fence == 2
    reopened = append(made, e.InstanceReopened(()), before=(STARTED, FAILED), fence=2, release=True, due_at=AT)
    await database.write(commit, [reopened])
    assert [due.instance_id for due in await database.read(leases.due, 10)] == ["inst-1"]


async def test_a_gate_opens_when_its_place_is_free(database: Database) -> None:
    """Nobody can claim before; whoever ends lets the next in, in the same transaction."""
    first, second, other = keyed("1", "k"), keyed("2", "k"), keyed("3", "other")
    [one, two, three] = await database.write(commit, [first, second, other])
    assert [isinstance(outcome, Committed) and outcome.gated for outcome in (one, two, three)] == [True] * 3
    assert await gates(database) == {"inst-1": None, "inst-2": "KEY", "inst-3": None}
    claims = await database.write(leases.claim, "w1", ["inst-1", "inst-2", "inst-3"], 15.0)
    assert sorted(claim.instance_id for claim in claims) == ["inst-1", "inst-3"]
    [outcome] = await database.write(commit, [append(first, STARTED, DONE)])
    assert isinstance(outcome, Committed)
    assert [wake.id for wake in outcome.woken] == ["inst-2"]
    assert await gates(database) == {"inst-2": None, "inst-3": None}


async def test_a_limit_holds_however_many_start_at_once(database: Database) -> None:
    """From many connections; skipping ones are refused beyond it."""
    outcomes = await asyncio.gather(*(database.write(commit, [keyed(str(n), "k", 3)]) for n in range(12)))
    assert all(isinstance(outcome, Committed) for [outcome] in outcomes)
    assert list((await gates(database)).values()).count(None) == 3
    more = await asyncio.gather(
        *(database.write(commit, [keyed(f"s{n}", "skips", 2, on_conflict="skip")]) for n in range(8))
    )
    assert sum(isinstance(outcome, Committed) for [outcome] in more) == 2
    assert sum(isinstance(outcome, Skipped) for [outcome] in more) == 6


async def test_limits_of_workflow_and_project(database: Database) -> None:
    """Setting one holds for what starts afterwards, raising it lets the waiting in, in the order of their rank."""
    assert await database.write(admission.limit, "proj-a", "wf-1", 1) == []
    made = [create(str(n), worker="w1") for n in range(4)]
    outcomes = await database.write(commit, made)
    assert all(isinstance(outcome, Committed) and outcome.gated for outcome in outcomes)
    assert list((await gates(database)).values()).count(None) == 1
    await database.write(lambda conn: conn.execute(text("UPDATE instances SET priority = 9 WHERE id = 'inst-3'")))
    assert await database.write(admission.limit, "proj-a", "wf-1", 2) == ["inst-3"]
    assert await database.write(admission.limit, "proj-a", None, 3) == []
    assert sorted(await database.write(admission.limit, "proj-a", "wf-1", None)) == ["inst-1"]
    assert set((await gates(database)).values()) == {None, "WORKFLOW"}
    await database.write(admission.limit, "proj-a", None, None)
    assert not await database.read(admission.any_gated)
    with pytest.raises(NotFound):
        await database.write(admission.limit, "proj-a", "wf-none", 1)


async def test_a_deadline_passes_at_a_gate(database: Database) -> None:
    """The late one may be claimed, to end; the others stay."""
    late = keyed("2", "k")
    event = msgspec.structs.replace(late.created.event, queue_timeout=timedelta(seconds=1))
    late = replace(late, created=msgspec.structs.replace(late.created, event=event))
    await database.write(commit, [keyed("1", "k"), late, keyed("3", "k")])
    assert await database.write(admission.admit_due) == ["inst-2"]
    assert (await gates(database))["inst-3"] == "KEY"


async def test_a_result_is_kept_for_its_project_until_it_expires(database: Database) -> None:
    """A newer one takes its place."""
    await database.write(lambda conn: access.ensure_project(conn, "proj-b", "b", AT))
    later = AT + timedelta(hours=1)
    for output in (1, {"照片": [1.5, None]}):
        await database.write(results.keep, "proj-a", "k", results.Result(output, None), "inst-1", AT, later)
    assert await database.read(results.result, "proj-a", "k", AT) == results.Result({"照片": [1.5, None]}, None)
    assert await database.read(results.result, "proj-b", "k", AT) is None
    assert await database.read(results.result, "proj-a", "k", later) is None
