"""Attempts that one worker offers and another makes: two engines on one database, with a real Redis between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db.store import offers as store
from engine.access import LOCAL
from engine.arq_queue import ArqQueue
from engine.bus import LocalBus
from engine.engine import Engine
from engine.loading import claim_and_read
from flow import events as e
from flow import placing
from flow.errors import StorageUnavailable
from flow.states import SkipReason
from tests.engine.conftest import document, engine_on, history, started, types
from tests.engine.following import resting, row, until
from tests.engine.nodes import gate
from tests.redis import RedisServer

GPU = frozenset({"gpu"})


class House:
    """Workers that share a folder, a database, and a Redis."""

    def __init__(self, folder: Path, url: str, redis: RedisServer) -> None:
        self._url = url
        self._folder = folder
        self._redis = redis
        self._prefix = redis.prefix()
        self._bus = LocalBus()

    @asynccontextmanager
    async def worker(self, *labels: str, **options: Any) -> AsyncIterator[Engine]:
        """Whoever drives a run offers its nodes that ask for labels, so that it is known who makes them."""
        mine = frozenset(labels)
        queue = ArqQueue(self._redis.url, prefix=self._prefix, labels=mine)
        shared = {"alone": False, "labels": mine, "queue": queue, "bus": self._bus}
        async with engine_on(self._folder, self._url, **shared, **options) as engine:
            loader = engine.executor.loader
            loader._lane = lambda node: placing.OFFERED if node.runs_on else loader.lane(node)  # type: ignore[method-assign]
            yield engine


@pytest.fixture
def house(tmp_path: Path, postgres_url: str, redis_for_all: RedisServer) -> House:
    return House(tmp_path, postgres_url, redis_for_all)


def offered(id: str, type: str = "core/noop", **fields: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "runs_on": ["gpu"], **fields}


def gated(id: str, name: str, **fields: Any) -> dict[str, Any]:
    return offered(id, "test/gate", parameters={"gate": name}, **fields)


async def test_a_node_runs_where_its_labels_are_and_its_result_comes_back(house: House) -> None:
    """The driver lacks the label: the other worker makes the attempt, and what follows gets its output."""
    talk = offered("a", "test/talk", parameters={"lines": 3})
    after = {"id": "b", "type": "test/flaky", "parameters": {"succeeds_at": 1}}
    async with house.worker("gpu", "eu") as other, house.worker() as driver:
        await driver.workers._beat()
        id = await started(driver, document([talk, after], [{"source": "a", "target": "b"}]))
        events = await history(driver, id)
        kinds = types(events)
        first = [kind for kind in kinds if kind.endswith(" a")]
        assert first[:2] == ["node.scheduled a", "node.started a"]
        assert first[-1] == "node.completed a"
        assert {"node.log a", "node.progress a"} <= set(first)
        assert kinds[-1] == "instance.completed"
        begun = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeStarted)]
        assert {event.path for event in begun} == {"a", "b"}
        assert {event.worker for event in begun if event.path == "a"} == {other.worker}


async def test_without_a_worker_that_fits_the_run_waits_and_holds_nobody(house: House) -> None:
    """An offer that nobody can take keeps, and is taken by the first worker that comes with the label."""
    async with house.worker() as driver:
        id = await started(driver, document([offered("a", "test/talk", parameters={"lines": 3})]))
        await until(driver, id, e.NodeScheduled)
        await resting(driver, id)
        async with house.worker("gpu") as other:
            events = await history(driver, id)
            assert types(events)[-1] == "instance.completed"
            [begun] = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeStarted)]
            assert begun.worker == other.worker


async def test_a_cancelled_run_stops_the_work_of_others(house: House) -> None:
    """The other worker's handler is cancelled and cleans up before the run is CANCELED."""
    entered, tidied = gate("offered tidied")
    async with house.worker("gpu"), house.worker() as driver:
        tidy = offered("a", "test/tidy", parameters={"gate": "offered tidied"})
        id = await started(driver, document([tidy]))
        await entered.wait()
        await driver.instances.cancel(LOCAL, id)
        assert types(await history(driver, id))[-2:] == ["node.canceled a", "instance.canceled"]
        assert tidied.is_set()


async def test_cleaning_up_is_not_disturbed(house: House) -> None:
    """However often the holder hears that the attempt is not wanted, as at each renewal, it is cancelled once."""
    entered, tidied = gate("offered undisturbed")
    async with house.worker("gpu") as other, house.worker() as driver:
        tidy = offered("a", "test/tidy", parameters={"gate": "offered undisturbed"})
        id = await started(driver, document([tidy]))
        await entered.wait()
        await driver.instances.cancel(LOCAL, id)
        async with asyncio.timeout(10):
            while not tidied.is_set():
                for held in list(other.executor.offers._work):
                    other.executor.offers.stop_one(held)
                await asyncio.sleep(0)
        assert types(await history(driver, id))[-2:] == ["node.canceled a", "instance.canceled"]


async def test_an_attempt_stopped_before_its_first_step_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken and revoked in one turn of the loop: its place is free again, and its run ends."""
    async with house.worker("gpu") as other, house.worker() as driver:
        offers, room = other.executor.offers, other.executor.places.room()
        begin = offers._begin

        def begun(taken: store.Taken) -> None:
            begin(taken)
            offers.stop_one(taken.id)

        monkeypatch.setattr(offers, "_begin", begun)
        id = await started(driver, document([gated("a", "offered at once")]))
        await driver.instances.cancel(LOCAL, id)
        assert types(await history(driver, id))[-1] == "instance.canceled"
        assert other.executor.places.room() == room


async def test_a_result_that_cant_be_stored_fails_its_own_node(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps no other node's result back."""
    report = store.report

    def refuse(connection: Any, worker: str, reports: Any) -> Any:
        if any(isinstance(event, e.NodeCompleted) and event.path == "bad" for said in reports for event in said.events):
            raise ValueError("no database takes this")
        return report(connection, worker, reports)

    monkeypatch.setattr(store, "report", refuse)
    async with house.worker("gpu"), house.worker() as driver:
        good = offered("good", "test/talk", parameters={"lines": 3})
        bad = offered("bad", "test/talk", parameters={"lines": 3}, retry={"max": 1})
        id = await started(driver, document([bad, good]))
        events = await history(driver, id)
        [failed] = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeFailed)]
        assert (failed.path, failed.error.code) == ("bad", "INTERNAL")
        assert "no database takes this" in failed.error.message
        assert "node.completed good" in types(events) or "node.canceled good" in types(events)


async def test_a_cancelled_run_takes_back_what_nobody_took(house: House) -> None:
    """An offer without a taker is gone at once: its node never ran."""
    async with house.worker() as driver:
        id = await started(driver, document([offered("a", "test/talk", parameters={"lines": 3})]))
        await until(driver, id, e.NodeScheduled)
        await driver.instances.cancel(LOCAL, id)
        events = await history(driver, id)
        [skipped] = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeSkipped)]
        assert skipped.reason == SkipReason.INSTANCE_ENDED
        assert types(events)[-1] == "instance.canceled"
        assert not await driver.database.read(store.waiting)


async def test_an_attempt_whose_worker_died_is_made_again(house: House) -> None:
    """A lease that runs out is told to the run: the attempt is lost, and the next one is offered. Its late result is
    dropped."""
    entered, go = gate("offered lost")
    async with house.worker("gpu") as other, house.worker() as driver:
        id = await started(driver, document([gated("a", "offered lost")]))
        await entered.wait()
        entered.clear()
        await other.database.write(store.expire_all)
        driver.executor.tell(await driver.database.write(store.expire))
        await entered.wait()
        go.set()
        kinds = types(await history(driver, id))
        assert kinds.count("node.lost a") == 1
        assert kinds.count("node.completed a") == 1
        assert kinds.count("node.scheduled a") == 2


async def test_a_node_that_kills_its_workers_fails_alone(house: House) -> None:
    """After three deaths the node is given up with POISON; its run fails and nothing else does."""
    entered, _ = gate("offered poison")
    async with house.worker("gpu") as other, house.worker() as driver:
        id = await started(driver, document([gated("a", "offered poison")]))
        for _ in range(3):
            await entered.wait()
            entered.clear()
            await other.database.write(store.expire_all)
            driver.executor.tell(await driver.database.write(store.expire))
        events = await history(driver, id)
        [failed] = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeFailed)]
        assert failed.error.code == "POISON"
        assert failed.attempt == 3
        assert types(events)[-1] == "instance.failed"


async def test_a_failed_attempt_is_offered_again_when_its_time_comes(house: House) -> None:
    """Retries of an offered node follow its policy, as if it ran here."""
    retry = {"max": 3, "base": "10ms", "jitter": 0}
    flaky = offered("a", "test/flaky", parameters={"succeeds_at": 3}, retry=retry)
    async with house.worker("gpu"), house.worker() as driver:
        id = await started(driver, document([flaky]))
        kinds = types(await history(driver, id))
        assert kinds.count("node.scheduled a") == 3, kinds
        assert kinds.count("node.retrying a") == 2
        assert kinds[-1] == "instance.completed"


async def test_large_values_cross_by_the_artifact_store(house: House) -> None:
    """An input and an output that are too large for an event arrive whole."""
    large = {"id": "a", "type": "test/large", "parameters": {"size": 200_000}}
    back = offered("b", "test/large", parameters={"size": 300_000})
    edge = {"source": "a", "target": "b"}
    async with house.worker("gpu"), house.worker() as driver:
        id = await started(driver, document([large, back], [edge], output_mapping={"got": "$.nodes.b.output"}))
        events = await history(driver, id)
        assert types(events)[-1] == "instance.completed"
        [done] = [r.event for r in events if isinstance(r.event, e.NodeCompleted) and r.event.path == "b"]
        assert done.artifact is not None
        assert done.artifact.size > 300_000


async def test_a_large_value_that_did_not_arrive_fails_its_node(house: House, tmp_path: Path) -> None:
    """The workers don't share their folder, against the rules: the run says so, and is not stuck."""
    elsewhere = copy(house)
    elsewhere._folder = tmp_path / "elsewhere"
    elsewhere._folder.mkdir()
    large = offered("a", "test/large", parameters={"size": 300_000}, retry={"max": 1})
    async with elsewhere.worker("gpu") as other, house.worker() as driver:
        other.executor._max_instances = 0  # it makes attempts, and drives nothing
        other.executor._check_space()
        id = await started(driver, document([large]))
        events = await history(driver, id)
        [failed] = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeFailed)]
        assert failed.error.code == "ARTIFACT_MISSING"
        assert types(events)[-1] == "instance.failed"


async def test_offers_of_a_paused_run_stay(house: House) -> None:
    """No node of a paused run starts, wherever it would run; after the resumption it does."""
    async with house.worker() as driver:
        id = await started(driver, document([offered("a", "test/talk", parameters={"lines": 3})]))
        await until(driver, id, e.NodeScheduled)
        await driver.instances.pause(LOCAL, id)
        await until(driver, id, e.InstancePaused)
        taken = await driver.database.write(store.claim, "somebody", 15.0, GPU, {"async": 10}, 0)
        assert taken == []
        await driver.instances.resume(LOCAL, id)
        async with house.worker("gpu"):
            assert types(await history(driver, id))[-1] == "instance.completed"


async def test_a_wide_fan_out_is_shared(house: House) -> None:
    """More than a hundred nodes that wait long for a place are offered, and the other worker makes some of them."""
    entered, go = gate("wide")
    nodes = [{"id": f"n{i}", "type": "test/gate", "parameters": {"gate": "wide"}} for i in range(150)]
    async with house.worker() as other, house.worker() as driver:
        driver.executor.places._room["async"] = 1
        id = await started(driver, document(nodes))
        await entered.wait()
        await until(driver, id, e.NodeScheduled)
        go.set()
        events = await history(driver, id)
        assert types(events)[-1] == "instance.completed"
        begun = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeStarted)]
        assert {event.worker for event in begun} == {driver.worker, other.worker}
        assert len([kind for kind in types(events) if kind.startswith("node.completed")]) == 150


async def test_a_draining_worker_gives_its_attempts_to_others(house: House) -> None:
    """What doesn't finish within the grace is handed over to the next, however often: nobody died of it."""
    entered, go = gate("offered drained")
    async with house.worker() as driver:
        id = await started(driver, document([gated("a", "offered drained")]))
        for _ in range(placing.MAX_DEATHS):
            async with house.worker("gpu"):
                await entered.wait()
                entered.clear()
        go.set()
        async with house.worker("gpu"):
            events = await history(driver, id)
            lost = [recorded.event for recorded in events if isinstance(recorded.event, e.NodeLost)]
            assert [event.handed_over for event in lost] == [True] * placing.MAX_DEATHS
            assert types(events)[-1] == "instance.completed"


async def test_what_a_draining_worker_had_asked_for_is_given_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim was under way when it was asked to stop: another takes the offer, and nothing is lost."""
    asked, claim = asyncio.Event(), store.claim
    _, go = gate("offered asked")
    async with house.worker() as driver:
        async with house.worker("gpu") as leaving:

            def claims(connection: Any, worker: str, *more: Any) -> Any:
                if taken := claim(connection, worker, *more):
                    leaving.executor.offers._draining = True
                    asked.set()
                return taken

            monkeypatch.setattr(store, "claim", claims)
            id = await started(driver, document([gated("a", "offered asked")]))
            await asked.wait()
            monkeypatch.setattr(store, "claim", claim)
        go.set()
        async with house.worker("gpu"):
            kinds = types(await history(driver, id))
            assert kinds[-1] == "instance.completed"
            assert "node.lost a" not in kinds


async def fence_after_a_while(engine: Engine, id: str) -> int:
    """How often the run was claimed, after enough turns of the loop to claim it many times."""
    for _ in range(30):
        engine.executor.wake(id)
        fence = (await row(engine, id))["fence"]
    return int(fence)


async def test_who_drains_claims_nothing_more(house: House) -> None:
    """Nor what it gave back itself, though nobody else is there to take it. Whoever comes later does."""
    entered, go = gate("draining")
    chain: list[dict[str, Any]] = [
        {"id": "a", "type": "test/gate", "parameters": {"gate": "draining"}},
        {"id": "b", "type": "core/noop"},
    ]
    async with house.worker() as leaving:
        id = await started(leaving, document(chain, [{"source": "a", "target": "b"}]))
        await entered.wait()
        leaving.drain()
        go.set()
        await resting(leaving, id)
        fence = (await row(leaving, id))["fence"]
        assert await fence_after_a_while(leaving, id) == fence
        async with house.worker() as other:
            kinds = types(await history(other, id))
            assert kinds[-1] == "instance.completed"
            assert "node.lost a" not in kinds


async def test_a_claim_under_way_at_a_stop_is_given_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored, and the answer comes when the worker is told to stop: nobody has to wait for its lease to end."""
    async with house.worker() as api:
        api.drain()
        async with house.worker() as leaving:
            write, claimed, told = leaving.database.write, asyncio.Event(), asyncio.Event()

            async def slow(change: Any, *arguments: Any, **options: Any) -> Any:
                answer = await write(change, *arguments, **options)
                if change is claim_and_read and answer.claims:
                    claimed.set()
                    await told.wait()
                return answer

            monkeypatch.setattr(leaving.database, "write", slow)
            id = await started(api, document([{"id": "a", "type": "core/noop"}]))
            await claimed.wait()
            stopping = asyncio.create_task(leaving.stop())
            while not leaving.executor.draining:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0)
            told.set()
            await stopping
        assert (await row(api, id))["lease_until"] is None


async def test_a_run_past_its_time_waits_for_whom_it_told_to_stop(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not claimed again and again until then: what was due has been done."""
    entered, _ = gate("offered late")
    async with house.worker("gpu") as other, house.worker() as driver:
        told, stop_one = asyncio.Event(), other.executor.offers.stop_one
        monkeypatch.setattr(other.executor.offers, "stop_one", lambda id: told.set())
        id = await started(driver, document([gated("a", "offered late")]), timeout=timedelta(milliseconds=300))
        await entered.wait()
        await until(driver, id, e.NodeStarted)
        await told.wait()
        await resting(driver, id)
        fence = (await row(driver, id))["fence"]
        for _ in range(30):
            after = (await row(driver, id))["fence"]
        assert after == fence
        for work in list(other.executor.offers._work):
            stop_one(work)
        assert types(await history(driver, id))[-2:] == ["node.canceled a", "instance.timed_out"]


async def test_what_is_done_is_kept_until_it_is_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database takes no result its attempt is not given to others: it would be made twice."""
    _, go = gate("offered unwritten")
    report, refused = store.report, asyncio.Event()

    def refuses(connection: Any, worker: str, reports: Any) -> Any:
        if any(one.over for one in reports):
            refused.set()
            raise StorageUnavailable("Not now.")
        return report(connection, worker, reports)

    async with house.worker("gpu") as other, house.worker() as driver:
        monkeypatch.setattr(store, "report", refuses)
        id = await started(driver, document([gated("a", "offered unwritten")]))
        go.set()
        await refused.wait()
        await driver.database.write(store.expire_all)
        await other.executor.offers._renew()
        assert not await driver.database.read(store.expired)
        monkeypatch.setattr(store, "report", report)
        kinds = types(await history(driver, id))
        assert kinds[-1] == "instance.completed"
        assert kinds.count("node.started a") == 1
        assert other.executor.offers._unwritten == {}


async def test_no_offer_outlives_its_run(house: House) -> None:
    """Whatever became of them, no rows are left."""
    async with house.worker("gpu"), house.worker() as driver:
        ids = [await started(driver, document([offered("a", "test/talk", parameters={"lines": 3})])) for _ in range(20)]
        await asyncio.gather(*(history(driver, id) for id in ids))
        assert not await driver.database.read(store.waiting)
        assert await driver.database.write(store.claim, "x", 15.0, GPU, {"async": 10}, 9) == []
