"""The tasks that this process runs: taken by lease, kept, let go of. Wake-ups are hints; a sweep finds the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from db.session import Database
from db.store import items as ledger
from db.store import tasks as store
from db.store.tasks import Hold
from engine import clock
from engine.batch.attempts import Surroundings
from engine.batch.line import Rank
from engine.batch.run import TaskRun
from engine.bus import Bus
from engine.renewing import keep
from flow.errors import Category, Failure, LeaseLost, StorageUnavailable

#: Tasks that one process holds at the same time; the others wait until one ends, or can only wait itself.
MOST = 20
#: Without any wake-up, tasks to take are looked for this often, and when a lease runs out.
SWEEP_S = 5.0
LEAST_SWEEP_S = 0.1
#: The topic on which somebody says that a task waits to be taken.
WAKE = "tasks"

log = logging.getLogger(__name__)


class Driver:
    """Runs tasks from ``start`` to ``stop``. ``worker`` is who holds them."""

    def __init__(
        self, database: Database, bus: Bus, surroundings: Callable[[], Surroundings], *, worker: str, lease_s: float
    ) -> None:
        self._database = database
        self._bus = bus
        self._surroundings = surroundings
        self._worker = worker
        self._lease_s = lease_s
        self._runs: dict[str, tuple[Hold, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._draining = False
        #: More tasks want to run than this process may hold: the least urgent of those that only wait steps aside.
        self._crowded = False
        #: The held tasks that only wait.
        self._waiting: dict[str, Rank] = {}
        self._loops: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        """How many tasks are under way here."""
        return len(self._runs)

    async def start(self, *, alone: bool = False) -> None:
        """Begin to take tasks; ``alone``: what a dead predecessor held is taken at once."""
        if alone:
            await self._database.write(store.expire_all)
        self._loops = [
            asyncio.create_task(work(), name=f"tasks {work.__name__}") for work in (self._take, self._keep, self._hear)
        ]

    async def stop(self) -> None:
        """Take no more, and let go of what is held: its work goes on where it runs, for the next holder to follow."""
        tasks = [*self._loops, *(task for _, task in self._runs.values())]
        self._loops = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self) -> None:
        """Take no more, and let go of what is held for another process to take at once."""
        self._draining = True
        for _, task in self._runs.values():
            task.cancel()

    def wake(self) -> None:
        """Some task may want to be taken."""
        self._woken.set()

    async def _take(self) -> None:
        while True:
            self._woken.clear()
            pause = SWEEP_S
            try:
                due_in = None if self._draining else await self._database.read(store.due_in)
                room = MOST - len(self._runs)
                self._crowded = due_in is not None and due_in <= 0 and room <= 0
                if due_in is not None and due_in > 0:
                    pause = min(SWEEP_S, max(LEAST_SWEEP_S, due_in))
                elif due_in is not None and room > 0:
                    for hold in await self._database.write(store.claim, self._worker, self._lease_s, room):
                        self._begin(hold)
                    if self._draining:  # asked to while it was claiming
                        self.drain()
                    pause = SWEEP_S if len(self._runs) < MOST else LEAST_SWEEP_S
            except StorageUnavailable as error:
                log.warning("tasks can't be taken now: %s", error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def _keep(self) -> None:
        await keep("tasks", self._lease_s, self._renew)

    async def _renew(self) -> None:
        holds = [hold for hold, _ in self._runs.values()]
        if holds:
            kept = await self._database.write(store.renew, self._worker, holds, self._lease_s)
            for hold in holds:
                held = self._runs.get(hold.task_id)
                if hold.task_id not in kept and held is not None and held[0] == hold:
                    log.info("task %s is another worker's now, or has ended", hold.task_id)
                    held[1].cancel()

    async def _hear(self) -> None:
        with self._bus.subscribe(WAKE) as subscription:
            while True:
                await subscription.take()
                subscription.overflowed = False
                self.wake()

    def _begin(self, hold: Hold) -> None:
        task = asyncio.create_task(self._run(hold), name=f"task {hold.task_id}")
        self._runs[hold.task_id] = hold, task

    async def _run(self, hold: Hold) -> None:
        try:
            await TaskRun(self._surroundings(), hold, lambda rank: self._steps_aside(hold.task_id, rank)).run()
        except LeaseLost:
            log.info("task %s is another worker's now, or has ended", hold.task_id)
        except StorageUnavailable as error:
            log.warning("task %s stops for now: %s", hold.task_id, error.message)
            await self._let_go(hold)
        except asyncio.CancelledError:
            await self._let_go(hold)
            raise
        except Exception as error:
            log.exception("task %s met an error in the engine", hold.task_id)
            await self._fail(hold, error)
        finally:
            self._waiting.pop(hold.task_id, None)
            if self._runs.get(hold.task_id, (None,))[0] == hold:
                del self._runs[hold.task_id]
            self.wake()

    def _steps_aside(self, task_id: str, rank: Rank | None) -> bool:
        """Whether the task, if it can only wait (its rank), is the one to make room for another."""
        if rank is None:
            self._waiting.pop(task_id, None)
            return False
        self._waiting[task_id] = rank
        if not self._crowded or rank != max(self._waiting.values()):
            return False
        self._crowded = False  # one for each time: there may be enough room then
        return True

    async def _fail(self, hold: Hold, error: Exception) -> None:
        """Our own fault would come again with every holder: end the task, and free its slots."""
        message = f"The engine met an error of its own ({type(error).__name__}); its log says more."
        failure = Failure("INTERNAL", Category.INTERNAL, message)
        with contextlib.suppress(StorageUnavailable, LeaseLost):
            seq = await self._database.write(ledger.fail_task, hold, msgspec.to_builtins(failure), clock.now())
            self._surroundings().tell(hold, seq)

    async def _let_go(self, hold: Hold) -> None:
        with contextlib.suppress(StorageUnavailable):
            await self._database.write(store.release, hold)
            self._bus.publish(WAKE, (hold.task_id,))
