"""Processes die, sleep and are told to stop: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.live.chaos.load import Load, go, held, holder, lines, step
from tests.live.cluster import START, TROUBLE, Cluster
from tests.live.proxy import Reply


async def test_a_worker_killed_around_its_commit(cluster: Cluster, tmp_path: Path) -> None:
    """Killed before the commit of a node, between the commit and its reply, and after it: another worker goes on, and
    does again only what was not committed.
    """
    scenes = []
    for reply in Reply:
        file = tmp_path / reply.name
        id = await cluster.run(held(file, "killed", step("core/noop", "next")))
        await lines(file, 1)
        worker = await holder(cluster, id)
        strike = partial(worker.send_signal, signal.SIGKILL)
        hit = worker.database.at_commit("insert into events", reply, strike, about=id)
        go(file)
        assert await asyncio.to_thread(hit.wait), reply
        scenes.append((reply, file, id))
    await cluster.revive()
    for reply, file, id in scenes:
        assert (await cluster.ended(id))["status"] == "COMPLETED"
        attempts = len(await lines(file, 1))
        assert attempts >= 2 if reply is Reply.NEVER_SENT else attempts == 1, reply


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "cut"])
async def test_an_api_process_lost_before_its_reply(cluster: Cluster, dies: bool) -> None:
    """Killed, or merely cut off, after the commit of a new run and before its reply and wake-up: the run goes on, and
    the same key gives the same run.
    """
    name = f"unheard-{dies}"
    workflow = await cluster.store({**held(Path("/"), name), "nodes": [step("core/noop")], "edges": []})
    api, other = cluster.apis
    hit = api.database.at_commit(
        "insert into instances", Reply.LOST, (lambda: api.send_signal(signal.SIGKILL)) if dies else (lambda: None)
    )
    given = {"workflow": {"id": workflow}, "idempotencyKey": name}
    with pytest.raises(TROUBLE):
        await api.graphql(START, {"input": given})
    assert await asyncio.to_thread(hit.wait)
    [(id,)] = await cluster.sql("SELECT id FROM instances WHERE idempotency_key = :name", name=name)
    again = (await other.graphql(START, {"input": given}))["instanceStart"]
    assert (again["instance"]["id"], again["created"]) == (id, False)
    assert (await cluster.ended(id))["status"] == "COMPLETED"


async def test_sigterm_under_load(cluster: Cluster) -> None:
    """A worker and an API process that are told to stop exit with 0, and everything that they had is done."""
    load = await Load(cluster, "sigterm").prepare()
    await load.add(20)
    adding = asyncio.create_task(load.add(20))
    codes = tuple(await asyncio.gather(cluster.workers[0].stop(), cluster.apis[0].stop()))
    await adding
    assert codes == (0, 0)
    await load.complete()


async def test_a_worker_that_sleeps_past_its_lease(cluster: Cluster, tmp_path: Path) -> None:
    """Stopped by SIGSTOP, its run goes to another worker; awake again it finishes its node, and writes nothing."""
    file = tmp_path / "held"
    id = await cluster.run(held(file, "sleeper"))
    await lines(file, 1)
    sleeper = await holder(cluster, id)
    sleeper.freeze()
    await lines(file, 2)  # another one has it
    assert await holder(cluster, id) is not sleeper
    sleeper.thaw()
    go(file)
    assert (await cluster.ended(id))["output"]["hold"]["attempt"] >= 2


async def test_a_worker_that_is_cut_off(cluster: Cluster, tmp_path: Path) -> None:
    """Past its lease it writes nothing more either, though it finishes its node while nobody hears it."""
    file = tmp_path / "held"
    id = await cluster.run(held(file, "cut-off"))
    await lines(file, 1)
    lost = await holder(cluster, id)
    lost.database.cut()
    await lines(file, 2)
    assert await holder(cluster, id) is not lost
    go(file)
    assert (await cluster.ended(id))["output"]["hold"]["attempt"] >= 2
    lost.database.heal()
