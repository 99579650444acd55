"""Servers that do what a test tells them, behind the same contract as real ones, and a project with files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from db.store import keyset
from db.store import tasks as store
from db.store.keyset import EVERY, Record, Slice
from engine.access import LOCAL
from engine.engine import Engine
from engine.servers.contract import Checked, Done, Failed, OutputFile, Report, ServerAddress, ServerFailed, Work
from engine.tasks import Started
from flow.errors import Category, Failure
from flow.servers import CheckOutcome, ServerStatus, ServerType
from flow.tasks import BatchSpec
from tests.engine.conftest import document


class Double:
    """A server with a memory: ``works`` by reference, in the order in which they came.

    Work ends by itself unless ``hold`` is set; ``fails`` (by the input's file name) answers with a failure so often.
    After ``die`` it answers nothing any more, until ``revive``.
    """

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.submits: list[str] = []
        self.cancelled: list[str] = []
        self.running: set[str] = set()
        self.most_at_once = 0
        self.hold = False
        self.dead = False
        self.fails: dict[str, list[Failed]] = {}
        self.refuses: list[Failed] = []
        self.breaks: dict[str, Failed] = {}
        self.outputs: dict[str, bytes] = {}
        self._changed = asyncio.Condition()

    async def check(self) -> Checked:
        return Checked(CheckOutcome.REFUSED if self.dead else CheckOutcome.OK, 1.0)

    async def submit(self, work: Work) -> str:
        if self.dead:
            raise ServerFailed(lost())
        self.submits.append(work.id)
        if (broken := self.breaks.get(_name(work))) is not None:
            raise ServerFailed(broken)
        if self.refuses:
            raise ServerFailed(self.refuses.pop())
        self.works.setdefault(work.id, work)
        self.running.add(work.id)
        self.most_at_once = max(self.most_at_once, len(self.running))
        async with self._changed:
            self._changed.notify_all()
        return work.id

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        report(0.5, "half")
        async with self._changed:
            await self._changed.wait_for(lambda: self.dead or not self.hold or ref in self.cancelled)
        if self.dead:
            return lost()
        self.running.discard(ref)
        if ref in self.cancelled:
            return Failed(Failure("CANCELED", Category.CANCELED, "cancelled"))
        name = _name(self.works[ref])
        if self.fails.get(name):
            return self.fails[name].pop(0)
        files = tuple(OutputFile(said, {"name": said}) for said in self.outputs)
        return Done({"file": name}, files)

    async def cancel(self, ref: str) -> None:
        self.cancelled.append(ref)
        await self.tell()

    async def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        yield self.outputs[file.name]

    async def close(self) -> None:
        pass

    async def tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def let_go(self) -> None:
        """Whatever was held may end."""
        self.hold = False
        await self.tell()

    async def die(self) -> None:
        """Answer nothing any more; what ran is gone."""
        self.dead = True
        self.running.clear()
        await self.tell()

    async def has(self, number: int) -> None:
        """Return when so many works run here."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.running) >= number)


def lost() -> Failed:
    """What is said of a server that can't be reached."""
    return Failed(Failure("UNREACHABLE", Category.CONNECTION, "nobody answers"), server_lost=True)


def failed(category: Category, **more: Any) -> Failed:
    """A failure of the work itself."""
    return Failed(Failure("BROKE", category, "broke", **more))


def _name(work: Work) -> str:
    return work.file.name if work.file is not None else ""


async def serving(engine: Engine, *doubles: Double, batch_size: int = 2) -> list[str]:
    """Register the doubles as servers that are ONLINE; their ids."""
    known: dict[str, Double] = engine.servers.__dict__.setdefault("doubles", {})

    def opened(address: ServerAddress) -> Double:
        return known[address.name]

    engine.servers._clients._opens[ServerType.HTTP] = opened
    ids = []
    for double in doubles:
        name = f"double-{len(known)}"
        known[name] = double
        made = await engine.servers.register(
            LOCAL, name=name, url="http://127.0.0.1:9", type=ServerType.HTTP, batch_size=batch_size
        )
        await engine.servers.status_set(LOCAL, made.server_id, ServerStatus.ONLINE)
        ids.append(made.server_id)
    return ids


async def project(engine: Engine, folder: Path, names: Sequence[str], **fields: Any) -> BatchSpec:
    """A workflow, and files of these names in the folder ``in``; a batch over them."""
    for name in names:
        path = folder / "files" / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    nodes = fields.pop("nodes", [{"id": "n", "type": "core/noop"}])
    made = await engine.workflows.create(LOCAL, document(nodes, name=fields.pop("workflow", "work")))
    return BatchSpec(workflow_id=made.workflow_id, target_folders=("in",), **fields)


async def task_row(engine: Engine, started: Started | str) -> Record:
    """The task as it is stored."""
    id = started if isinstance(started, str) else started.task_id
    return (await engine.database.read(store.tasks, LOCAL.project_id, [id]))[id]


async def ended(engine: Engine, started: Started | str) -> Record:
    """The task, when it has ended."""
    id = started if isinstance(started, str) else started.task_id
    with engine.bus.subscribe(id) as subscription:
        async with asyncio.timeout(20):
            while (row := await task_row(engine, id)).completed_at is None:
                await subscription.take()
    return row


async def until(engine: Engine, started: Started, holds: Any) -> Record:
    """The task's row, once ``holds(row)``."""
    with engine.bus.subscribe(started.task_id) as subscription:
        async with asyncio.timeout(20):
            while not holds(row := await task_row(engine, started)):
                await subscription.take()
    return row


async def item_rows(engine: Engine, started: Started | str) -> list[Record]:
    """The task's items."""
    id = started if isinstance(started, str) else started.task_id
    pages = await engine.database.read(keyset.pages, store.ITEMS, [id], EVERY, Slice("PLACE", limit=1_000))
    return list(pages[id].rows)


async def statuses(engine: Engine, started: Started | str) -> dict[str, str]:
    """Relative path → status."""
    return {row.relative: row.status for row in await item_rows(engine, started)}
