"""Queue and bus while Redis dies, forgets, hangs, or holds what somebody else wrote."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import structlog

from engine import arq_queue, redis
from engine.arq_queue import BATCH, ArqQueue
from engine.redis_bus import RedisBus
from tests.redis import RedisServer

PATIENCE_S = 20.0
PREFIX = "mirrorflow"
QUEUE = f"{PREFIX}:queue"
Queues = Callable[..., Awaitable[ArqQueue]]
Buses = Callable[[], Awaitable[RedisBus]]


@pytest.fixture
async def queues(redis_server: RedisServer) -> AsyncIterator[Queues]:
    """Starts a queue, as a process of its own would."""
    async with AsyncExitStack() as stack:

        async def queue(*, listen: bool = True) -> ArqQueue:
            made = ArqQueue(redis_server.url, prefix=PREFIX, listen=listen)
            await made.start()
            stack.push_async_callback(made.close)
            return made

        yield queue


@pytest.fixture
async def buses(redis_server: RedisServer) -> AsyncIterator[Buses]:
    """Starts a bus, as a process of its own would."""
    async with AsyncExitStack() as stack:

        async def bus() -> RedisBus:
            made = RedisBus(redis_server.url, prefix=PREFIX)
            await made.start()
            stack.push_async_callback(made.close)
            return made

        yield bus


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what Redis holds sends no signal
            await asyncio.sleep(0.005)


async def delivered(waker: ArqQueue, worker: ArqQueue, id: str) -> None:
    """Return when what the one wakes is taken by the other."""
    got: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while id not in got:
            waker.wake(id)
            try:
                async with asyncio.timeout(0.5):
                    await worker.filled()
            except TimeoutError:
                continue
            got += worker.take(100)


def left(server: RedisServer) -> int:
    return int(server.command("ZCARD", QUEUE))


def killed(server: RedisServer) -> None:
    server.kill()
    server.start()


def flushed(server: RedisServer) -> None:
    server.flush()


def broken(server: RedisServer) -> None:
    """Keys of other types in the place of ours."""
    for key in (QUEUE, f"{QUEUE}:bell"):
        server.command("SET", key, "garbage")


@pytest.mark.parametrize("fault", [killed, flushed, broken])
async def test_the_queue_outlives_it(
    queues: Queues, redis_server: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    """After Redis was killed, emptied or scribbled on, wake-ups arrive again, with no hand laid on either process."""
    waker, worker = await queues(listen=False), await queues()
    await delivered(waker, worker, "before")
    fault(redis_server)
    await delivered(waker, worker, "after")
    await until(lambda: left(redis_server) == 0)


async def test_wake_ups_wait_for_redis(queues: Queues, redis_server: RedisServer) -> None:
    """While Redis is away a worker's own wake-ups wait in it, another's until Redis is back; it is told in one line."""
    waker, worker = await queues(listen=False), await queues()
    await delivered(waker, worker, "before")
    redis_server.kill()
    with structlog.testing.capture_logs() as logs:
        for number in range(50):
            waker.wake(f"theirs-{number}")
        worker.wake("mine")
        await worker.filled()
        assert worker.take(1) == ["mine"]
        await until(lambda: any(line["event"] == "queue.telling.redis_lost" for line in logs))
        redis_server.start()
        got: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(got) < 50:
                await worker.filled()
                got += worker.take(100)
    assert sorted(got) == sorted(f"theirs-{number}" for number in range(50))
    lost = [line for line in logs if line["event"].endswith("redis_lost")]
    assert len(lost) <= 3  # two processes tell, one hears


async def test_garbage_is_dropped_and_told(queues: Queues, redis_server: RedisServer) -> None:
    """What somebody else wrote into the queue is never run or unpickled: one line tells of it, and work goes on."""
    texts = [
        b"{",
        b"\x80\x04\x95garbage",
        pickle.dumps({"t": None, "f": "wake", "a": ("evil", 5), "k": {}, "et": 1}),
        b'{"t":null,"f":"unknown","a":["x",5],"k":{},"et":1}',
        b'{"t":null,"f":"wake","a":["x"],"k":{},"et":1}',
        b'{"t":null,"f":"wake","a":[1,2,3],"k":{"x":1},"et":1}',
        b'{"t":null,"f":"wake","a":["a b\\n",5],"k":{},"et":1}',
        b"[]",
        b"null",
        b"[" * 5_000,
    ]
    for number, text in enumerate(texts):
        redis_server.command("SET", f"arq:job:garbage{number}", text)
        redis_server.command("ZADD", QUEUE, 1, f"garbage{number}")
    redis_server.command("ZADD", QUEUE, "-inf", b"\xff\xfe", 1, "no text", 1, "")
    redis_server.command("LPUSH", "arq:job:list", "x")
    redis_server.command("ZADD", QUEUE, 1, "list")
    with structlog.testing.capture_logs() as logs:
        waker, worker = await queues(listen=False), await queues()
        await delivered(waker, worker, "good")
        await until(lambda: left(redis_server) == 0)
    [told] = [line for line in logs if line["event"] == "queue.garbage_dropped"]
    assert told["jobs"] == len(texts) + 4
    assert len(worker) == 0
    assert redis_server.command("KEYS", "arq:*") == []


async def test_a_bell_wakes_the_idle(
    queues: Queues, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker sleeps until something was woken; it need not look by itself."""
    monkeypatch.setattr(arq_queue, "BELL_S", 100)
    monkeypatch.setattr(redis, "ANSWER_TIMEOUT_S", 200.0)
    waker, worker = await queues(listen=False), await queues()
    for number in range(3):
        await until(lambda: b"blocked_clients:1" in redis_server.command("INFO", "clients"))
        waker.wake(f"i{number}")
        async with asyncio.timeout(PATIENCE_S):
            await worker.filled()
        assert worker.take(9) == [f"i{number}"]


async def test_jobs_of_arq_itself_are_taken(queues: Queues, redis_server: RedisServer) -> None:
    """What arq's own client enqueues as JSON is a wake-up like ours."""
    worker = await queues()
    waker = await queues(listen=False)
    await waker._redis.enqueue_job("wake", "by-arq", 7, _queue_name=QUEUE)
    async with asyncio.timeout(PATIENCE_S):
        await worker.filled()
    assert worker.take(1) == ["by-arq"]
    await until(lambda: redis_server.command("KEYS", "arq:*") == [] and left(redis_server) == 0)


async def test_the_jobs_of_the_dead_are_seen_again(
    queues: Queues, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids that a killed process had claimed and not taken come to another one."""
    monkeypatch.setattr(arq_queue, "HOLD_S", 0.3)
    dead, waker = await queues(), await queues(listen=False)
    waker.wake("a")
    await until(lambda: len(dead) == 1)
    for task in dead._tasks:  # it does not hand anything back, as if killed
        task.cancel()
    worker = await queues()
    async with asyncio.timeout(PATIENCE_S):
        await worker.filled()
    assert worker.take(1) == ["a"]


async def test_who_takes_nothing_leaves_it_to_others(queues: Queues, redis_server: RedisServer) -> None:
    """A worker without room claims a batch at most, and what it does not get to take goes to another."""
    full, waker = await queues(), await queues(listen=False)
    expected = {f"i{number}" for number in range(3 * BATCH)}
    for id in expected:
        waker.wake(id)
    await until(lambda: len(full) == BATCH)
    worker = await queues()
    got: set[str] = set()
    async with asyncio.timeout(PATIENCE_S):
        while got != expected:
            await worker.filled()
            got.update(worker.take(100))


async def test_closing_hands_back(queues: Queues, redis_server: RedisServer) -> None:
    """What a worker had not taken when it was closed is taken by the next one."""
    waker, closing = await queues(listen=False), await queues()
    for number in range(10):
        waker.wake(f"i{number}")
    await until(lambda: len(closing) == 10)
    assert len(closing.take(3)) == 3
    await closing.close()
    worker = await queues()
    await until(lambda: len(worker) == 7)
    assert len(worker.take(100)) == 7


async def test_who_drains_leaves_all_to_others(queues: Queues, redis_server: RedisServer) -> None:
    """What it had claimed and what comes later; it still wakes others itself."""
    leaving = await queues()
    leaving.wake("before")
    await until(lambda: len(leaving) == 1)
    leaving.drain()
    await until(lambda: len(leaving) == 0)
    leaving.wake("after")
    other = await queues()
    await until(lambda: len(other) == 2)
    assert sorted(other.take(2)) == ["after", "before"]


async def test_a_wake_up_after_the_claim_counts(queues: Queues, redis_server: RedisServer) -> None:
    """An id that is woken once more while it waits here untaken comes once more: it may tell of something newer."""
    waker, worker = await queues(listen=False), await queues()
    waker.wake("a")
    await until(lambda: len(worker) == 1)
    waker.wake("a")
    await until(lambda: redis_server.command("EXISTS", f"arq:job:{QUEUE}:a:0") == 1)
    assert worker.take(9) == ["a"]
    async with asyncio.timeout(PATIENCE_S):
        await worker.filled()
    assert worker.take(9) == ["a"]
    await until(lambda: left(redis_server) == 0)


@pytest.mark.parametrize("fault", [killed, flushed])
async def test_the_bus_outlives_it(
    buses: Buses, redis_server: RedisServer, fault: Callable[[RedisServer], None]
) -> None:
    """After Redis was killed or emptied, messages arrive again."""
    teller, listener = await buses(), await buses()
    with listener.subscribe("t") as subscription:
        for round, act in enumerate((lambda server: None, fault)):
            act(redis_server)
            messages: list[object] = []
            async with asyncio.timeout(PATIENCE_S):
                while round not in messages:
                    teller.publish("t", [round])
                    messages += await subscription.take()
                    subscription.overflowed = False
                    await asyncio.sleep(0.01)


async def test_readers_look_while_the_bus_is_away(buses: Buses, redis_server: RedisServer) -> None:
    """While Redis is away every reader is sent to the database again and again, and once more when it is back."""
    bus = await buses()
    with bus.subscribe("t") as subscription:
        async with asyncio.timeout(PATIENCE_S):
            await subscription.take()
        redis_server.kill()
        for _ in range(3):
            subscription.overflowed = False
            async with asyncio.timeout(PATIENCE_S):
                assert await subscription.take() == []
            assert subscription.overflowed


async def test_hints_wait_for_redis(buses: Buses, redis_server: RedisServer) -> None:
    """What was told while Redis was away still sends the readers elsewhere to the database."""
    teller, listener = await buses(), await buses()
    redis_server.kill()
    teller.publish("t", [1])
    await until(lambda: teller._link.away)
    redis_server.start()
    await until(lambda: not teller._link.away)
    with listener.subscribe("t") as subscription:
        async with asyncio.timeout(PATIENCE_S):
            assert await subscription.take() == []
        assert subscription.overflowed


async def test_garbage_on_the_bus_is_a_hint(buses: Buses, redis_server: RedisServer) -> None:
    """A message that nobody understands sends the readers to the database, is told once, and others arrive."""
    teller, listener = await buses(), await buses()
    with listener.subscribe("t") as subscription, structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(PATIENCE_S):
            await subscription.take()
        for garbage in (b"{", b"\xff", b"[]", b'{"origin":"x","messages":[{"seq":"no"}]}', b"[" * 5_000):
            subscription.overflowed = False
            redis_server.command("PUBLISH", f"{PREFIX}:bus:t", garbage)
            async with asyncio.timeout(PATIENCE_S):
                assert await subscription.take() == []
            assert subscription.overflowed
        subscription.overflowed = False
        teller.publish("t", [1])
        async with asyncio.timeout(PATIENCE_S):
            assert await subscription.take() == [1]
    assert [line["event"] for line in logs] == ["bus.garbage_dropped"]
