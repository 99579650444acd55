"""Servers of a project: registered, changed, deleted, checked, chosen."""

from __future__ import annotations

import asyncio
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from db.store import keyset
from db.store import servers as store
from engine.access import LOCAL, ROLES, Actor
from engine.engine import Engine
from engine.servers.health import Unusable
from engine.servers.servers import MAX_SERVERS
from flow.errors import Conflict, Denied, Invalid, NotFound
from flow.servers import CheckOutcome, Load, ServerStatus, ServerType
from tests.engine.conftest import engine_on
from tests.engine.servers.double import Double, doubled

STRANGER = replace(LOCAL, project_id="proj-other")


def as_role(role: str) -> Actor:
    return replace(LOCAL, permissions=ROLES[role])


async def registered(engine: Engine, name: str = "one", **given: Any) -> str:
    """A server's id; nobody answers there."""
    settings: dict[str, Any] = {"url": "http://127.0.0.1:1", "type": ServerType.HTTP, "enabled": False} | given
    return (await engine.servers.register(LOCAL, name=name, **settings)).server_id


async def statuses(engine: Engine, id: str, wanted: ServerStatus) -> None:
    """Returns when the server has this status."""
    with engine.bus.subscribe(f"servers:{LOCAL.project_id}") as changes:
        async with asyncio.timeout(20):
            while (await engine.servers.get(LOCAL, id)).status != wanted:
                await changes.take()


async def test_every_project_has_a_local_server_once(tmp_path: Path) -> None:
    """It is there, ONLINE, after the first start; deleted by somebody, it does not come back with the next."""
    async with engine_on(tmp_path) as engine:
        local = await engine.servers.named(LOCAL, "local")
        assert local is not None
        assert (local.type, local.status, local.enabled) == ("local", "ONLINE", True)
        assert local.batch_size >= 8
        assert [each.server.id for each in await engine.servers.available(LOCAL)] == [local.id]
        await engine.servers.delete(LOCAL, local.id)
    async with engine_on(tmp_path) as engine:
        assert await engine.servers.named(LOCAL, "local") is None


async def test_a_registered_server_is_checked_at_once(engine: Engine) -> None:
    """It begins OFFLINE and is ONLINE as soon as its first check has gone well, with what it can do."""
    async with doubled() as double:
        id = await registered(engine, url=double.url + "/", enabled=True)
        await statuses(engine, id, ServerStatus.ONLINE)
        row = await engine.servers.get(LOCAL, id)
        assert row.url == double.url
        assert row.capabilities == {"gpu": 1}
        assert row.latency_ms is not None
        assert row.last_error is None


async def test_bad_settings_are_refused_with_the_place(engine: Engine) -> None:
    """Everything that is wrong at once, and nothing is stored."""
    with pytest.raises(Invalid) as refusal:
        await registered(engine, "", url="file:///etc/passwd", batch_size=0, token="a\r\nX-Evil: 1")
    assert [problem.pointer for problem in refusal.value.problems] == ["/name", "/url", "/batchSize", "/token"]
    with pytest.raises(Invalid, match="needs no token"):
        await registered(engine, type=ServerType.LOCAL, token="x")
    assert [each.name for each in (await engine.database.read(all_servers)).values()] == ["local"]


def all_servers(conn: Any) -> dict[str, Any]:
    page = keyset.page(conn, store.SERVERS, LOCAL.project_id, keyset.EVERY, keyset.Slice("NAME", limit=100))
    return {row.id: row for row in page.rows}


async def test_names_are_unique_in_the_project(engine: Engine) -> None:
    """A name that is taken is a Conflict, for a new server and for one that is renamed."""
    await registered(engine, "a")
    b = await registered(engine, "b")
    with pytest.raises(Conflict, match="'a' already"):
        await registered(engine, "a")
    with pytest.raises(Conflict, match="'a' already"):
        await engine.servers.update(LOCAL, b, name="a")
    assert (await engine.servers.update(LOCAL, b, name="b")).changed is False


async def test_a_project_has_so_many_servers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the limit is refused."""
    assert MAX_SERVERS == 1_000
    monkeypatch.setattr("engine.servers.servers.MAX_SERVERS", 2)
    await registered(engine, "a")
    with pytest.raises(Exception, match="at most 2 servers"):
        await registered(engine, "b")


async def test_roles(engine: Engine) -> None:
    """Viewers look, operators check, administrators change."""
    id = await registered(engine)
    await engine.servers.get(as_role("viewer"), id)
    with pytest.raises(Denied):
        await engine.servers.check_health(as_role("viewer"), id)
    await engine.servers.check_health(as_role("operator"), id)
    for refused in (
        engine.servers.register(as_role("editor"), name="x", url="http://h", type=ServerType.HTTP),
        engine.servers.update(as_role("editor"), id, enabled=True),
        engine.servers.delete(as_role("editor"), id),
        engine.servers.status_set(as_role("editor"), id, ServerStatus.MAINTENANCE),
    ):
        with pytest.raises(Denied):
            await refused


async def test_another_project_does_not_see_it(engine: Engine) -> None:
    """Every look-up and every change is NotFound there."""
    id = await registered(engine)
    assert await engine.servers.named(STRANGER, "one") is None
    for refused in (
        engine.servers.get(STRANGER, id),
        engine.servers.availability(STRANGER, id),
        engine.servers.check_health(STRANGER, id),
    ):
        with pytest.raises(NotFound):
            await refused


async def test_another_address_begins_anew(engine: Engine) -> None:
    """The status is OFFLINE until the next check, and what was known of the old address is forgotten."""
    async with doubled() as double:
        id = await registered(engine, url=double.url, enabled=True)
        await statuses(engine, id, ServerStatus.ONLINE)
        await engine.servers.update(LOCAL, id, url="http://127.0.0.1:1", enabled=False)
        row = await engine.servers.get(LOCAL, id)
        assert (row.status, row.capabilities, row.enabled) == ("OFFLINE", None, False)


async def test_a_check_of_the_old_address_does_not_count_for_the_new(engine: Engine) -> None:
    """What was found after the server was moved is thrown away."""
    async with doubled() as double:
        id = await registered(engine, url=double.url)
        asked = await engine.servers.get(LOCAL, id)
        await engine.servers.update(LOCAL, id, url="http://127.0.0.1:1")
        await engine.servers.health.check(asked)
        row = await engine.servers.get(LOCAL, id)
        assert (row.status, row.last_check_at) == ("OFFLINE", None)


async def test_three_failures_take_a_server_out_of_service(engine: Engine) -> None:
    """Two failures leave it ONLINE; the third makes it OFFLINE if nobody answers and ERROR if the answer is wrong."""
    async with doubled() as double:
        id = await registered(engine, url=double.url)
        for fault, ends in (("html", ServerStatus.ERROR), ("dead", ServerStatus.OFFLINE)):
            double.fault = None
            assert (await engine.servers.check_health(LOCAL, id)).status == "ONLINE"
            double.fault = fault
            seen = [(await engine.servers.check_health(LOCAL, id)).status for _ in range(3)]
            assert seen == ["ONLINE", "ONLINE", ends]
            assert (await engine.servers.get(LOCAL, id)).last_error is not None


async def test_maintenance_is_set_and_left_by_people(engine: Engine) -> None:
    """Checks go on and change nothing; when people end it, the next check says what the server is."""
    async with doubled() as double:
        id = await registered(engine, url=double.url, enabled=True)
        await engine.servers.status_set(LOCAL, id, ServerStatus.MAINTENANCE)
        row = await engine.servers.check_health(LOCAL, id)
        assert (row.status, row.capabilities) == ("MAINTENANCE", {"gpu": 1})
        assert (await engine.servers.availability(LOCAL, id)).reason == "NOT_ONLINE"
        await engine.servers.status_set(LOCAL, id, ServerStatus.OFFLINE)
        await statuses(engine, id, ServerStatus.ONLINE)
        with pytest.raises(Invalid, match="checks to find"):
            await engine.servers.status_set(LOCAL, id, ServerStatus.ERROR)


async def test_a_busy_server_says_so_itself(engine: Engine) -> None:
    """Its word makes it BUSY, and its next one ONLINE again."""
    async with doubled() as double:
        id = await registered(engine, url=double.url, enabled=True)
        double.health = {"status": "busy"}
        assert (await engine.servers.check_health(LOCAL, id)).status == "BUSY"
        double.health = {"status": "ok"}
        assert (await engine.servers.check_health(LOCAL, id)).status == "ONLINE"


async def test_availability_says_why_not(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """DISABLED, NOT_ONLINE with the status, BUSY with the task; by id or by name."""
    local = await engine.servers.availability(LOCAL, "local")
    assert local.available
    assert local.free == local.server.batch_size
    id = local.server.id
    monkeypatch.setattr(store, "loads", lambda conn, ids: {each: Load(local.free, "task-1") for each in ids})
    busy = await engine.servers.availability(LOCAL, id)
    assert (busy.reason, busy.free) == ("BUSY", 0)
    assert "task-1" in busy.message
    assert await engine.servers.available(LOCAL) == []
    await engine.servers.status_set(LOCAL, id, ServerStatus.OFFLINE)
    offline = await engine.servers.availability(LOCAL, id)
    assert (offline.reason, "OFFLINE" in offline.message) == ("NOT_ONLINE", True)
    await engine.servers.update(LOCAL, id, enabled=False)
    assert (await engine.servers.availability(LOCAL, id)).reason == "DISABLED"
    with pytest.raises(NotFound):
        await engine.servers.availability(LOCAL, "nowhere")


async def test_a_server_that_works_is_not_deleted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deletion is a Conflict that names the task; with force it goes."""
    id = await registered(engine)
    monkeypatch.setattr(store, "loads", lambda conn, ids: {each: Load(2, "task-1") for each in ids})
    with pytest.raises(Conflict, match="task-1") as refusal:
        await engine.servers.delete(LOCAL, id)
    assert refusal.value.details == {"running": 2, "task": "task-1"}
    await engine.servers.delete(LOCAL, id, force=True)
    with pytest.raises(NotFound):
        await engine.servers.get(LOCAL, id)


async def test_a_token_is_sealed_sent_and_never_told(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reaches the server, and stands neither in the database nor in what is logged or kept of the answers."""
    caplog.set_level(logging.DEBUG)
    token = "a-very-secret-token"
    async with doubled() as double:
        double.token = token
        id = await registered(engine, url=double.url, token=token)
        assert (await engine.servers.check_health(LOCAL, id)).status == "ONLINE"
        double.fault = "echo"
        row = await engine.servers.check_health(LOCAL, id)
        assert row.last_error is not None
        assert "********" in row.last_error
        double.token, double.fault = "another", None
        row = await engine.servers.check_health(LOCAL, id)
        assert row.last_error is not None
        assert "401" in row.last_error
    files = [path for path in tmp_path.iterdir() if path.name.startswith("mirrorflow.db")]  # noqa: ASYNC240
    assert not [path for path in files if b"a-very-secret" in path.read_bytes()]
    assert token not in caplog.text
    assert token not in repr(engine.servers._clients._open)
    key = tmp_path / "secret.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


async def test_a_token_is_not_sent_to_another_address(engine: Engine) -> None:
    """Moving a server that has a token needs the token again, or none."""
    id = await registered(engine, token="secret")
    with pytest.raises(Invalid, match="token"):
        await engine.servers.update(LOCAL, id, url="http://elsewhere")
    await engine.servers.update(LOCAL, id, url="http://127.0.0.1:1/deeper")
    await engine.servers.update(LOCAL, id, url="http://elsewhere", token=None)
    assert (await engine.servers.get(LOCAL, id)).sealed_token is None


async def test_a_token_belongs_to_its_row(engine: Engine) -> None:
    """A sealed token moved to another server does not open; the check says what to do."""
    a, b = await registered(engine, "a", token="secret"), await registered(engine, "b", token="other")
    row = replace(await engine.servers.get(LOCAL, b), sealed_token=(await engine.servers.get(LOCAL, a)).sealed_token)
    with pytest.raises(Unusable, match="give the secret again"):
        engine.servers.client_of(row)
    await engine.database.write(store.update_server, LOCAL.project_id, b, sealed_token=row.sealed_token)
    checked = await engine.servers.check_health(LOCAL, b)
    assert checked.last_error is not None
    assert "MIRRORFLOW_SECRET_KEY" in checked.last_error


async def test_history_is_kept_and_bounded(engine: Engine) -> None:
    """The last hundred results, the newest with its outcome and the status after it."""
    async with doubled() as double:
        id = await registered(engine, url=double.url)
        for _ in range(103):
            await engine.servers.check_health(LOCAL, id)
        double.fault = "html"
        await engine.servers.check_health(LOCAL, id)

    def history(conn: Any) -> Any:
        part = keyset.Slice("AT", descending=True, limit=200)
        return keyset.pages(conn, store.CHECKS, [id], keyset.EVERY, part)[id].rows

    rows = await engine.database.read(history)
    assert len(rows) == 100
    assert (rows[0].outcome, rows[0].status) == (CheckOutcome.WRONG_ANSWER, "ONLINE")
    assert {row.outcome for row in rows[1:]} == {"OK"}


async def test_one_that_hangs_delays_no_other(engine: Engine) -> None:
    """While one server is still silent, the others have been checked."""
    async with doubled() as slow, doubled() as quick:
        slow.fault = "slow"
        hanging = await registered(engine, "slow", url=slow.url, enabled=True)
        await slow.asked.wait()
        id = await registered(engine, "quick", url=quick.url, enabled=True)
        await statuses(engine, id, ServerStatus.ONLINE)
        assert (await engine.servers.get(LOCAL, hanging)).last_check_at is None
        slow.release.set()


@pytest.fixture
async def double(engine: Engine) -> Any:
    """A server to register."""
    async with doubled() as running:
        yield running


async def test_a_disabled_server_is_left_alone(engine: Engine, double: Double) -> None:
    """The loop asks it nothing; a check that somebody asks for is made."""
    id = await registered(engine, url=double.url, enabled=False)
    other = await registered(engine, "other", url=double.url, enabled=True)
    await statuses(engine, other, ServerStatus.ONLINE)
    assert (await engine.servers.get(LOCAL, id)).last_check_at is None
    assert (await engine.servers.check_health(LOCAL, id)).status == "ONLINE"
