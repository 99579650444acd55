"""What every type of server promises: one suite, run on each of them.

A ``Place`` is a server of one type with the means to decide what becomes of its work. ComfyUI's is in
``tests/engine/servers/comfy.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.engine import Engine
from engine.servers.contract import MAX_ANSWER, Done, Failed, OutputFile, ServerClient, ServerFailed
from flow.errors import Category
from flow.servers import CheckOutcome
from tests.engine.servers.places import PLACES, Place, ignored

KINDS = sorted(PLACES)
#: Those that are somebody else's program, which may be dead or lying.
REMOTE = sorted(set(PLACES) - {"local"})


@pytest.fixture
async def place(engine: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """A server of the type that the test asks for."""
    async with AsyncExitStack() as stack:
        yield await PLACES[request.param](engine, tmp_path, stack)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is given up at once."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.0, 0.0))


every = pytest.mark.parametrize("place", KINDS, indirect=True)
remote = pytest.mark.parametrize("place", REMOTE, indirect=True)


async def followed(client: ServerClient, ref: str) -> Done | Failed:
    async with asyncio.timeout(30):
        return await client.follow(ref, ignored)


async def content(client: ServerClient, ref: str, file: OutputFile) -> bytes:
    return b"".join([piece async for piece in client.fetch(ref, file)])


@every
async def test_a_server_that_is_well(place: Place) -> None:
    """OK, with the time that it took."""
    checked = await place.client().check()
    assert checked.outcome is CheckOutcome.OK, checked
    assert checked.latency_ms is not None
    assert checked.latency_ms >= 0


@every
async def test_work_is_done_and_its_files_fetched(place: Place) -> None:
    """What the work made comes back: the output, and the bytes of each file."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    await place.finish("w1", ref)
    ended = await followed(client, ref)
    assert isinstance(ended, Done), ended
    place.check_output(ended.output)
    [file] = ended.files
    assert await content(client, ref, file) == place.content


@every
async def test_the_same_work_is_never_done_twice(place: Place) -> None:
    """Submitted again, by this process or by another one, it is the same work, also after it has ended."""
    work = place.work("w1")
    first, second = await asyncio.gather(place.client().submit(work), place.client().submit(work))
    assert first == second
    await place.finish("w1", first)
    assert isinstance(await followed(place.client(), first), Done)
    assert await place.client().submit(work) == first
    assert isinstance(await followed(place.client(), first), Done)
    assert await place.count() == 1


@every
async def test_work_is_followed_after_a_restart(place: Place) -> None:
    """Another client, made from the server's row alone, follows by the reference; so does one that comes late."""
    ref = await place.client().submit(place.work("w1"))
    following = asyncio.create_task(place.client().follow(ref, ignored))
    await place.started("w1", ref)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await place.finish("w1", ref)
    assert isinstance(await followed(place.client(), ref), Done)
    assert isinstance(await followed(place.client(), ref), Done)


@every
async def test_works_are_kept_apart(place: Place) -> None:
    """Two works at once end each with its own result."""
    client = place.client()
    a, b = await client.submit(place.work("a")), await client.submit(place.work("b"))
    assert a != b
    both = asyncio.gather(followed(client, a), followed(client, b))
    await place.fail("b", b)
    await place.finish("a", a)
    of_a, of_b = await both
    assert isinstance(of_a, Done)
    assert isinstance(of_b, Failed)


@every
async def test_work_that_fails_is_the_works_own_fault(place: Place) -> None:
    """The reason comes back, and the server is not called lost."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    await place.fail("w1", ref)
    ended = await followed(client, ref)
    assert isinstance(ended, Failed)
    assert not ended.server_lost
    assert ended.failure.code
    assert place.reason in ended.failure.message


@every
async def test_cancelled_work_ends_as_cancelled(place: Place) -> None:
    """The work stops at the server; cancelling again, or what is unknown, is no error."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    await place.started("w1", ref)
    following = asyncio.create_task(followed(client, ref))
    await client.cancel(ref)
    ended = await following
    assert isinstance(ended, Failed)
    assert (ended.failure.category, ended.server_lost) == (Category.CANCELED, False)
    await client.cancel(ref)
    await client.cancel(place.unknown)


@every
async def test_work_that_the_server_forgot_is_lost(place: Place) -> None:
    """It may be given to another server."""
    ended = await followed(place.client(), place.unknown)
    assert isinstance(ended, Failed)
    assert ended.server_lost


@every
async def test_a_file_that_is_not_there(place: Place) -> None:
    """Names and places that the server never gave, or that lead elsewhere, are refused."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    await place.finish("w1", ref)
    for locator in place.bad_locators:
        with pytest.raises(ServerFailed) as refusal:
            await content(client, ref, OutputFile("../../x.png", locator))
        assert not refusal.value.failed.server_lost


@every
async def test_progress_is_told(place: Place) -> None:
    """Between 0 and 1, while the work goes on."""
    client = place.client()
    ref = await client.submit(place.work("w1"))
    told: list[float | None] = []
    heard = asyncio.Event()

    def report(fraction: float | None, message: str) -> None:
        told.append(fraction)
        heard.set()

    following = asyncio.create_task(client.follow(ref, report))
    async with asyncio.timeout(20):
        await heard.wait()
    await place.finish("w1", ref)
    await following
    assert all(each is None or 0 <= each <= 1 for each in told)


@remote
async def test_a_server_that_answers_wrongly(place: Place) -> None:
    """A check says so; work that is submitted or followed there is not at fault."""
    for fault in ("html", "redirect", "endless", "lying", "404", "500"):
        await answers_wrongly(place, fault)


async def answers_wrongly(place: Place, fault: str) -> None:
    client = place.faulty(fault)
    checked = await client.check()
    assert checked.outcome is CheckOutcome.WRONG_ANSWER
    assert checked.message
    assert fault != "redirect" or "redirects to" in checked.message
    assert len(checked.message) < 1_000 < MAX_ANSWER
    with pytest.raises(ServerFailed) as refusal:
        await client.submit(place.work("w1"))
    assert refusal.value.failed.server_lost, refusal.value.failed
    ended = await followed(client, place.unknown)
    assert isinstance(ended, Failed)
    assert ended.server_lost


@remote
async def test_a_server_that_is_gone(place: Place) -> None:
    """Nobody answers, or somebody hangs up: REFUSED, and the work may go elsewhere."""
    for client in (place.gone(), place.faulty("dead")):
        checked = await client.check()
        assert (checked.outcome, checked.latency_ms) == (CheckOutcome.REFUSED, None)
        with pytest.raises(ServerFailed) as refusal:
            await client.submit(place.work("w1"))
        assert refusal.value.failed.server_lost
    ended = await followed(place.gone(), place.unknown)
    assert isinstance(ended, Failed)
    assert ended.server_lost
    with pytest.raises(ServerFailed):
        await place.gone().cancel(place.unknown)


@remote
async def test_a_server_that_is_silent(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check ends by itself, within its time."""
    monkeypatch.setattr(f"{type(place.gone()).__module__}.CHECK_S", 0.2)
    checked = await place.faulty("slow").check()
    assert checked.outcome is CheckOutcome.TIMEOUT


@remote
async def test_a_server_that_asks_for_patience(place: Place) -> None:
    """503 and 429 put the work off, for as long as the server says, and blame nobody."""
    for status in ("503", "429"):
        with pytest.raises(ServerFailed) as refusal:
            await place.faulty(status).submit(place.work("w1"))
        failed = refusal.value.failed
        assert (failed.failure.category, failed.failure.retry_after_seconds) == (Category.RATE_LIMIT, 7.0)
        assert not failed.server_lost


async def test_a_definition_is_refused_before_it_runs(engine: Engine, tmp_path: Path) -> None:
    """An input that does not fit is the work's own fault on this engine and on another one alike."""
    async with AsyncExitStack() as stack:
        for kind in ("local", "mirrorflow"):
            place = await PLACES[kind](engine, tmp_path, stack)
            bad: Any = replace(place.work("bad"), input={"gate": 7})
            with pytest.raises(ServerFailed) as refusal:
                await place.client().submit(bad)
            assert (refusal.value.failed.failure.category, refusal.value.failed.server_lost) == (
                Category.VALIDATION,
                False,
            )
