"""What only a program over HTTP may do: answer with the result itself, be slow about it, or talk nonsense later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.servers.contract import Done, Failed, ServerFailed
from tests.engine.servers.places import HttpPlace, http, ignored


@pytest.fixture
async def place(engine: Engine, tmp_path: Path) -> AsyncIterator[HttpPlace]:
    async with AsyncExitStack() as stack:
        yield await http(engine, tmp_path, stack)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is given up at once."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.0, 0.0))


async def test_the_answer_to_the_post_may_be_the_result(place: HttpPlace) -> None:
    """Any JSON with 200; it is followed without a further question."""
    place.double.at_once = True
    client = place.client()
    ref = await client.submit(place.work("w1"))
    assert await client.follow(ref, ignored) == Done({"made": {"n": "w1"}})


async def test_an_answer_that_takes_its_time(place: HttpPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitting does not wait for it; following does, and the work is posted once."""
    monkeypatch.setattr("engine.servers.http.SUBMIT_S", 0.05)
    place.double.at_once, place.double.fault = True, "slow"
    client = place.client()
    ref = await client.submit(place.work("w1"))
    assert await client.submit(place.work("w1")) == ref
    following = asyncio.create_task(client.follow(ref, ignored))
    place.double.release.set()
    assert await following == Done({"made": {"n": "w1"}})
    assert place.double.posts == 1


async def test_work_whose_answer_is_still_to_come_can_be_cancelled(
    place: HttpPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its follower is told, whether it waits already or comes later; it ends by itself, and not by being cancelled."""
    monkeypatch.setattr("engine.servers.http.SUBMIT_S", 0.05)
    place.double.at_once, place.double.fault = True, "slow"
    client = place.client()
    first, second = await client.submit(place.work("w1")), await client.submit(place.work("w2"))
    following = asyncio.create_task(client.follow(first, ignored))
    await asyncio.sleep(0)
    place.double.release.set()
    await asyncio.gather(client.cancel(first), client.cancel(second))
    for ended in (await following, await client.follow(second, ignored)):
        assert isinstance(ended, Failed)
        assert ended.failure.code == "CANCELED"


async def test_what_is_posted(place: HttpPlace) -> None:
    """The id, the whole workflow, the input, and where to report."""
    work = replace(
        place.work("w1"),
        timeout=timedelta(seconds=90),
        file=Path("/in/a.png"),
        parameters={"size": 2},
        callback={"url": "http://us/graphql", "token": "once"},
    )
    await place.client().submit(work)
    posted = place.double.works["w1"]["posted"]
    assert posted["workflow"]["name"] == "any"
    assert posted["workflow"]["definition"]["name"] == "any"
    del posted["workflow"]
    assert posted == {
        "id": "w1",
        "input": {"n": "w1"},
        "parameters": {"size": 2},
        "file": "/in/a.png",
        "priority": 5,
        "timeout": 90.0,
        "callback": {"url": "http://us/graphql", "token": "once"},
    }


async def test_a_work_refused_is_the_works_own_fault(place: HttpPlace) -> None:
    """400 and its like: another server would say the same. 401 is the token's fault, and another may take it."""
    for fault, lost in (("400", False), ("422", False), ("401", True), ("403", True), ("404", True), ("502", True)):
        with pytest.raises(ServerFailed, match="not now") as refusal:
            await place.faulty(fault).submit(place.work("w1"))
        assert refusal.value.failed.server_lost is lost, fault


@pytest.mark.parametrize("fault", ["html", "dead", "503", "endless", "nul"])
async def test_a_server_that_fails_for_a_moment_keeps_its_work(
    place: HttpPlace, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is followed on when it answers again; only after several tries is the server lost to it."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.0, 0.05, 0.1, 0.5, 1.0))
    client = place.client()
    ref = await client.submit(place.work("w1"))
    place.double.fault = fault
    following = asyncio.create_task(client.follow(ref, ignored))
    place.double.asked.clear()
    if fault != "dead":
        await place.double.asked.wait()
    place.double.fault = None
    await place.finish("w1", ref)
    async with asyncio.timeout(20):
        assert isinstance(await following, Done)


async def test_a_status_that_is_none(place: HttpPlace) -> None:
    """A server that says what no server says is lost to the work."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    place.double.works["w1"]["status"] = "purple"
    ended = await client.follow(ref, ignored)
    assert isinstance(ended, Failed)
    assert ended.server_lost
    assert "'purple'" in ended.failure.message


async def test_files_elsewhere_are_not_fetched(place: HttpPlace) -> None:
    """A file's address is a path on the server itself; another host, or no path, is refused when it is fetched."""
    client = place.client()
    for number, url in enumerate(["http://127.0.0.1:1/x", "//127.0.0.1:1/x", "file:///etc/passwd", 7, "/a b", None]):
        ref = await client.submit(place.work(f"w{number}"))
        place.double.finish(ref, None, [{"name": "x", "url": url}])
        ended = await client.follow(ref, ignored)
        assert isinstance(ended, Done)
        [file] = ended.files
        with pytest.raises(ServerFailed, match="can be fetched"):
            [piece async for piece in client.fetch(ref, file)]
