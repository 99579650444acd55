"""Random faults under load, for as long as one likes; then the oracle.

``MIRRORFLOW_SOAK_SECONDS`` (120) says how long, and ``MIRRORFLOW_SOAK_SEED`` repeats a sequence of faults. Everything
is on this machine, and the load is bounded: a few runs a second, and no more open ones than ``OPEN``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.live import test_control_survival as control
from tests.live.chaos.load import Load
from tests.live.cluster import Cluster, Member, plugged
from tests.live.mischief import flow, step
from tests.live.proxy import Manner, Reply

OPEN = 60
PAUSE_S = (0.2, 4.0)  # between two faults
LASTS_S = (0.1, 5.0)  # a fault: some end before, some after a lease runs out
LOSSY = Manner(refused=0.3, reset=0.3)

Fault = Callable[[Cluster, Member, float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of a sequence: what, to whom, for how long, and how long to wait before the next."""

    fault: str
    member: str
    lasts_s: float
    pause_s: float

    @property
    def target(self) -> str:
        """What is struck: two faults of one target follow each other, others may overlap."""
        return next((name for name in ("redis_", "postgresql_") if self.fault.startswith(name)), self.member)


def sequence(seed: int, seconds: float, members: list[str]) -> list[Strike]:
    """The faults of a soak run; the same for the same seed."""
    chance = random.Random(seed)
    strikes: list[Strike] = []
    while sum(strike.pause_s for strike in strikes) < seconds:
        lasts, pause = chance.uniform(*LASTS_S), chance.uniform(*PAUSE_S)
        strikes.append(Strike(chance.choice(list(FAULTS)), chance.choice(members), round(lasts, 2), round(pause, 2)))
    return strikes


async def killed(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.kill()
    await asyncio.sleep(lasts_s)


async def asked_to_stop(cluster: Cluster, member: Member, lasts_s: float) -> None:
    assert await member.stop() == 0, member.output[-4000:]


async def asleep(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.freeze()
    await asyncio.sleep(lasts_s)
    member.thaw()


async def redis_killed(cluster: Cluster, member: Member, lasts_s: float) -> None:
    await cluster.beside(cluster.redis.kill)
    await asyncio.sleep(lasts_s)
    await cluster.beside(cluster.redis.start)


async def redis_flushed(cluster: Cluster, member: Member, lasts_s: float) -> None:
    await cluster.beside(cluster.redis.flush)


async def redis_hangs(cluster: Cluster, member: Member, lasts_s: float) -> None:
    cluster.redis.pause()
    await asyncio.sleep(lasts_s)
    cluster.redis.resume()


async def postgresql_stopped(cluster: Cluster, member: Member, lasts_s: float) -> None:
    await cluster.beside(cluster.postgres.stop)
    await asyncio.sleep(lasts_s)
    await cluster.beside(cluster.postgres.start)


async def database_cut(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.database.cut()
    await asyncio.sleep(lasts_s)
    member.database.heal()


async def wakeups_cut(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.redis.cut()
    await asyncio.sleep(lasts_s)
    member.redis.heal()


async def database_stalled(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.database.manner = Manner(stalled=True)
    await asyncio.sleep(lasts_s)
    member.database.heal()


async def lossy(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.database.manner = member.redis.manner = LOSSY
    await asyncio.sleep(lasts_s)
    member.database.heal()
    member.redis.heal()


async def replies_lost(cluster: Cluster, member: Member, lasts_s: float) -> None:
    for reply in (Reply.LOST, Reply.NEVER_SENT, Reply.LOST):
        member.database.at_commit("", reply)
    await asyncio.sleep(lasts_s)
    member.database.forget()


async def clock_wrong(cluster: Cluster, member: Member, lasts_s: float) -> None:
    member.clock_off_by(3_600 * (1 if lasts_s > sum(LASTS_S) / 2 else -1))
    await asyncio.sleep(lasts_s)
    member.clock_off_by(0)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        killed,
        asked_to_stop,
        asleep,
        redis_killed,
        redis_flushed,
        redis_hangs,
        postgresql_stopped,
        database_cut,
        wakeups_cut,
        database_stalled,
        lossy,
        replies_lost,
        clock_wrong,
    )
}


async def struck(cluster: Cluster, strike: Strike, lock: asyncio.Lock) -> None:
    """Let a fault happen, and what it killed start again."""
    member = next(member for member in cluster.members if member.name == strike.member)
    async with lock:
        await FAULTS[strike.fault](cluster, member, strike.lasts_s)
        if strike.target == member.name:
            await member.come_back()


class Traffic:
    """Runs of every kind, started as long as it lasts."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.fans = Load(cluster, "soak-fan")
        self.others: list[str] = []
        self._workflows: list[tuple[str, Any]] = []

    async def prepare(self) -> None:
        """Store the workflows. No fault is under way."""
        await self.fans.prepare()
        await self.cluster.store(control.child())
        remote = [step("bench/fib", labels, n=15) | {"runs_on": [labels]} for labels in ("gpu", "eu")]
        for definition, input in [
            (control.parent(), {"items": [10, 11, 12, 13]}),
            (flow("soak-remote", *remote, step("core/noop", "end")), {}),
            (flow("soak-delay", step("core/delay", duration="1s"), step("core/noop", "end")), {}),
        ]:
            for node in definition["nodes"]:
                if node["id"] != "fails":
                    node.pop("retry", None)
            self._workflows.append((await self.cluster.store(definition), input))

    async def go_on(self) -> None:
        """A few runs a second of every kind; never more than ``OPEN`` at a time."""
        async with asyncio.TaskGroup() as lanes:
            lanes.create_task(self._fans())
            for workflow, input in self._workflows:
                lanes.create_task(self._others(workflow, input))

    async def _fans(self) -> None:
        while True:
            await self.fans.add(3)
            await self._pause()

    async def _others(self, workflow: str, input: Any) -> None:
        for number in itertools.count():
            key = f"{workflow}-{number}"
            self.others.append(await self.cluster.start(workflow, input, key=key))
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(0.5)
        while len(await self.open()) > OPEN:  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def open(self) -> list[Any]:
        """Runs that have not ended."""
        while True:
            try:
                return await self.cluster.sql("SELECT id FROM instances WHERE completed_at IS NULL")
            except Exception:  # PostgreSQL is stopped
                await asyncio.sleep(0.2)


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """What everything random is drawn from; shown at once."""
    seed = int(os.environ.get("MIRRORFLOW_SOAK_SEED") or random.randrange(1_000_000))
    with capsys.disabled():
        print(f"\nto repeat these faults: MIRRORFLOW_SOAK_SEED={seed} make soak")  # noqa: T201
    return seed


@pytest.fixture
def soaked(tmp_path: Path, seed: int) -> Iterator[Cluster]:
    """A cluster of the test's own."""
    with Cluster(tmp_path / "data", env=plugged(tmp_path / "plugin"), seed=seed) as cluster:
        yield cluster
        print(cluster.output)  # noqa: T201  (shown if the test fails)


@pytest.mark.soak
async def test_random_faults_under_load(soaked: Cluster, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever happens in whatever order: every run that was acknowledged ends COMPLETED, and the oracle holds."""
    seconds = float(os.environ.get("MIRRORFLOW_SOAK_SECONDS") or 120)
    strikes = sequence(seed, seconds, [member.name for member in soaked.members])
    traffic = Traffic(soaked)
    await traffic.prepare()
    going = asyncio.create_task(traffic.go_on())
    approving = asyncio.create_task(control.approve_whatever_waits(soaked))
    try:
        await strike_all(soaked, strikes, going)
        await end(going)
        await soaked.revive()
        await traffic.fans.complete(120)
        assert Counter(await soaked.over(traffic.others, 120)) == {"COMPLETED": len(traffic.others)}
    finally:
        await end(going, approving)
    await soaked.settled(within=60)
    with capsys.disabled():
        print(f"{len(strikes)} faults, {len(traffic.fans.ids) + len(traffic.others)} runs")  # noqa: T201


async def strike_all(cluster: Cluster, strikes: list[Strike], going: asyncio.Task[None]) -> None:
    """Let every fault happen; fails if a process dies of something else, or the traffic stops."""
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    async with asyncio.TaskGroup() as striking:
        for strike in strikes:
            print(f"{datetime.now(UTC):%H:%M:%S} {strike}")  # noqa: T201  (shown if the test fails)
            striking.create_task(struck(cluster, strike, locks[strike.target]))
            await asyncio.sleep(strike.pause_s)
            if going.done():
                going.result()
            died = [m.name for m in cluster.members if not m.running and not locks[m.name].locked()]
            assert died == []


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
