"""One server per data folder: the lock that says so, and the note that tells clients where the server is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

if sys.platform != "win32":
    import fcntl

#: In the data folder: the token that the server keeps for its owner's command line.
TOKEN_FILE = "local.token"


class StartRefused(Exception):
    """The server can't start as things are; the message is one line that names the remedy."""


class Running(msgspec.Struct, frozen=True):
    """Where the server over a data folder is."""

    url: str
    pid: int


@contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process. Raises StartRefused if another one does, or it can't be written to.

    The kernel gives the lock up when the process dies, however it dies.
    """
    try:
        data_dir.mkdir(0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartRefused(
            f"The data folder {data_dir} can't be used: {error.strerror}. Name another: --data-dir."
        ) from None
    try:
        if not _locked(descriptor):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StartRefused(
                f"Another Mirrorflow (process {holder}) uses the data folder {data_dir}. "
                "Stop it, or name another folder with --data-dir."
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """Note in the data folder, for its owner only, where the server is; forget it at the end."""
    note = data_dir / "server.json"
    part = note.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(msgspec.json.encode(Running(url, os.getpid())))
    part.replace(note)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def running(data_dir: Path) -> Running | None:
    """Where the server over the folder is, if one lives."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        if _locked(descriptor):
            return None
        return msgspec.json.decode((data_dir / "server.json").read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True  # no lock there: SQLite's own keeps the data whole
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
