"""What surrounds a server goes wrong: it refuses to start with a remedy, or says so, loses nothing, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db import migrate
from tests.live.mischief import START, Health, ask, flow, run, step, stored
from tests.live.oracle import hold
from tests.live.server import ROOT, TOKEN, Server, wait_until
from tests.live.test_streams import begun, ended, gate

ROOT_ONLY = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a file system needs root on Linux"
)


def refused(folder: Path, *arguments: str, user: int | None = None, **env: str) -> str:
    """Run ``mirrorflow serve``, which must refuse to start: with a code, one clear line, and no stack."""
    done = subprocess.run(
        [sys.executable, "-m", "mirrorflow", "serve", "--port", "0", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith("MIRRORFLOW_")}
        | {"PYTHONPATH": str(ROOT), "MIRRORFLOW_DATA_DIR": str(folder), "MIRRORFLOW_TOKEN": TOKEN, "COLUMNS": "1000"}
        | env,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        user=user,
    )
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -9), said
    assert "Traceback" not in said, said
    assert "GraphiQL " not in said, said
    assert 0 < len(done.stderr.strip().splitlines()) <= 3, said
    return done.stderr


# ---- refusals to start


@pytest.mark.parametrize("kind", ["noise", "flipped", "folder", "stranger", "newer"])
def test_a_database_that_is_none(tmp_path: Path, kind: str) -> None:
    """Noise, a damaged one, a folder, a stranger's, a newer one's: refused, not touched."""
    file = tmp_path / "data" / "mirrorflow.db"
    file.parent.mkdir()
    if kind in ("flipped", "newer"):
        migrate.upgrade(f"sqlite:///{file}")
    match kind:
        case "noise":
            file.write_bytes(bytes(range(256)) * 64)
        case "flipped":
            content = bytearray(file.read_bytes())
            content[100:4_096] = b"\xff" * 3_996
            file.write_bytes(content)
        case "folder":
            file.mkdir()
        case "stranger" | "newer":
            with contextlib.closing(sqlite3.connect(file)) as connection, connection:
                if kind == "stranger":
                    connection.execute("CREATE TABLE songs (title TEXT)")
                else:
                    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes() if file.is_file() else None
    said = refused(tmp_path / "data")
    assert "database" in said.lower() or str(file) in said, said
    assert (file.read_bytes() if file.is_file() else None) == before


def test_a_port_in_use(tmp_path: Path) -> None:
    """The port is named, and how to take another."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(tmp_path / "data", "--port", str(port))
    assert str(port) in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "high"),
        ("TOKEN", "short"),
        ("DATABASE_URL", "postgresql+asyncpg://u:p@127.0.0.1:1/x"),
        ("HOST", "no.such.host.invalid"),
    ],
)
def test_a_bad_setting(tmp_path: Path, name: str, value: str) -> None:
    """The setting is named with what is wrong; nothing secret is shown."""
    arguments = ("--port", "8123") if name != "PORT" else ("--log-level", "info")
    env = {f"MIRRORFLOW_{name}": value, "MIRRORFLOW_WAIT_SECONDS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "mirrorflow", "serve", *arguments],
        env={key: item for key, item in os.environ.items() if not key.startswith("MIRRORFLOW_")}
        | {"PYTHONPATH": str(ROOT), "MIRRORFLOW_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "1000"}
        | env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode not in (0, -9), done
    assert "Traceback" not in done.stdout + done.stderr
    assert f"MIRRORFLOW_{name}" in done.stderr or value in done.stderr or "database" in done.stderr, done.stderr
    if name in ("TOKEN", "DATABASE_URL"):
        assert "short=" not in done.stderr
        assert "u:p@" not in done.stderr


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    """The folder is named, and how to name another."""
    (tmp_path / "data").write_text("a file")
    assert "--data-dir" in refused(tmp_path / "data")


def test_an_allowed_root_that_is_a_file(tmp_path: Path) -> None:
    """The folder that nodes may touch is named."""
    (tmp_path / "root").write_text("a file")
    assert "root" in refused(tmp_path / "data", MIRRORFLOW_ALLOWED_ROOTS=str(tmp_path / "root"))


@ROOT_ONLY
def test_a_data_folder_that_is_read_only(tmp_path: Path) -> None:
    """A folder on a read-only file system can't be used."""
    with mounted(tmp_path / "data", "1m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        said = refused(folder)
        assert str(folder) in said
        assert "--data-dir" in said


@ROOT_ONLY
def test_no_space_at_the_start(tmp_path: Path) -> None:
    """With no space for the first database the start is refused, and works once there is some."""
    with mounted(tmp_path / "data", "1m") as folder:
        fill(folder)
        said = refused(folder)
        assert "space" in said or "full" in said, said


# ---- while it runs


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small file system in memory at ``folder``, gone at the end."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space there is; the file that does."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4_096)
    return ballast


@ROOT_ONLY
async def test_a_full_disk(tmp_path: Path) -> None:
    """Nothing is acknowledged that isn't stored, health says so, and all goes on when there is space again."""
    with mounted(tmp_path / "data", "8m") as folder:
        server = Server(folder)
        async with gate() as (url, opened), server:
            health = Health(server)
            await health.check()
            workflow = await stored(server, flow("filler", step("core/log", message="kept"), step("core/noop", "b")))
            waiting = await begun(server, flow("waits", step("http/request", "gate", url=url), step("core/noop", "b")))
            ballast = fill(folder)
            acknowledged, refusals = [], []
            for n in range(60):
                given = {"workflow": {"id": workflow}, "input": {"n": n, "text": "x" * 60_000}}
                answer = await ask(server, START, {"input": given})
                if answer.code is None:
                    acknowledged.append((answer.body["data"]["instanceStart"]["instance"]["id"], n))
                else:
                    refusals.append(answer)
                if len(refusals) == 3:
                    break
            assert len(refusals) == 3
            for answer in refusals:
                assert answer.code == "STORAGE_UNAVAILABLE", answer
                assert "full" in answer.message or "space" in answer.message, answer
            opened.set()  # what a running node gives now has no place: it must wait, not be lost
            ready = await server.request("GET", "/health/ready")
            assert ready.status_code == 503, ready.text
            assert "full" in ready.text
            assert (await server.request("GET", "/health/live")).status_code == 200
            reading = await ask(server, "{ instances(first: 1) { nodes { id } } }")
            assert reading.code is None, reading

            ballast.unlink()

            async def well() -> bool:
                return bool((await server.request("GET", "/health/ready")).status_code == 200)

            await wait_until(well)
            for id, n in acknowledged:
                assert (await ended(server, id))["status"] == "COMPLETED"
                data = await server.graphql("query ($id: ID!) { instance(id: $id) { input } }", {"id": id})
                assert data["instance"]["input"]["n"] == n
            assert (await ended(server, waiting))["status"] == "COMPLETED"
            await health.check()
            total = (await server.graphql("{ instances(where: {}) { totalCount } }"))["instances"]["totalCount"]
            assert total == len(acknowledged) + 3  # two of the health check, the one that waited
            await server.stop()
        await hold(f"sqlite:///{folder / 'mirrorflow.db'}")


@ROOT_ONLY
async def test_a_disk_too_full_for_a_file(tmp_path: Path) -> None:
    """A node whose file finds no space fails as RESOURCE and leaves no half of it; the server goes on."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "large.bin").write_bytes(b"x" * 3_000_000)
    with mounted(tmp_path / "data", "8m") as folder:
        env = {"MIRRORFLOW_ALLOWED_ROOTS": f"{folder / 'files'},{photos}"}
        async with Server(folder, env=env) as server:
            health = Health(server)
            await health.check()
            copies = step("storage/file", path="copy.bin", source=str(photos / "large.bin"))
            workflow = await stored(server, flow("large", copies))
            ballast = fill(folder)
            with ballast.open("r+b") as file:  # some room for the history, too little for the file
                file.truncate(ballast.stat().st_size - 1_500_000)
            instance = await run(server, workflow)
            assert instance["status"] == "FAILED"
            assert (instance["error"]["code"], instance["error"]["category"]) == ("DISK_FULL", "RESOURCE")
            assert list((folder / "files").iterdir()) == []
            ballast.unlink()
            await health.check()
            assert (await run(server, workflow))["status"] == "COMPLETED"


async def test_a_locked_database(tmp_path: Path) -> None:
    """Locked for a moment, a start waits; locked for long, it is refused and stored nowhere; then all goes on."""
    async with gate() as (url, opened), Server(tmp_path / "data") as server:
        health = Health(server)
        await health.check()
        workflow = await stored(server, flow("quick", step("core/noop")))
        waiting = await begun(server, flow("waits", step("http/request", "gate", url=url), step("core/noop", "b")))
        other = sqlite3.connect(tmp_path / "data" / "mirrorflow.db", isolation_level=None, check_same_thread=False)
        with contextlib.closing(other):
            other.execute("BEGIN IMMEDIATE")
            soon = asyncio.create_task(ask(server, START, {"input": {"workflow": {"id": workflow}}}))
            assert (await ask(server, "{ instances { totalCount } }")).code is None  # reading goes on
            other.execute("ROLLBACK")
            assert (await soon).code is None
            other.execute("BEGIN IMMEDIATE")
            opened.set()
            answer = await ask(server, START, {"input": {"workflow": {"id": workflow}, "input": {"n": "refused"}}})
            assert answer.code == "STORAGE_UNAVAILABLE", answer
            assert "locked" in answer.message
            other.execute("ROLLBACK")
        assert (await ended(server, waiting))["status"] == "COMPLETED"
        await health.check()
        inputs = await server.graphql("{ instances { nodes { input } } }")
        assert {"n": "refused"} not in [node["input"] for node in inputs["instances"]["nodes"]]


async def test_an_artifact_that_is_gone(tmp_path: Path) -> None:
    """A stored output whose file was deleted is an error with a code where it is asked for, and no more."""
    async with Server(tmp_path / "data") as server:
        health = Health(server)
        workflow = await stored(server, flow("large", step("core/noop")))
        instance = await run(server, workflow, {"text": "x" * 200_000})
        for file in (tmp_path / "data" / "artifacts").rglob("*"):
            if file.is_file():
                file.unlink()
        fields = 'output outputArtifact { url } nodeExecution(path: "a") { output input }'
        query = f"query ($id: ID!) {{ instance(id: $id) {{ {fields} }} }}"
        answer = await ask(server, query, {"id": instance["id"]})
        found: dict[str, Any] = answer.body["data"]["instance"]
        artifact = await server.request("GET", found["outputArtifact"]["url"])
        assert artifact.status_code == 404
        await health.check()
