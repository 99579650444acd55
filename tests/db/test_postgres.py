"""What is PostgreSQL's own: connections that heal, bounds on whatever may take long, refusals by name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Connection, make_url, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection as Adapted
from sqlalchemy.util import await_only

from db import migrate, session
from db.refusal import unavailable
from db.session import connect, place
from flow.errors import StorageUnavailable
from tests.postgres import Postgres


def one(connection: Connection) -> int:
    return int(connection.execute(text("SELECT 1")).scalar_one())


def pid(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


async def test_a_restart_of_the_server_is_not_noticed_by_who_comes_after(postgres: Postgres, postgres_url: str) -> None:
    """Connections that the server closed while they lay idle are replaced before anybody meets them."""
    db = connect(postgres_url)
    try:
        before = set(await asyncio.gather(*(db.read(pid) for _ in range(5))))
        gone = ", ".join(map(str, before))
        end = f"SELECT pg_terminate_backend(pid, 5000) FROM unnest(ARRAY[{gone}]) AS pid"
        await asyncio.to_thread(postgres.execute, end)  # elsewhere, so that our loop hears of it
        after = set(await asyncio.gather(*(db.read(pid) for _ in range(5))))
        assert not before & after
    finally:
        await db.close()


async def test_a_connection_that_rested_long_is_asked_whether_it_lives(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then, since the question costs as much as a transaction."""
    asked: list[bool] = []
    db = connect(postgres_url)
    ping = Adapted.ping

    def noted(connection: Adapted) -> None:
        asked.append(True)
        ping(connection)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(Adapted, "ping", noted)
    try:
        await db.read(one)
        await db.read(one)
        assert asked == []
        monkeypatch.setattr(session, "RESTED_S", -1.0)
        await db.read(one)
        assert asked == [True]
    finally:
        await db.close()


async def test_a_statement_that_takes_too_long_is_given_up(postgres_url: str) -> None:
    """The server ends it; the caller is told that it may try again."""
    db = connect(postgres_url, statement_s=0.2)
    try:
        with pytest.raises(StorageUnavailable, match="took too long"):
            await db.read(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
        assert await db.read(one) == 1
    finally:
        await db.close()


async def test_a_lock_is_waited_for_only_so_long(postgres_url: str) -> None:
    """Another program's forgotten lock holds nobody up for ever."""
    holder, waiter = connect(postgres_url), connect(postgres_url, lock_s=0.2)
    held, enough = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(connection: Connection) -> None:
        connection.execute(text("LOCK TABLE projects"))
        loop.call_soon(held.set)
        await_only(enough.wait())

    holding = asyncio.create_task(holder.write(hold))
    try:
        await held.wait()
        with pytest.raises(StorageUnavailable, match="holds a lock"):
            await waiter.write(lambda connection: connection.execute(text("LOCK TABLE projects")))
    finally:
        enough.set()
        await holding
        await holder.close()
        await waiter.close()


async def test_more_work_than_connections_waits_its_turn(postgres_url: str) -> None:
    """All of it is done, on no more connections than were allowed."""
    db = connect(postgres_url, pool=3)
    try:
        assert len(set(await asyncio.gather(*(db.read(pid) for _ in range(60))))) <= 3
    finally:
        await db.close()


async def test_who_gets_no_connection_in_time_is_told(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal with the setting that helps, not a stack."""
    monkeypatch.setattr(session, "POOL_TIMEOUT_S", 0.1)
    db = connect(postgres_url, pool=1)
    try:
        enough, taken = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def keep(connection: Connection) -> None:
            loop.call_soon(taken.set)
            await_only(enough.wait())

        keeping = asyncio.create_task(db.read(keep))
        await taken.wait()
        with pytest.raises(StorageUnavailable, match="MIRRORFLOW_DATABASE_POOL"):
            await db.read(one)
        enough.set()
        await keeping
    finally:
        await db.close()


async def test_the_server_knows_who_we_are_and_drops_who_stops_in_a_transaction(postgres_url: str) -> None:
    """A stopped process would keep a project's row locked until it goes on, which may be never."""

    def shown(connection: Connection) -> dict[str, str]:
        names = ("application_name", "idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
        return {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in names}

    db = connect(postgres_url, name="mirrorflow worker")
    try:
        assert await db.read(shown) == {
            "application_name": "mirrorflow worker",
            "idle_in_transaction_session_timeout": f"{session.IDLE_IN_TRANSACTION_S}s",
            "statement_timeout": "30s",
            "lock_timeout": "10s",
        }
    finally:
        await db.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "nowhere"}, "has no database of that name"),
        ({"username": "bob", "password": "wrong"}, "refuses this user or its password"),
    ],
)
def test_what_waiting_can_not_mend_is_refused_by_name(
    postgres: Postgres, postgres_url: str, change: dict[str, Any], said: str
) -> None:
    """A wrong password or name: a refusal of its own kind, so that a start doesn't wait for it."""
    url = make_url(postgres_url).set(**change).render_as_string(hide_password=False)
    with pytest.raises(migrate.DatabaseRefused, match=said) as refusal:
        migrate.upgrade(url)
    assert refusal.value.code == "DATABASE_DENIED"
    assert "wrong" not in refusal.value.message


def test_a_place_names_no_password() -> None:
    """What is shown in logs while a start waits."""
    assert place("postgresql+asyncpg://me:hush@db.example.org/flows") == "db.example.org:5432/flows"
    assert place("postgresql+asyncpg://me:hush@/flows?host=/run/pg") == "/run/pg:5432/flows"


#: What PgBouncer takes at the start of a connection without being told to ignore it.
PGBOUNCER_TAKES = {
    "user", "database", "application_name", "client_encoding", "datestyle", "timezone", "standard_conforming_strings",
}  # fmt: skip


async def test_a_connection_starts_as_pgbouncer_takes_it() -> None:
    """It closes one that brings other settings; https://www.pgbouncer.org/config.html#ignore_startup_parameters."""
    brought: dict[str, str] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not brought:
            size = int.from_bytes(await reader.readexactly(4))
            packet = await reader.readexactly(size - 4)
            if size == 8:  # asks for TLS
                writer.write(b"N")
            else:
                words = packet[4:].rstrip(b"\0").decode().split("\0")
                brought.update(zip(words[::2], words[1::2], strict=True))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        db = connect(f"postgresql+asyncpg://somebody:secret@127.0.0.1:{port}/mirrorflow")
        with pytest.raises(StorageUnavailable):
            await db.read(one)
        await db.close()
    assert brought["application_name"] == "mirrorflow"
    assert {name.lower() for name in brought} <= PGBOUNCER_TAKES


@pytest.mark.parametrize("state", ["26000", "42P05"])
def test_mixed_up_prepared_statements_are_told_with_the_remedy(state: str) -> None:
    """Of a PgBouncer in transaction mode that was not told to keep them."""
    error = Exception('prepared statement "__asyncpg_stmt_1__" does not exist')
    error.sqlstate = state  # type: ignore[attr-defined]
    assert "max_prepared_statements" in unavailable(error).message
