"""How many runs are under way at once: by key, by workflow, by project; who is next, and what a conflict does."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from db.store import admission, leases
from db.store.keyset import All
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.errors import Conflict, Invalid, NotFound
from tests.engine.conftest import document, engine_on, history, started, types
from tests.engine.following import row, statuses, until
from tests.engine.nodes import gate


def limited(name: str, **concurrency: Any) -> dict[str, Any]:
    """A workflow of one gate, with a concurrency rule."""
    node = {"id": "g", "type": "test/gate", "parameters": {"gate": name}}
    return document([node], name=name, concurrency=concurrency)


def waits(name: str, **fields: Any) -> dict[str, Any]:
    """A workflow that waits to be told ``go``."""
    return document([{"id": "w", "type": "core/wait-signal", "parameters": {"name": "go"}}], name=name, **fields)


async def go(engine: Engine, *ids: str) -> None:
    """Let these runs end."""
    for id in ids:
        await engine.instances.signal(LOCAL, id, "go")
    for id in ids:
        assert types(await history(engine, id))[-1] == "instance.completed"


async def test_equal_keys_wait_for_each_other_and_others_do_not(engine: Engine) -> None:
    """One of each key at a time; the next begins when the one before has ended, and keeps its place while it waits."""
    definition = waits("keyed", concurrency={"key": "customer", "limit": 1})
    a1, a2, a3, b1 = [await started(engine, definition, input={"customer": c}) for c in "aaab"]
    await until(engine, a1, e.NodeWaiting)
    await until(engine, b1, e.NodeWaiting)
    assert await statuses(engine, [a1, a2, a3, b1]) == ["RUNNING", "PENDING", "PENDING", "RUNNING"]
    assert (await row(engine, a2))["gate"] == "KEY"
    await go(engine, a1)
    await until(engine, a2, e.NodeWaiting)
    assert await statuses(engine, [a2, a3]) == ["RUNNING", "PENDING"]
    await go(engine, a2, a3, b1)


async def test_without_a_key_the_limit_is_the_workflows(engine: Engine) -> None:
    """Every run has the same key."""
    ids = [await started(engine, waits("keyless", concurrency={"limit": 2})) for _ in range(4)]
    await until(engine, ids[1], e.NodeWaiting)
    assert (await statuses(engine, ids)).count("RUNNING") == 2
    await go(engine, *ids)


async def test_a_key_that_gives_nothing_is_refused(engine: Engine) -> None:
    """Invalid, since nobody could tell what the run should wait for."""
    with pytest.raises(Invalid, match="gives nothing"):
        await started(engine, waits("no-key", concurrency={"key": "customer"}), input={})


async def test_skip_starts_no_other(engine: Engine) -> None:
    """Conflict CONCURRENCY_LIMIT, naming the run that is there; afterwards it may start."""
    definition = waits("skips", concurrency={"on_conflict": "skip"})
    first = await started(engine, definition)
    with pytest.raises(Conflict) as refusal:
        await started(engine, definition)
    assert refusal.value.code == "CONCURRENCY_LIMIT"
    assert refusal.value.details == {"instance": first}
    results = await asyncio.gather(*(started(engine, definition) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, Conflict) for result in results)
    await go(engine, first)
    results = await asyncio.gather(*(started(engine, definition) for _ in range(5)), return_exceptions=True)
    [second] = [result for result in results if isinstance(result, str)]
    await go(engine, second)


async def test_cancel_running_takes_the_place(engine: Engine) -> None:
    """The newest goes on, those before it are cancelled, also the one that hadn't begun."""
    entered, go_on = gate("takes-over")
    definition = limited("takes-over", on_conflict="cancel_running")
    first = await started(engine, definition)
    await entered.wait()
    second = await started(engine, definition)
    third = await started(engine, definition)
    go_on.set()
    assert types(await history(engine, first))[-1] == "instance.canceled"
    assert types(await history(engine, second))[-1] == "instance.canceled"
    assert types(await history(engine, third))[-1] == "instance.completed"


async def test_a_workflow_has_a_limit_of_its_own_and_so_has_the_project(engine: Engine) -> None:
    """Whichever is reached first; a raised limit lets the next begin at once."""
    for name in ("left", "right"):
        await engine.workflows.create(LOCAL, waits(name))
    left = await engine.workflows.named(LOCAL, "left")
    assert left is not None
    await engine.instances.limit(LOCAL, 1, left.id)
    await engine.instances.limit(LOCAL, 2)

    async def start(name: str) -> str:
        return (await engine.instances.start(LOCAL, workflow_name=name, input=None)).instance_id

    l1, l2 = await start("left"), await start("left")
    r1, r2 = await start("right"), await start("right")
    await until(engine, l1, e.NodeWaiting)
    await until(engine, r1, e.NodeWaiting)
    assert await statuses(engine, [l1, l2, r1, r2]) == ["RUNNING", "PENDING", "RUNNING", "PENDING"]
    assert [(await row(engine, id))["gate"] for id in (l2, r2)] == ["WORKFLOW", "PROJECT"]
    await engine.instances.limit(LOCAL, 3)
    await until(engine, r2, e.NodeWaiting)
    await engine.instances.limit(LOCAL, None)
    assert await statuses(engine, [l2]) == ["PENDING"]
    await engine.instances.limit(LOCAL, None, left.id)
    await until(engine, l2, e.NodeWaiting)
    await go(engine, l1, l2, r1, r2)


async def test_a_limit_must_be_one_and_of_something(engine: Engine) -> None:
    """Invalid for zero, NotFound for an unknown workflow."""
    with pytest.raises(Invalid):
        await engine.instances.limit(LOCAL, 0)
    with pytest.raises(NotFound):
        await engine.instances.limit(LOCAL, 1, "wf-none")


async def test_a_key_with_many_runs_does_not_keep_out_another(engine: Engine) -> None:
    """The key with the fewest runs under way is next, then the better rank."""
    await engine.instances.limit(LOCAL, 2)
    definition = waits("fair", concurrency={"key": "k", "limit": 100})
    many = [await started(engine, definition, input={"k": "many"}) for _ in range(6)]
    late = await started(engine, definition, input={"k": "few"})
    await until(engine, many[0], e.NodeWaiting)
    await go(engine, many[0])
    await until(engine, late, e.NodeWaiting)
    assert (await statuses(engine, many)).count("RUNNING") == 1
    await engine.instances.limit(LOCAL, None)
    await go(engine, *many[1:], late)


async def test_an_urgent_run_is_next_but_not_for_ever(engine: Engine) -> None:
    """Of one key the higher priority comes first, and one step of it is worth ten seconds of waiting."""
    definition = waits("ranked", concurrency={"limit": 1})
    first = await started(engine, definition)
    low, urgent = await started(engine, definition, priority=1), await started(engine, definition, priority=10)
    await until(engine, first, e.NodeWaiting)
    await go(engine, first)
    await until(engine, urgent, e.NodeWaiting)
    assert await statuses(engine, [low]) == ["PENDING"]
    await go(engine, urgent, low)


async def test_who_waits_for_a_place_can_be_cancelled_and_runs_out_of_time(engine: Engine) -> None:
    """Neither needs the place; the one that has it is not disturbed."""
    definition = waits("gives-up", concurrency={"limit": 1})
    first = await started(engine, definition)
    cancelled = await started(engine, definition)
    late = await started(engine, definition, queue_timeout=timedelta(milliseconds=1))
    await engine.instances.cancel(LOCAL, cancelled)
    assert types(await history(engine, cancelled))[-1] == "instance.canceled"
    for id in await engine.database.write(admission.admit_due):
        engine.executor.wake(id)
    assert types(await history(engine, late))[-1] == "instance.timed_out"
    assert await statuses(engine, [first]) == ["RUNNING"]
    await go(engine, first)


async def test_limits_hold_over_a_restart_and_for_every_worker(tmp_path: Path) -> None:
    """Nobody claims a run that waits for a place, whoever asks; the next process lets the next one begin."""
    definition = waits("restarted", concurrency={"limit": 1})
    async with engine_on(tmp_path) as engine:
        first, second = [await started(engine, definition) for _ in range(2)]
        await until(engine, first, e.NodeWaiting)
        assert await engine.database.write(leases.claim, "another", [second], 15.0) == []
        assert second not in [due.instance_id for due in await engine.database.read(leases.due, 100)]
    async with engine_on(tmp_path) as engine:
        assert await statuses(engine, [first, second]) == ["RUNNING", "PENDING"]
        await go(engine, first, second)


async def test_the_limit_is_never_passed(engine: Engine) -> None:
    """100 runs of 5 keys started at once: at no moment two of a key are under way."""
    definition = document(
        [{"id": "n", "type": "core/noop"}, {"id": "m", "type": "core/noop"}],
        [{"source": "n", "target": "m"}],
        name="crowd",
        concurrency={"key": "to_string(k)", "limit": 1},
    )
    await engine.workflows.create(LOCAL, definition)
    runs = await asyncio.gather(
        *(engine.instances.start(LOCAL, workflow_name="crowd", input={"k": i % 5}) for i in range(100))
    )
    spans: dict[int, list[tuple[int, int]]] = {}
    for i, run in enumerate(runs):
        events = await history(engine, run.instance_id)
        assert types(events)[-1] == "instance.completed"
        spans.setdefault(i % 5, []).append((events[1].change_seq, events[-1].change_seq))
    if any(begin == 0 for places in spans.values() for begin, _ in places):
        pytest.fail("events without a place in the project's order")
    for places in spans.values():
        ordered = sorted(places)
        assert all(end < begin for (_, end), (begin, _) in pairwise(ordered))


async def test_nobody_is_left_at_a_gate(engine: Engine) -> None:
    """Cancelling everything leaves nobody waiting for a place."""
    definition = waits("emptied", concurrency={"limit": 2})
    ids = [await started(engine, definition) for _ in range(20)]
    await engine.instances.cancel_many(LOCAL, All())
    for id in ids:
        assert types(await history(engine, id))[-1] == "instance.canceled"
    assert not await engine.database.read(admission.any_gated)
