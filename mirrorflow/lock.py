"""Who uses a data folder: the lock that says so, and the notes that tell clients of this machine where its servers are.

With SQLite one server holds the folder for itself. With PostgreSQL many processes, perhaps on many machines, share it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

if sys.platform != "win32":
    import fcntl

#: In the data folder: the token that the server keeps for its owner's command line.
TOKEN_FILE = "local.token"

#: In the data folder: a note for each server, locked by it for as long as it lives.
NOTES = "servers"


class StartRefused(Exception):
    """The server can't start as things are; the message is one line that names the remedy."""


class Running(msgspec.Struct, frozen=True):
    """Where a server over a data folder is."""

    url: str
    pid: int


@contextmanager
def held(data_dir: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the data folder, for this process alone or (``shared``) with others that share it too.

    Raises StartRefused if another one is in the way, or the folder can't be written to. The kernel gives the lock up
    when the process dies, however it dies.
    """
    try:
        data_dir.mkdir(0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartRefused(
            f"The data folder {data_dir} can't be used: {error.strerror}. Name another: --data-dir."
        ) from None
    try:
        if not _locked(descriptor, shared=shared):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartRefused(
                f"Another Mirrorflow (process {holder}) uses the data folder {data_dir}. "
                "Stop it, or name another folder with --data-dir."
            )
        if not shared:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """Note in the data folder, for its owner only, where this server is; forget it at the end."""
    note = data_dir / NOTES / f"{_host()}-{os.getpid()}.json"
    note.parent.mkdir(0o700, exist_ok=True)
    part = note.with_suffix(".part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _locked(descriptor)
        os.write(descriptor, msgspec.json.encode(Running(url, os.getpid())))
        part.replace(note)
        yield
    finally:
        note.unlink(missing_ok=True)
        os.close(descriptor)


def running(data_dir: Path) -> Running | None:
    """Where the server of this machine over the folder is, if one lives; of several the one that started last."""
    found: list[tuple[float, Running]] = []
    for note in (data_dir / NOTES).glob(f"{_host()}-*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            descriptor = os.open(note, os.O_RDWR)
            try:
                if _locked(descriptor):  # nobody holds it: its server was killed
                    note.unlink(missing_ok=True)
                else:
                    server = msgspec.json.decode(os.pread(descriptor, 4096, 0), type=Running)
                    found.append((os.fstat(descriptor).st_mtime, server))
            finally:
                os.close(descriptor)
    return max(found, key=lambda each: each[0])[1] if found else None


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64]


def _locked(descriptor: int, *, shared: bool = False) -> bool:
    if sys.platform == "win32":
        return True  # no lock there: SQLite's own keeps the data whole
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems know no locks; what is shared on purpose does without.
        return shared and error.errno in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
    return True
