"""The queue of many processes: wake-ups as arq's jobs in Redis.

A wake-up is a job ``wake(id, priority)`` in arq's own format (JSON, never pickle), its job id
``<queue>:<id>:<fence>``; a queue is a sorted set by "when it came, less its priority × ``AGEING_S``" on Redis's clock.
What differs from a plain arq worker, and why:

* Claiming and enqueuing go in batches, each one script and one round trip; a plain worker spends six on every job.
* Nobody polls hot: whoever enqueues rings a bell (a short list), and an idle worker blocks on it. Who leaves some
  rings again, so that the next worker comes. A slow look every second covers what no bell told.
* A claimed job stays in the queue, due again after ``HOLD_S``, until its id was taken here: the jobs of a killed
  process are seen again soon. A wake-up that comes meanwhile is delivered once more, for it may tell of something
  that the taker has not seen.
* A process claims only a batch beyond what it takes, and gives back what it did not get to take within ``STALE_S``.
* What others have written into these keys is dropped and told, never run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import msgspec
import structlog
from arq.connections import ArqRedis
from arq.jobs import DeserializationError, deserialize_job_raw, serialize_job
from arq.utils import timestamp_ms
from arq.worker import Worker, func
from redis.exceptions import ResponseError

from engine import clock
from engine.queue import AGEING_S, NO_LABELS, LocalQueue
from engine.queue_scripts import CLAIM, ENQUEUE, FINISH, RELEASE
from engine.redis import LOST, Link, end, pool

BATCH = 64  # ids claimed at once, and ids that wait here untaken
FLUSH = 500  # jobs in one script
HOLD_S = 10.0  # a claimed job is seen again after this
STALE_S = 1.0  # who has not taken its ids for so long lets others have them
BELL_S = 1  # a look at the queue that nobody asked for
EXPIRES_MS = 86_400_000
KEPT = 100_000  # wake-ups kept for a Redis that is slow or away
CLOSE_S = 2.0
IDS = re.compile(r"[!-~]{1,200}")

log = structlog.get_logger(__name__)
logging.getLogger("arq").setLevel(logging.WARNING)

_encode = msgspec.json.encode
_decode = msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed job whose id waits here: its queue, its name there, its place in the order, and what it says."""

    queue: str
    job: bytes
    score: bytes
    text: bytes


async def wake(ctx: dict[str, Any], id: str, priority: int) -> None:
    """The one job there is: the id waits here from now on, as old as it is."""
    ctx["owner"].arrived(id, ctx["held"], ctx["age_s"])


class Listener(Worker):
    """arq's worker, with its way to claim jobs exchanged: it hands over in batches, and blocks while there is none."""

    def __init__(self, redis: ArqRedis, queues: Sequence[str], owner: ArqQueue) -> None:
        super().__init__(
            functions=[func(wake, name="wake", keep_result=0)],
            queue_name=queues[0],
            redis_pool=redis,
            handle_signals=False,
            max_jobs=BATCH,
            job_timeout=HOLD_S,
            keep_result=0,
            job_serializer=_encode,
            job_deserializer=_decode,
            log_results=False,
        )
        self._queues = list(queues)
        self._owner = owner
        self._claim: Callable[..., Awaitable[list[list[bytes]]]] = redis.register_script(CLAIM)

    async def main(self) -> None:
        link = Link("queue.hearing")
        while not self._owner.draining:
            try:
                room = await self._owner.room()
                self._queues.reverse()  # where there is room for few, each queue has its turn
                if not await self._claim_from(room):
                    bells = [bell(queue) for queue in self._queues]
                    await cast(Awaitable[Any], self.pool.blpop(bells, timeout=BELL_S))
                link.back()
            except LOST as error:
                if not await mended(self.pool, error, self._queues):
                    await asyncio.sleep(link.lost(error))
                    await self.pool.connection_pool.disconnect(inuse_connections=False)
        with contextlib.suppress(*LOST):  # if that fails, they are seen again after ``HOLD_S``
            await self._owner.give_back()

    async def _claim_from(self, room: int) -> int:
        found = 0
        for queue in self._queues:
            if room > found:
                keys = [queue, bell(queue)]
                rows = await self._claim(keys=keys, args=[room - found, int(HOLD_S * 1000)])
                found += len(rows)
                await self._run(queue, rows)
        return found

    async def _run(self, queue: str, rows: list[list[Any]]) -> None:
        refused = []
        for job, text, age_ms, score in rows:
            try:
                id, priority = _meaning(queue, job, text)
            except (DeserializationError, ValueError) as error:
                refused.append((job, str(error)))
                continue
            ctx = {"owner": self._owner, "held": Held(queue, job, score, text or b""), "age_s": age_ms / 1000}
            await self.functions["wake"].coroutine(ctx, id, priority)
        if refused:
            job, reason = refused[0]
            log.warning("queue.garbage_dropped", queue=queue, jobs=len(refused), one=repr(job)[:100], why=reason)
            self._owner.finish(queue, [job for job, _ in refused])


class ArqQueue:
    """Wake-ups among all processes that share ``prefix`` on one Redis; ``labels`` are this worker's.

    ``listen=False`` is a process that wakes and never works. While Redis is away, ids for this very worker wait here
    all the same, and some of the others until it is back.
    """

    def __init__(
        self, url: str, *, prefix: str = "mirrorflow", labels: frozenset[str] = NO_LABELS, listen: bool = True
    ) -> None:
        self._prefix = prefix
        self._names: dict[frozenset[str], str] = {}
        self._redis = ArqRedis(pool(url), job_serializer=_encode, job_deserializer=_decode)
        self._mine = {self._name(NO_LABELS), self._name(labels)} if listen else set()
        self._here = LocalQueue()
        self._held: dict[str, list[Held]] = {}
        self._wakes: dict[tuple[str, str, int], int] = {}
        self._finished: dict[str, list[bytes]] = {}
        self._something = asyncio.Event()
        self._taken = asyncio.Event()
        self._untaken_since = 0.0
        self._link = Link("queue.telling")
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        #: Nothing more is heard of.
        self.draining = False
        self._enqueue = self._redis.register_script(ENQUEUE)
        self._finish = self._redis.register_script(FINISH)
        self._release = self._redis.register_script(RELEASE)

    # ---- the seam

    def wake(self, id: str, priority: int = 5, *, fence: int = 0, labels: frozenset[str] = NO_LABELS) -> None:
        if self._closed:
            return
        key = (self._name(labels), id, fence)
        known = self._wakes.get(key)
        if known is None and len(self._wakes) >= KEPT:
            self._wakes.pop(next(iter(self._wakes)))
        self._wakes[key] = max(priority, known or 0)
        self._something.set()

    def wake_here(self, id: str, priority: int = 5) -> None:
        if not len(self._here):
            self._untaken_since = clock.monotonic()
        self._here.wake(id, priority)

    async def filled(self) -> None:
        await self._here.filled()

    def take(self, most: int) -> list[str]:
        ids = self._here.take(most)
        for id in ids:
            for held in self._held.pop(id, ()):
                self.finish(held.queue, [held.job])
        self._untaken_since = clock.monotonic()
        self._taken.set()
        return ids

    def __len__(self) -> int:
        return len(self._here)

    async def start(self) -> None:
        self._tasks.append(asyncio.create_task(self._telling(), name="queue.telling"))
        if self._mine:
            listener = Listener(self._redis, sorted(self._mine), self)
            self._tasks.append(asyncio.create_task(listener.main(), name="queue.hearing"))

    def drain(self) -> None:
        self.draining = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await end(self._tasks)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._tell()
                await self.give_back()
        except LOST as error:
            log.warning("queue.not_handed_back", waiting=len(self._held), error=str(error))
        await self._redis.aclose()
        await self._redis.connection_pool.aclose()

    # ---- for the listener

    def arrived(self, id: str, held: Held, age_s: float) -> None:
        """The job was claimed: its id waits here, as old as it is."""
        if not len(self._here):
            self._untaken_since = clock.monotonic()
        self._held.setdefault(id, []).append(held)
        self._here.add(id, age_s)

    def finish(self, queue: str, jobs: Iterable[bytes]) -> None:
        """These jobs are done: have them removed."""
        self._finished.setdefault(queue, []).extend(jobs)
        self._something.set()

    async def room(self) -> int:
        """How many more ids may wait here, as soon as there may be any."""
        while True:
            if len(self._here) and clock.monotonic() - self._untaken_since >= STALE_S:
                await self.give_back()  # nobody takes them here: let others have them, and have their turn
            elif len(self._here) < BATCH:
                return BATCH - len(self._here)
            self._taken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALE_S):
                    await self._taken.wait()

    async def give_back(self) -> None:
        """Let others have what was not taken here."""
        held, self._held = self._held, {}
        self._here.remove(held.keys())
        by_queue: dict[str, list[Held]] = {}
        for each in chain.from_iterable(held.values()):
            by_queue.setdefault(each.queue, []).append(each)
        for queue, jobs in by_queue.items():
            args = [part for each in jobs for part in (each.job, each.text, each.score)]
            await self._release(keys=[queue, bell(queue)], args=[EXPIRES_MS, *args])

    # ---- telling Redis

    async def _telling(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self._tell()
                self._link.back()
            except LOST as error:
                if not await mended(self._redis, error, self._names.values()):
                    await asyncio.sleep(self._link.lost(error))
                    # Other idle connections died with it: each would be one more failure when Redis is back.
                    await self._redis.connection_pool.disconnect(inuse_connections=False)
                self._something.set()

    async def _tell(self) -> None:
        wakes, self._wakes = self._wakes, {}
        finished, self._finished = self._finished, {}
        by_queue: dict[str, list[Any]] = {}
        now = timestamp_ms()
        for (queue, id, fence), priority in wakes.items():
            text = serialize_job("wake", (id, priority), {}, None, now, serializer=_encode)
            by_queue.setdefault(queue, []).extend((f"{queue}:{id}:{fence}", text, int(priority * AGEING_S * 1000)))
        try:
            for queue, args in by_queue.items():
                for start in range(0, len(args), 3 * FLUSH):
                    await self._enqueue(keys=[queue, bell(queue)], args=[EXPIRES_MS, *args[start : start + 3 * FLUSH]])
            for queue, jobs in finished.items():
                for start in range(0, len(jobs), FLUSH):
                    await self._finish(keys=[queue, bell(queue)], args=jobs[start : start + FLUSH])
        except BaseException:
            self._keep(wakes)
            for queue, jobs in finished.items():  # forgotten, they would be seen again: a nuisance, no harm
                if len(self._finished.get(queue, ())) < KEPT:
                    self.finish(queue, jobs)
            raise

    def _keep(self, wakes: dict[tuple[str, str, int], int]) -> None:
        """Redis did not get these: what this worker may do itself waits here, of the rest some for another attempt."""
        for (queue, id, fence), priority in wakes.items():
            if queue in self._mine and not self._closed:
                self._here.wake(id, priority)
            elif len(self._wakes) < KEPT:
                self._wakes.setdefault((queue, id, fence), priority)

    def _name(self, labels: frozenset[str]) -> str:
        name = self._names.get(labels)
        if name is None:
            name = f"{self._prefix}:queue" + (":" + "+".join(sorted(labels)) if labels else "")
            self._names[labels] = name
        return name


def bell(queue: str) -> str:
    """The list on which its idle workers block."""
    return f"{queue}:bell"


async def mended(redis: ArqRedis, error: BaseException, queues: Iterable[str]) -> bool:
    """Whether it was a key of another type in the place of ours, which is gone now."""
    if not (isinstance(error, ResponseError) and "wrong kind of value" in str(error)):
        return False
    found = False
    with contextlib.suppress(*LOST):
        for name, kind in [(queue, b"zset") for queue in queues] + [(bell(queue), b"list") for queue in queues]:
            if await redis.type(name) not in (kind, b"none"):
                log.warning("queue.garbage_dropped", key=name, why="it is of another type than ours")
                await redis.delete(name)
                found = True
    return found


def _meaning(queue: str, job: bytes, text: bytes | None) -> tuple[str, int]:
    """The id and the priority that the job speaks of. Raises DeserializationError or ValueError if it is none of ours.

    A job without a text was claimed before by somebody who died; its name tells the id.
    """
    function: Any
    args: Any
    kwargs: Any
    if text is None:
        name = job.decode(errors="replace")
        id = name.removeprefix(f"{queue}:").rpartition(":")[0]
        function, args, kwargs = "wake" if name.startswith(f"{queue}:") else "?", [id, 5], {}
    else:
        function, args, kwargs, _, _ = deserialize_job_raw(text, deserializer=_decode)
    match function, args, kwargs:
        case "wake", [str() as id, int() as priority], {} if IDS.fullmatch(id):
            return id, priority
    raise ValueError("no wake-up of ours")
