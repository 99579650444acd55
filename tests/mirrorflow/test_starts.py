"""Starts of many processes: what is waited for, what is refused at once, and always one line that says why."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from db import migrate
from mirrorflow import embedded, processes, settings, worker
from mirrorflow.cli import run
from mirrorflow.lock import StartRefused
from mirrorflow.settings import Settings
from tests.live.server import Server, free_port
from tests.postgres import Postgres
from tests.redis import RedisServer, Unavailable, redis_for_all, redis_server  # noqa: F401


def many(data_dir: Path, database_url: str, redis_url: str | None, **more: Any) -> Settings:
    """The settings of one of many processes."""
    given: dict[str, Any] = {"wait_seconds": 0.0, "redis_url": redis_url, **more}
    return settings.load(data_dir=data_dir, database_url=database_url, **given)


@pytest.fixture
def babbler() -> Iterator[int]:
    """The port of something that answers whatever it is told, but is no Redis."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=babble, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_what_is_not_there_yet_is_waited_for(
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    redis_server: RedisServer,  # noqa: F811
) -> None:
    """With Docker everything starts at once: a Redis that comes a moment later is found."""
    redis_server.kill()
    monkeypatch.setattr("mirrorflow.processes.sleep", lambda seconds: redis_server.start())
    processes.stores_ready(many(tmp_path, postgres_url, redis_server.url, wait_seconds=20))
    assert redis_server.running


def test_waiting_has_an_end(tmp_path: Path, postgres_url: str) -> None:
    """And the line then names the place and what is wrong with it."""
    port = free_port()
    with pytest.raises(StartRefused, match=f"Redis: There is no Redis at 127.0.0.1:{port}"):
        processes.stores_ready(many(tmp_path, postgres_url, f"redis://127.0.0.1:{port}/0"))
    with pytest.raises(StartRefused, match=f"PostgreSQL at 127.0.0.1:{port}/x: .*can't be reached"):
        processes.stores_ready(many(tmp_path, f"postgresql+asyncpg://me:hush@127.0.0.1:{port}/x", None))


def test_what_waiting_can_not_mend_is_refused_at_once(
    tmp_path: Path, postgres: Postgres, postgres_url: str, babbler: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that is none, a wrong password, a newer database: however long the settings would wait."""

    def never(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr("mirrorflow.processes.sleep", never)
    with pytest.raises(StartRefused, match=r"is no Redis|not answer as a Redis|not as a Redis"):
        processes.stores_ready(many(tmp_path, postgres_url, f"redis://127.0.0.1:{babbler}/0", wait_seconds=60))
    try:
        locked = RedisServer(password="right")
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        for url in (f"redis://127.0.0.1:{locked.port}/0", f"redis://:wrong@127.0.0.1:{locked.port}/0"):
            with pytest.raises(StartRefused, match="password") as refusal:
                processes.stores_ready(many(tmp_path, postgres_url, url, wait_seconds=60))
            assert "wrong@" not in str(refusal.value)
    finally:
        locked.close()
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", postgres_url)
    with pytest.raises(migrate.DatabaseRefused, match=rf"9999.*{migrate.head()}"):
        processes.stores_ready(many(tmp_path, postgres_url, None, wait_seconds=60))


@pytest.mark.parametrize("arguments", [["worker"], ["serve", "--no-worker"]])
def test_sqlite_belongs_to_one_process(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the remedy, exit code 2, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--data-dir", "data"]) == 2
    said = capsys.readouterr().err
    assert "SQLite belongs to one process" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_many_processes_need_redis(tmp_path: Path, postgres_url: str) -> None:
    """Else nobody would hear of work but by looking for it."""
    given = many(tmp_path, postgres_url, None)
    with pytest.raises(StartRefused, match="MIRRORFLOW_REDIS_URL"):
        worker.work(given, lambda ready: None)
    with pytest.raises(StartRefused, match="MIRRORFLOW_REDIS_URL"):
        embedded.serve(given, _nothing, works=False)


async def _nothing(server: Any) -> None:
    pass


async def test_a_worker_answers_for_its_health_and_stops_in_order(
    tmp_path: Path,
    postgres_url: str,
    redis_server: RedisServer,  # noqa: F811
) -> None:
    """No GraphQL there, but what supervisors and Prometheus ask; SIGTERM ends it with 0."""
    env = {"MIRRORFLOW_DATABASE_URL": postgres_url, "MIRRORFLOW_REDIS_URL": redis_server.url}
    port = free_port()
    process = Server(
        tmp_path, command="worker", env=env, args=("--labels", "gpu,eu", "--slots", "8", "--health-port", str(port))
    )
    async with process, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        assert "labels: eu, gpu" in process.output
        assert (await http.get("/health/live")).json() == {"status": "ok"}
        ready = await http.get("/health/ready")
        assert ready.json() == {"status": "ok", "checks": {"database": "ok", "disk": "ok", "engine": "ok"}}
        assert "mirrorflow_queue_depth" in (await http.get("/metrics")).text
        assert (await http.post("/graphql", json={"query": "{ __typename }"})).status_code == 404
        assert await process.stop() == 0
