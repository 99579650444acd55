"""Following a run that waits for something: the event it stands at, and what it says of a node."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from sqlalchemy import Connection, text

from engine.access import LOCAL
from engine.engine import Engine
from flow import events as e

Kind = TypeVar("Kind", bound=e.Event)


async def until(engine: Engine, instance_id: str, kind: type[Kind], path: str | None = None, after: int = 0) -> Kind:
    """The first event of this kind (and node) with ``seq`` > ``after``, once it has happened."""
    async with asyncio.timeout(20):
        async for recorded in engine.streams.events(LOCAL, instance_id, after):
            event = recorded.event
            if isinstance(event, kind) and path in (None, getattr(event, "path", None)):
                return event
    raise AssertionError(f"the run ended without {kind.__name__} of {path}")


async def resting(engine: Engine, instance_id: str) -> None:
    """Return when nobody holds the instance: it only waits."""
    async with asyncio.timeout(20):
        while (await row(engine, instance_id))["lease_until"] is not None:  # noqa: ASYNC110  (the row is all there is to see)
            await asyncio.sleep(0.001)


async def row(engine: Engine, instance_id: str) -> dict[str, Any]:
    """The instance's row."""

    def read(connection: Connection) -> dict[str, Any]:
        found = connection.execute(text("SELECT * FROM instances WHERE id = :id"), {"id": instance_id})
        return dict(found.mappings().one())

    return await engine.database.read(read)


async def statuses(engine: Engine, ids: list[str]) -> list[str]:
    """The statuses of the instances, in their order."""
    return [(await row(engine, id))["status"] for id in ids]
