"""What the tour is told with: workflows as text, on a real engine, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from db.store import instances as store
from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e
from flow.history import Snapshot, replay
from tests.engine.conftest import engine_on


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    id: str
    snapshot: Snapshot
    events: list[e.Recorded]

    @property
    def status(self) -> str:
        return self.snapshot.status.value

    @property
    def output(self) -> Any:
        return self.snapshot.output

    @property
    def code(self) -> str | None:
        """Why it failed."""
        return self.snapshot.error.code if self.snapshot.error is not None else None

    def node(self, path: str) -> str:
        """What became of a node; of a skipped one, why."""
        state = self.snapshot.nodes[path]
        return state.skip_reason or state.status.value

    def nodes(self) -> dict[str, str]:
        """What became of every node."""
        return {path: self.node(path) for path in self.snapshot.nodes}

    def gave(self, path: str) -> Any:
        """A node's output."""
        return self.snapshot.nodes[path].output

    def starts(self, path: str) -> int:
        """How many attempts were made of a node."""
        return sum(isinstance(r.event, e.NodeStarted) and r.event.path == path for r in self.events)


class Tour:
    """Runs workflows that are written as text, without their name and trigger."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._number = 0

    async def store(self, text: str, name: str | None = None) -> str:
        """Store the workflow; its id."""
        self._number += 1
        whole = f"name: {name or f'tour-{self._number}'}\ntriggers: [{{id: by-hand, type: manual}}]\n{text}"
        return (await self.engine.workflows.create(LOCAL, whole)).workflow_id

    async def start(self, text: str, input: Any = None, **options: Any) -> str:
        """Start the workflow; the instance's id."""
        started = await self.engine.instances.start(LOCAL, workflow_id=await self.store(text), input=input, **options)
        return started.instance_id

    async def run(self, text: str, input: Any = None, **options: Any) -> Ended:
        """Start the workflow and wait for its end."""
        return await self.end(await self.start(text, input, **options))

    async def end(self, id: str) -> Ended:
        """Wait for the end of a run."""
        async with asyncio.timeout(20):
            events = [recorded async for recorded in self.engine.streams.events(LOCAL, id)]
        return Ended(id, replay(events), events)

    async def now(self, id: str) -> Snapshot:
        """A run as it is now."""
        return replay(await self.engine.database.read(store.events, id))

    async def until(self, id: str, kind: type[e.Event], path: str | None = None, after: int = 0) -> e.Recorded:
        """Wait until an event of this kind (of this node) has happened."""
        stream = cast("AsyncGenerator[e.Recorded, None]", self.engine.streams.events(LOCAL, id, after))
        async with asyncio.timeout(20), aclosing(stream) as events:
            async for recorded in events:
                if isinstance(recorded.event, kind) and path in (None, getattr(recorded.event, "path", None)):
                    return recorded
        raise AssertionError(f"{id} ended without {kind.__name__} of {path}")


@pytest.fixture
async def tour(tmp_path: Path) -> AsyncIterator[Tour]:
    async with engine_on(tmp_path) as engine:
        yield Tour(engine)
