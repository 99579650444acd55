"""The node result cache: equal work is done once, and never for another project."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db.session import Database
from engine import cache, clock
from engine.access import LOCAL
from engine.artifacts import ArtifactStore
from engine.cache import ResultCache
from engine.calls import Broke, Done, Outcome
from engine.engine import Engine
from flow import events as e
from flow.errors import Category, Failure
from tests.engine.conftest import document, history, started
from tests.engine.nodes import gate

HOUR = timedelta(hours=1)
PROJECT = "proj-default"


class Work:
    """Counts how often it is done; each time it waits to be let go on."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.done = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> Outcome:
        self.done += 1
        self.begun.set()
        await self.go_on.wait()
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]


@pytest.fixture
async def results(engine: Engine) -> ResultCache:
    return ResultCache(engine.database, engine.artifacts)


def test_a_key_is_the_same_for_equal_work_only() -> None:
    """The order of keys in objects makes no difference; type, version, parameters and input each do."""
    same = cache.key("a/b", "1.0.0", {"x": 1, "y": [1, {"p": 1, "q": 2}]}, {"i": 1})
    assert same == cache.key("a/b", "1.0.0", {"y": [1, {"q": 2, "p": 1}], "x": 1}, {"i": 1})
    others = {
        cache.key("a/c", "1.0.0", {"x": 1, "y": [1, {"p": 1, "q": 2}]}, {"i": 1}),
        cache.key("a/b", "1.0.1", {"x": 1, "y": [1, {"p": 1, "q": 2}]}, {"i": 1}),
        cache.key("a/b", "1.0.0", {"x": 1, "y": [{"p": 1, "q": 2}, 1]}, {"i": 1}),
        cache.key("a/b", "1.0.0", {"x": 1, "y": [1, {"p": 1, "q": 2}]}, {"i": 2}),
        cache.key_by("a/b", "1.0.0", "x"),
    }
    assert len(others) == 5
    assert same not in others


async def test_equal_work_at_once_is_done_once(results: ResultCache) -> None:
    """Those who come while it is under way wait for it, and get its result."""
    work = Work(Done({"n": 1}))
    first = asyncio.create_task(results.outcome(PROJECT, "k", HOUR, "inst-1", work))
    await work.begun.wait()
    others = [asyncio.create_task(results.outcome(PROJECT, "k", HOUR, f"inst-{i}", work)) for i in range(2, 50)]
    await asyncio.sleep(0)
    work.go_on.set()
    assert await first == Done({"n": 1})
    assert set(map(repr, await asyncio.gather(*others))) == {repr(Done({"n": 1}, cached=True))}
    assert work.done == 1


async def test_another_project_does_its_own_work(engine: Engine, results: ResultCache) -> None:
    """A result never leaves its project, neither under way nor kept."""

    def other_project(connection: Any) -> None:
        from db.store import access

        access.ensure_project(connection, "proj-other", "other", clock.now())

    await engine.database.write(other_project)
    work = Work(Done(1))
    work.go_on.set()
    assert await results.outcome(PROJECT, "k", HOUR, "inst-1", work) == Done(1)
    assert await results.outcome("proj-other", "k", HOUR, "inst-2", work) == Done(1)
    assert await results.outcome("proj-other", "k", HOUR, "inst-3", work) == Done(1, cached=True)
    assert work.done == 2


async def test_a_failure_is_not_kept_and_the_next_one_tries(results: ResultCache) -> None:
    """Of those who wait for a failing one, the first tries for itself, and the rest get its result."""
    broke = Broke(Failure("X", Category.CODE, "no"))
    work = Work(broke, Done(2))
    first = asyncio.create_task(results.outcome(PROJECT, "k", HOUR, "inst-1", work))
    await work.begun.wait()
    others = [asyncio.create_task(results.outcome(PROJECT, "k", HOUR, f"inst-{i}", work)) for i in range(3)]
    await asyncio.sleep(0)
    work.go_on.set()
    assert await first == broke
    assert sorted(map(repr, await asyncio.gather(*others))) == sorted(
        map(repr, [Done(2), Done(2, cached=True), Done(2, cached=True)])
    )


async def test_who_gives_up_waiting_or_working_stops_nobody_else(results: ResultCache) -> None:
    """Cancelling the one that works lets the next one work; cancelling one that waits changes nothing."""
    work = Work(Done(3))
    first = asyncio.create_task(results.outcome(PROJECT, "k", HOUR, "inst-1", work))
    await work.begun.wait()
    second, third = (asyncio.create_task(results.outcome(PROJECT, "k", HOUR, "inst-2", work)) for _ in range(2))
    await asyncio.sleep(0)
    third.cancel()
    first.cancel()
    work.go_on.set()
    assert await second == Done(3)
    assert work.done == 2
    assert first.cancelled() or isinstance(await asyncio.gather(first, return_exceptions=True), list)


async def test_a_result_expires(results: ResultCache) -> None:
    """Past its time to live the work is done again."""
    work = Work(Done(4))
    work.go_on.set()
    await results.outcome(PROJECT, "k", timedelta(microseconds=1), "inst-1", work)
    assert await results.outcome(PROJECT, "k", HOUR, "inst-2", work) == Done(4)
    assert work.done == 2


async def test_a_large_result_whose_file_is_gone_is_made_anew(sqlite_database: Database, tmp_path: Path) -> None:
    """What is in the artifact store is found again, under an id of its own, as long as it is there."""
    from db.store import access

    await sqlite_database.write(access.ensure_project, PROJECT, "default", clock.now())
    artifacts = ArtifactStore(tmp_path / "artifacts")
    results = ResultCache(sqlite_database, artifacts)
    artifact = artifacts.put_json(["large"])
    work = Work(Done(None, artifact=artifact))
    work.go_on.set()
    await results.outcome(PROJECT, "k", HOUR, "inst-1", work)
    again = await results.outcome(PROJECT, "k", HOUR, "inst-2", work)
    assert isinstance(again, Done)
    assert again.artifact is not None
    assert again.artifact.sha256 == artifact.sha256
    assert again.artifact.id != artifact.id
    artifacts.path(artifact.sha256).unlink()
    await results.outcome(PROJECT, "k", HOUR, "inst-3", work)
    assert work.done == 2


async def test_a_node_with_a_cache_says_so(engine: Engine) -> None:
    """The second run takes the first one's result: ``cached`` in the event and the row; another input does not."""
    _, go_on = gate("cache-says-so")
    go_on.set()
    node = {"id": "a", "type": "test/gate", "parameters": {"gate": "cache-says-so"}, "cache": {"ttl": "1h"}}

    async def completed(input: Any) -> e.NodeCompleted:
        events = await history(engine, await started(engine, document([node]), input=input))
        return next(r.event for r in events if isinstance(r.event, e.NodeCompleted))

    first, second, third = await completed({"n": 1}), await completed({"n": 1}), await completed({"n": 2})
    assert (first.cached, second.cached, third.cached) == (False, True, False)
    assert first.output == second.output


async def test_a_chosen_key_tells_results_apart(engine: Engine) -> None:
    """With ``cache.key`` only that matters, not the input."""
    node = {
        "id": "a",
        "type": "core/transform",
        "parameters": {"output": "{{ n }}"},
        "cache": {"ttl": "1h", "key": "{{ customer }}"},
    }
    outputs = []
    for input in ({"n": 1, "customer": "x"}, {"n": 2, "customer": "x"}, {"n": 3, "customer": "y"}):
        events = await history(engine, await started(engine, document([node]), input=input))
        outputs.append(events[-1].event)
    assert outputs == [
        e.InstanceCompleted(output={"a": 1}),
        e.InstanceCompleted(output={"a": 1}),
        e.InstanceCompleted(output={"a": 3}),
    ]
    assert LOCAL.project_id == PROJECT
