"""What ``mirrorflow doctor`` looks at: every part of the installation, and what to do where one is not in order."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mirrorflow.lock import running
from mirrorflow.settings import Settings, unknown

LEAST_FREE_MB = 200
LEAST_YEAR = 2025


class Level(StrEnum):
    """How bad it is."""

    FINE = "ok"
    NOTE = "note"
    WRONG = "WRONG"


class Finding(NamedTuple):
    """What was found about one part; the message names the remedy."""

    level: Level
    part: str
    message: str


def findings(settings: Settings) -> list[Finding]:
    """Everything that was found. Changes nothing but for a file written to the data folder and removed again."""
    checks: list[Callable[[Settings], Iterator[Finding]]] = [
        _folders, _database, _clock, _port, _extras, _node_types, _graphiql, _environment,
    ]  # fmt: skip
    found = [finding for check in checks for finding in check(settings)]
    if not settings.alone:
        found += _shared(
            settings,
            usable=not any(each.part in {"database", "migrations"} and each.level is Level.WRONG for each in found),
        )
    return found


def _folders(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        yield Finding(
            Level.WRONG, "data folder", f"{folder}: {error.strerror}. Make it writable or set MIRRORFLOW_DATA_DIR."
        )
        return
    if sys_statvfs := getattr(os, "statvfs", None):
        stats = sys_statvfs(folder)
        free_mb = stats.f_bavail * stats.f_frsize // 1_000_000
        if free_mb < LEAST_FREE_MB:
            yield Finding(Level.WRONG, "data folder", f"{folder}: only {free_mb} MB are free. Make room.")
            return
        yield Finding(Level.FINE, "data folder", f"{folder}, {free_mb} MB free")
    for root in settings.allowed_roots:
        if not root.is_dir() and root.parent != folder:
            message = f"{root} is no folder. Make it, or change MIRRORFLOW_ALLOWED_ROOTS."
            yield Finding(Level.WRONG, "roots", message)


def _database(settings: Settings) -> Iterator[Finding]:
    from db import migrate
    from flow.errors import WorkflowError

    try:
        revision = migrate.current(settings.database)
    except (WorkflowError, OSError, ImportError, ValueError) as error:
        yield Finding(Level.WRONG, "database", str(error))
        return
    if revision is None:
        yield Finding(Level.FINE, "database", "empty: the first `mirrorflow serve` makes its tables")
    elif revision != migrate.head():
        message = f"revision {revision}, this program needs {migrate.head()}: run `mirrorflow db upgrade`."
        yield Finding(Level.WRONG, "migrations", message)
    else:
        yield Finding(Level.FINE, "migrations", f"up to date ({revision})")


def _shared(settings: Settings, *, usable: bool) -> list[Finding]:
    """What many processes share. A database that can't be used, or has no tables yet, is asked nothing more."""
    from db import migrate
    from flow.errors import WorkflowError
    from mirrorflow import checkup_shared

    found = list(checkup_shared.redis(settings))
    if not usable or migrate.current(settings.database) is None:
        return found
    for check in (checkup_shared.postgresql, checkup_shared.artifacts, checkup_shared.workers):
        try:
            found += check(settings)
        except WorkflowError as error:
            found.append(Finding(Level.WRONG, check.__name__, error.message))
    return found


def _clock(settings: Settings) -> Iterator[Finding]:
    from engine import clock

    now = clock.now()
    newest = max((path.stat().st_mtime for path in settings.data_dir.glob("*.db*")), default=0.0)
    if now.year < LEAST_YEAR:
        yield Finding(Level.WRONG, "clock", f"says {now:%Y-%m-%d}. Set it: leases and schedules go by it.")
    elif newest > now.timestamp() + 60:
        yield Finding(Level.WRONG, "clock", f"says {now:%Y-%m-%d %H:%M} UTC, but the database is from later. Set it.")
    else:
        yield Finding(Level.FINE, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC, local zone {time.tzname[0]}")


def _port(settings: Settings) -> Iterator[Finding]:
    if server := running(settings.data_dir):
        yield Finding(Level.FINE, "server", f"runs at {server.url} (process {server.pid})")
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        message = f"{settings.host}:{settings.port}: {error.strerror}. Stop the other program or use --port."
        yield Finding(Level.WRONG, "port", message)
    else:
        yield Finding(Level.FINE, "port", f"{settings.host}:{settings.port} is free")


def _extras(settings: Settings) -> Iterator[Finding]:
    for extra, modules, gives in [
        ("image", ("PIL", "numpy", "skimage"), "image and ai nodes"),
        ("postgres", ("asyncpg",), "PostgreSQL"),
        ("distributed", ("asyncpg", "arq", "redis"), "many processes"),
    ]:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if not missing:
            yield Finding(Level.FINE, f"extra {extra}", f"installed: {gives}")
        elif (extra == "postgres" and not settings.alone) or (extra == "distributed" and settings.redis is not None):
            yield Finding(Level.WRONG, f"extra {extra}", f"is missing: pip install 'mirrorflow[{extra}]'")
        else:
            message = f"not installed, so no {gives}: pip install 'mirrorflow[{extra}]'"
            yield Finding(Level.NOTE, f"extra {extra}", message)


def _node_types(settings: Settings) -> Iterator[Finding]:
    from engine.nodes.registry import Registry

    registry = Registry.load()
    for problem in registry.problems:
        yield Finding(Level.WRONG, "plugin", f"{problem.plugin}: {problem.message}")
    for kind in registry.all():
        if kind.unavailable is not None:
            yield Finding(Level.NOTE, "node type", f"{kind.name}: {kind.unavailable}")
    yield Finding(Level.FINE, "node types", f"{len(registry.all())} known")


def _graphiql(settings: Settings) -> Iterator[Finding]:
    if (Path(__file__).parent / "static" / "graphiql" / "index.html").exists():
        yield Finding(Level.FINE, "GraphiQL", "bundled")
    else:
        yield Finding(Level.NOTE, "GraphiQL", "is not bundled: `make graphiql`. Everything else works without it.")


def _environment(settings: Settings) -> Iterator[Finding]:
    for name in unknown():
        yield Finding(Level.NOTE, "environment", f"{name} is no setting; see `mirrorflow config`.")
