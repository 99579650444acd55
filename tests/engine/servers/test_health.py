"""The health loop, in one process and in many."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from db.session import Database, connect
from db.store import access
from db.store import servers as store
from engine import clock
from engine.bus import LocalBus
from engine.servers.health import Health
from engine.servers.http import Http
from flow.errors import StorageUnavailable
from flow.servers import ServerStatus, ServerType
from tests.db.test_servers import server
from tests.engine.servers.double import Double, doubled
from tests.engine.servers.places import address

PROJECT = "proj-1"


class Counting(Double):
    """Counts how often it is asked how it is."""

    checks = 0

    async def _health(self, request: Any) -> Any:
        self.checks += 1
        return await super()._health(request)


async def test_many_processes_check_each_server_once(database_url: str, database: Database) -> None:
    """Three loops on one database: every server is asked once in its turn."""
    await database.write(access.ensure_project, PROJECT, "one", clock.now())
    others = [connect(database_url) for _ in range(2)] if database.dialect == "postgresql" else [database] * 2
    bus = LocalBus()
    async with doubled(Counting()) as double, httpx.AsyncClient(trust_env=False) as http:
        for number in range(10):
            await database.write(store.insert_server, server(f"srv-{number}", url=double.url))
        loops = [
            Health(each, bus, lambda row: Http(_address_of(row), http), every_s=3_600) for each in (database, *others)
        ]
        with bus.subscribe(f"servers:{PROJECT}") as told:
            await asyncio.gather(*(loop.start() for loop in loops))
            done: set[str] = set()
            async with asyncio.timeout(30):
                while len(done) < 10:
                    done |= set(await told.take())
        for loop in loops:
            await loop.stop()
        assert isinstance(double, Counting)
        assert double.checks == 10
    rows = await database.read(store.servers, PROJECT, sorted(done))
    assert {row.status for row in rows.values()} == {ServerStatus.ONLINE}
    for each in others:
        if each is not database:
            await each.close()


async def test_a_change_of_status_is_logged_once(sqlite_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason, and never what the address may hold besides."""
    caplog.set_level(logging.INFO, "engine.servers.health")
    await sqlite_database.write(access.ensure_project, PROJECT, "one", clock.now())
    row = server("srv-1", status="ONLINE", url="http://127.0.0.1:1")
    await sqlite_database.write(store.insert_server, row)
    async with httpx.AsyncClient(trust_env=False) as http:
        health = Health(sqlite_database, LocalBus(), lambda row: Http(_address_of(row), http))
        for _ in range(5):
            await health.check(row)
    [line] = [record.getMessage() for record in caplog.records]
    assert "is OFFLINE, was ONLINE" in line
    assert "can't be reached" in line


async def test_a_database_that_fails_for_a_moment(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on when it is back."""
    await sqlite_database.write(access.ensure_project, PROJECT, "one", clock.now())
    monkeypatch.setattr("engine.servers.health.PAUSE_S", 0.0)
    real, failures = store.due_in, [3]

    def failing(conn: Any) -> float | None:
        if failures[0]:
            failures[0] -= 1
            raise StorageUnavailable("The database is locked.")
        return real(conn)

    monkeypatch.setattr(store, "due_in", failing)
    bus = LocalBus()
    async with doubled() as double, httpx.AsyncClient(trust_env=False) as http:
        await sqlite_database.write(store.insert_server, server("srv-1", url=double.url))
        health = Health(sqlite_database, bus, lambda row: Http(_address_of(row), http))
        with bus.subscribe(f"servers:{PROJECT}") as told:
            await health.start()
            async with asyncio.timeout(20):
                assert await told.take() == ["srv-1"]
        await health.stop()


def _address_of(row: Any) -> Any:
    return address(ServerType.HTTP, row.url)
