"""From every released revision, with data in it: the rows survive, and the program goes on where the old one was."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, select

from db import migrate
from db.session import Database, connect
from db.store import lists
from engine.access import LOCAL
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from tests.db import revisions


@pytest.fixture(params=migrate.REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    """Each revision in turn."""
    return str(request.param)


@pytest.fixture
def old_url(empty_url: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database as the program of that revision has left it."""
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "REVISIONS", migrate.REVISIONS[: migrate.REVISIONS.index(revision) + 1])
        migrate.upgrade(empty_url)
    asyncio.run(_write(empty_url, revision))
    return empty_url


async def _write(url: str, revision: str) -> None:
    database = connect(url)
    await database.write(revisions.fill, revision)
    await database.close()


async def test_every_row_survives_and_the_program_goes_on(old_url: str, revision: str, tmp_path: Path) -> None:
    """Nothing that was stored is lost or changed; waits go on waiting, what was under way is taken up and finished."""
    applied = await asyncio.to_thread(migrate.upgrade, old_url)
    assert applied == list(migrate.REVISIONS[migrate.REVISIONS.index(revision) + 1 :])
    database = connect(old_url)
    try:
        for table, given in revisions.rows(revision).items():
            now = await database.read(_all, table)
            for row in given:
                same = [each for each in now if all(_alike(each[key], value) for key, value in row.items())]
                assert len(same) == 1, (table, row)
        if revision in revisions.WRITTEN or revision == migrate.head():
            await _goes_on(database, revisions.dump(revision), tmp_path)
    finally:
        await database.close()


async def _goes_on(database: Database, dump: dict[str, Any], folder: Path) -> None:
    names: dict[str, str] = dump["names"]
    runner = Runner(Registry.load(), data_dir=folder, roots=[folder], processes=1)
    engine = Engine(database, runner, alone=True)
    await engine.access.bootstrap(None)
    await engine.start()
    try:
        known = await engine.access.authenticate(dump["token"])
        assert known is not None
        assert known.may("instance:run")  # type: ignore[arg-type]
        for name in ("running", "pending"):
            assert (await _ended(engine, names[name]))[-1] == "instance.completed"
        ways = {"retrying": "instance.canceled", "waiting": "instance.completed", "approval": "instance.canceled"}
        for name, end in ways.items():
            if id := names.get(name):
                if end == "instance.canceled":
                    await engine.instances.cancel(LOCAL, id)
                else:
                    await engine.instances.signal(LOCAL, id, "go", {"by": "the new program"})
                assert (await _ended(engine, id))[-1] == end
        if parent := names.get("parent"):
            [child] = [row.id for row in await database.read(_children, parent)]
            await engine.instances.signal(LOCAL, child, "go")
            assert (await _ended(engine, parent))[-1] == "instance.completed"
        if paused := names.get("paused"):
            await engine.instances.signal(LOCAL, paused, "go")
            await engine.instances.resume(LOCAL, paused)
            assert (await _ended(engine, paused))[-1] == "instance.completed"
        # An idempotency key from before still means the run from before; without one, another run of an old version.
        workflow = await engine.workflows.named(LOCAL, "old-chain")
        assert workflow is not None
        again = await engine.instances.start(LOCAL, workflow_id=workflow.id, input={"a": 1}, idempotency_key="once")
        assert again.instance_id == names["done"]
        fresh = await engine.instances.start(LOCAL, workflow_id=workflow.id, input={"a": 5})
        assert (await _ended(engine, fresh.instance_id))[-1] == "instance.completed"
        shown = await database.read(lists.instances, LOCAL.project_id, [names["done"], fresh.instance_id])
        assert {row.status for row in shown.values()} == {"COMPLETED"}
        assert shown[names["done"]].output == {"c": shown[names["done"]].output["c"]}
    finally:
        await engine.stop(grace_s=0.0)


async def _ended(engine: Engine, id: str) -> list[str]:
    async with asyncio.timeout(30):
        return [recorded.type async for recorded in engine.streams.events(LOCAL, id)]


def _children(connection: Connection, parent: str) -> list[Any]:
    table = Table("instances", MetaData(), autoload_with=connection)
    return list(connection.execute(select(table.c.id).where(table.c.parent_id == parent)))


def _all(connection: Connection, name: str) -> list[dict[str, Any]]:
    table = Table(name, MetaData(), autoload_with=connection)
    return [dict(row._mapping) for row in connection.execute(select(table))]


def _alike(now: Any, given: Any) -> bool:
    """Whether a value is what SQLite showed before, in this database's own form."""
    if isinstance(now, datetime):
        return now == datetime.fromisoformat(given)
    if isinstance(given, str) and not isinstance(now, str | None):
        return bool(now == json.loads(given))
    return bool(now == given)
