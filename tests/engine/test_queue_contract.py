"""The contract of the queue, on every implementation: for Redis, who wakes and who takes are different processes'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from engine import queue as queues
from engine.arq_queue import BATCH, ArqQueue
from engine.queue import LocalQueue, Queue
from tests.redis import RedisServer

PATIENCE_S = 10.0
GPU = frozenset({"gpu", "eu"})


@dataclass(frozen=True, slots=True)
class Queues:
    """Makes the queues of the processes of one installation."""

    worker: Callable[[frozenset[str]], Awaitable[Queue]]
    waker: Queue
    #: In Redis, waits until a wake-up has arrived there (or anywhere).
    settled: Callable[[int], Awaitable[None]]


@pytest.fixture(params=["local", "arq"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Queues]:
    async with AsyncExitStack() as stack:
        if request.param == "local":
            one = LocalQueue()

            async def the_same(labels: frozenset[str]) -> Queue:
                return one

            async def at_once(count: int) -> None:
                assert len(one) == count

            yield Queues(the_same, one, at_once)
            return
        server: RedisServer = request.getfixturevalue("redis_for_all")
        prefix = server.prefix()

        async def started(queue: ArqQueue) -> ArqQueue:
            await queue.start()
            stack.push_async_callback(queue.close)
            return queue

        async def worker(labels: frozenset[str]) -> Queue:
            return await started(ArqQueue(server.url, prefix=prefix, labels=labels))

        async def in_redis(count: int) -> None:
            await until(lambda: server.command("ZCARD", f"{prefix}:queue") == count)

        yield Queues(worker, await started(ArqQueue(server.url, prefix=prefix, listen=False)), in_redis)


async def taken(queue: Queue, count: int) -> list[str]:
    """The next ids, as soon as there are so many."""
    ids: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(ids) < count:
            await queue.filled()
            ids += queue.take(count - len(ids))
    return ids


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what Redis holds sends no signal
            await asyncio.sleep(0.005)


async def waiting(queue: Queue, count: int) -> None:
    """Return when so many ids wait in this process."""
    await until(lambda: len(queue) >= count)


async def test_urgent_ids_come_first(shared: Queues) -> None:
    """Of those that wait, the ones with the highest priority are taken first, and equals in their order."""
    for number, priority in enumerate([5, 1, 10, 5, 10]):
        shared.waker.wake(f"i{number}", priority)
        await shared.settled(number + 1)
    worker = await shared.worker(frozenset())
    await waiting(worker, 5)
    assert await taken(worker, 5) == ["i2", "i4", "i0", "i3", "i1"]


async def test_old_ids_overtake_urgent_ones(shared: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has waited long enough comes before who is more urgent, so that nobody waits for ever."""
    for module in ("engine.queue", "engine.arq_queue"):
        monkeypatch.setattr(f"{module}.AGEING_S", queues.AGEING_S / 1e6)
    shared.waker.wake("old", 1)
    await shared.settled(1)
    await asyncio.sleep(0.01)  # what is measured here: time that passes
    shared.waker.wake("urgent", 10)
    await shared.settled(2)
    worker = await shared.worker(frozenset())
    await waiting(worker, 2)
    assert worker.take(2) == ["old", "urgent"]


async def test_doubles_are_one(shared: Queues) -> None:
    """An id that is woken fifty times while it waits is taken once."""
    for _ in range(50):
        shared.waker.wake("a")
    await shared.settled(1)
    worker = await shared.worker(frozenset())
    shared.waker.wake("b")
    assert sorted(await taken(worker, 2)) == ["a", "b"]
    assert len(worker) == 0


async def test_an_id_can_be_woken_again(shared: Queues) -> None:
    """An id that was taken may wait again: right away, and each time."""
    worker = await shared.worker(frozenset())
    for _ in range(20):
        shared.waker.wake("a")
        assert await taken(worker, 1) == ["a"]


async def test_no_more_than_asked_for(shared: Queues) -> None:
    """``take`` gives at most so many, and nothing where nothing waits."""
    worker = await shared.worker(frozenset())
    assert worker.take(5) == []
    for number in range(5):
        shared.waker.wake(f"i{number}")
    await waiting(worker, 5)
    assert len(worker.take(2)) == 2
    assert worker.take(0) == []
    assert len(worker) == 3
    assert len(worker.take(9)) == 3


async def test_ids_of_this_process(shared: Queues) -> None:
    """What a process finds by itself waits in it, and may be found twice."""
    worker = await shared.worker(frozenset())
    worker.wake_here("a")
    worker.wake_here("a")
    assert worker.take(9) == ["a"]


async def test_many_are_shared(shared: Queues) -> None:
    """Workers that take what they get have, all together, each id once, and none of them gets all."""
    workers = [await shared.worker(frozenset()) for _ in range(2)]
    expected = {f"i{number}" for number in range(10 * BATCH)}
    got: list[list[str]] = [[] for _ in workers]

    async def work(worker: Queue, ids: list[str]) -> None:
        while True:
            await worker.filled()
            ids += worker.take(5)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(worker, ids)) for worker, ids in zip(workers, got, strict=True)]
    for id in expected:
        shared.waker.wake(id)
    await until(lambda: sum(map(len, got)) >= len(expected))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(got[0] + got[1]) == sorted(expected)
    assert all(got)


async def test_labels_reach_who_has_them(shared: Queues) -> None:
    """An id for certain labels is taken by a worker with them, which also takes what is for anybody."""
    worker = await shared.worker(GPU)
    shared.waker.wake("for-gpu", labels=GPU)
    shared.waker.wake("for-all")
    assert sorted(await taken(worker, 2)) == ["for-all", "for-gpu"]


async def test_a_closed_queue_takes_everything(shared: Queues) -> None:
    """Waking on a queue that is closed, or closing it again, harms nothing."""
    await shared.waker.close()
    await shared.waker.close()
    shared.waker.wake("a")
