"""An engine on a database of its own, with the node types that tests need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from db.session import connect
from engine.access import LOCAL
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from flow import events as e
from tests.databases import migrated_sqlite
from tests.engine.nodes import TEST_TYPES

Start = Callable[..., Awaitable[str]]


@asynccontextmanager
async def engine_on(folder: Path, url: str | None = None, **options: Any) -> AsyncIterator[Engine]:
    """A running engine on the SQLite database in this folder, or on that of ``url``; stopped in order at the end."""
    if url is None:
        url = migrated_sqlite(folder / "mirrorflow.db")
    database = connect(url)
    registry = Registry.load()
    for kind in TEST_TYPES:
        registry.add(kind)
    (folder / "files").mkdir(exist_ok=True)
    runner = Runner(registry, data_dir=folder, roots=[folder / "files"], processes=1)
    engine = Engine(database, runner, **{"alone": True, **options})
    await engine.access.ensure_defaults()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(grace_s=0.0)
        await database.close()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine_on(tmp_path) as engine:
        yield engine


def document(nodes: list[dict[str, Any]], edges: list[dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    """A definition with a manual trigger."""
    return {
        "name": fields.pop("name", "test"),
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": nodes,
        "edges": edges or [],
        **fields,
    }


def chain(*types: str) -> dict[str, Any]:
    """n1 > n2 > n3 …, of these types."""
    nodes = [{"id": f"n{i}", "type": kind} for i, kind in enumerate(types, 1)]
    edges = [{"source": f"n{i}", "target": f"n{i + 1}"} for i in range(1, len(types))]
    return document(nodes, edges)


async def started(engine: Engine, definition: dict[str, Any], **options: Any) -> str:
    """Create a workflow of this definition and start it; the instance's id."""
    existing = await engine.workflows.named(LOCAL, definition["name"])
    if existing is None:
        created = await engine.workflows.create(LOCAL, definition)
        workflow_id = created.workflow_id
    else:
        workflow_id = existing.id
    result = await engine.instances.start(LOCAL, workflow_id=workflow_id, **{"input": None, **options})
    return result.instance_id


async def history(engine: Engine, instance_id: str, seconds: float = 20.0) -> list[e.Recorded]:
    """All events of the instance, once it has ended."""
    async with asyncio.timeout(seconds):
        return [recorded async for recorded in engine.streams.events(LOCAL, instance_id)]


def types(events: list[e.Recorded]) -> list[str]:
    """The events' types, with the node: ``node.started a``."""
    return [
        f"{recorded.type} {recorded.event.path}" if isinstance(recorded.event, e.NodeEvent) else recorded.type
        for recorded in events
    ]
