"""The engine put together: one object that owns every part of it and their order of starting and stopping."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from db.session import Database
from db.store import leases, offers
from engine import clock
from engine.access import Access
from engine.bus import Bus, LocalBus
from engine.children import Children
from engine.executor import Executor
from engine.health import StorageCheck
from engine.instances import Instances
from engine.journal import Journal
from engine.nodes.registry import Registry
from engine.placement import Placement, Runner
from engine.queue import LocalQueue, Queue
from engine.seal import Seal
from engine.servers.registry import Clients, opens
from engine.servers.servers import Servers
from engine.streams import Streams
from engine.tasks import Tasks
from engine.version import VERSION
from engine.workers import Workers
from engine.workflows import Workflows
from flow.definition import MAX_NODES


class Engine:
    """Everything that runs workflows, in one process, on one database.

    ``alone`` says that no other process works on this database (the embedded mode holds a lock on its data folder), so
    that what a dead predecessor held is taken over at once and not when its leases run out.
    Without a ``queue`` and a ``bus`` they are this process's own; several processes on one database need such as they
    share. ``works`` False: it starts, shows and controls runs, and leaves it to others to drive them. ``labels`` and
    ``gpus`` are what nodes may ask a worker for. ``seal`` encrypts what must be kept secret; without it the key lies
    beside the artifacts.
    ``observe_commit(entries, seconds)`` and ``observe_node(type, seconds)`` are told what is worth measuring.
    """

    def __init__(
        self,
        database: Database,
        runner: Runner,
        *,
        queue: Queue | None = None,
        bus: Bus | None = None,
        works: bool = True,
        labels: frozenset[str] = frozenset(),
        gpus: int = 0,
        alone: bool = False,
        lease_s: float = 15.0,
        max_nodes: int = MAX_NODES,
        seal: Seal | None = None,
        observe_commit: Callable[[int, float], None] = lambda entries, seconds: None,
        observe_node: Callable[[str, float], None] = lambda node_type, seconds: None,
    ) -> None:
        self.database = database
        self.runner = runner
        self.registry: Registry = runner.registry
        self.artifacts = runner.surroundings.artifacts
        self.worker = f"{socket.gethostname()[:32]}:{os.getpid()}:{clock.new_id('wrk')[-6:]}"
        self.bus: Bus = bus if bus is not None else LocalBus()
        self.works = works
        #: Set when somebody has asked this worker to take nothing new: once it is idle, its process may end.
        self.drain_asked = asyncio.Event()
        self.workers = Workers(
            database,
            self.bus,
            id=self.worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            labels=labels,
            gpus=gpus,
            slots=lambda: self.executor.places.slots,
            running=lambda: self.executor.places.running,
            instances=lambda: self.executor.driven,
            on_drain=self.drain,
            works=works,
        )
        self.access = Access(database)
        self.workflows = Workflows(database, self.registry.type_infos, self._changed, max_nodes)
        self.streams = Streams(database, self.bus)
        self.queue: Queue = queue if queue is not None else LocalQueue()
        self.journal = Journal(database, self.bus, observe_commit)
        self.executor = Executor(
            database,
            self.journal,
            self.queue,
            self.bus,
            self.workers,
            runner,
            self.workflows.version,
            Children(database, self.workflows),
            worker=self.worker,
            lease_s=lease_s,
            labels=labels,
            gpus=gpus,
            observe=observe_node,
        )
        self.journal.tell = self.executor.tell
        self.instances = Instances(database, self.journal, self.executor, self.workflows, self.streams)
        #: Await it: raises StorageUnavailable where nothing can be stored now.
        self.storage_check = StorageCheck(database)
        around = runner.surroundings
        clients = Clients(
            opens(database, self.instances, self.streams, self.workflows.version, around, self.storage_check)
        )
        self.servers = Servers(
            database,
            self.bus,
            clients,
            seal or Seal(None, self.artifacts.root.parent),
            self._changed,
            local_batch_size=max(8, 4 * runner.slots[Placement.PROCESS]),
        )
        around.comfyui = self.servers.comfyui
        self.tasks = Tasks(
            database,
            self.bus,
            self.workflows,
            self.servers,
            around.files,
            self._changed,
            worker=self.worker,
            lease_s=lease_s,
        )
        self._alone = alone

    async def start(self) -> None:
        """Begin to work; what an earlier process left undone is taken up again."""
        if self._alone:
            await self.database.write(leases.expire_all)
            await self.database.write(offers.expire_all)
        await self.bus.start()
        await self.queue.start()
        await self.runner.start()
        self.journal.start()
        await self.workers.start()
        if self.works:
            self.executor.start()
        await self.servers.start(check=self.works)
        if self.works:
            await self.tasks.start(alone=self._alone)

    def drain(self) -> None:
        """Take no new work; what is under way goes on here, or is left to other workers as it comes to rest."""
        self.executor.drain()
        self.tasks.driver.drain()
        self.workers.drain()
        self.drain_asked.set()

    async def stop(self, grace_s: float = 30.0) -> None:
        """Let running nodes finish within the grace, then stop; the database stays open for its owner to close."""
        self.workers.drain()
        await self.tasks.stop()
        await self.servers.stop()
        await self.executor.stop(grace_s)
        await self.journal.close()
        await self.workers.stop()
        await self.queue.close()
        await self.bus.close()
        await self.runner.close()
        await self.access.close()

    def _changed(self, project_id: str, change_seq: int) -> None:
        self.bus.publish(project_id, (change_seq,))
