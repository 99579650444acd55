"""The rooms keep their rule: who may import whom, and where the clock, SQL and commits live."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
#: An arrow may be imported: mirrorflow → graph → engine → db → flow.
ROOMS = ["mirrorflow", "graph", "engine", "db", "flow"]
FLOW_LIBRARIES = {"msgspec", "jmespath", "jsonschema", "jsonschema_specifications", "re2", "referencing", "yaml"}
#: Standard modules through which the world, the clock or chance would come into ``flow``.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime.now", "http", "logging", "multiprocessing", "os", "pathlib", "queue",
    "random", "secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
    "threading", "time", "urllib.request", "uuid",
}  # fmt: skip
CLOCKS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
    ("time", "time"), ("time", "time_ns"),
}  # fmt: skip


class Import(NamedTuple):
    """One imported module, and the names taken from it."""

    module: str
    names: tuple[str, ...]
    line: int


def modules(room: str) -> Iterator[Path]:
    """Every Python file of the room."""
    return (path for path in sorted((ROOT / room).rglob("*.py")) if "node_modules" not in path.parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[Import]:
    """Every import in the file, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield Import(node.module or "", tuple(alias.name for alias in node.names), node.lineno)


def calls(path: Path) -> Iterator[tuple[str, str, int]]:
    """(object, attribute, line) of every attribute that the file speaks of: ``datetime.now``."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            yield name, node.attr, node.lineno


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room: str) -> None:
    """No room imports from a room above it, or another room's private names."""
    above = set(ROOMS[: ROOMS.index(room)]) | {"tests", "bench"}
    wrong = []
    for path in modules(room):
        for item in imports(path):
            top = item.module.split(".")[0]
            private = (
                top in ROOMS
                and top != room
                and any(part.startswith("_") for part in (*item.module.split("."), *item.names))
            )
            if top in above or private:
                wrong.append(f"{place(path, item.line)} imports {item.module} {' '.join(item.names)}")
    assert not wrong


def test_graph_reads_through_the_store() -> None:
    """The schema knows the database only as ``db.session`` and ``db.store``, never its tables."""
    wrong = [
        f"{place(path, item.line)} imports {item.module}"
        for path in modules("graph")
        for item in imports(path)
        if item.module.split(".")[0] == "db"
        and not item.module.startswith(("db.store", "db.session"))
        and not (item.module == "db" and set(item.names) <= {"store", "session"})
    ]
    assert not wrong


def test_flow_is_pure() -> None:
    """``flow`` imports only the standard library without its effects, and the few libraries it is allowed."""
    wrong = []
    for path in modules("flow"):
        for item in imports(path):
            top = item.module.split(".")[0]
            known = top == "flow" or top in FLOW_LIBRARIES or top in sys.stdlib_module_names
            if not known or {top, item.module} & IMPURE:
                wrong.append(f"{place(path, item.line)} imports {item.module}")
        wrong += [
            f"{place(path, node.lineno)} is async"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
        wrong += [
            f"{place(path, node.lineno)} calls {node.func.id}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"open", "print", "input"}
        ]
    assert not wrong


def test_the_clock_is_read_in_one_place() -> None:
    """Only ``engine/clock.py`` asks what time it is; everybody else is told."""
    wrong = [
        f"{place(path, line)} reads {owner}.{name}"
        for room in ROOMS
        for path in modules(room)
        if path != ROOT / "engine/clock.py"
        for owner, name, line in calls(path)
        if (owner, name) in CLOCKS
    ]
    assert not wrong


def test_commits_happen_in_one_place() -> None:
    """Only ``db/session.py`` commits."""
    wrong = [
        place(path, line)
        for room in ROOMS
        for path in modules(room)
        if path != ROOT / "db/session.py"
        for owner, name, line in calls(path)
        if name in {"commit", "begin_nested"} and owner != "store"  # a store function runs in somebody's transaction
    ]
    assert not wrong


def test_sql_is_written_in_db() -> None:
    """Only ``db`` imports SQLAlchemy, Alembic or a driver, but for the names of two types, and only it executes."""
    sql = {"sqlalchemy", "alembic", "asyncpg", "aiosqlite", "sqlite3"}
    outside = [path for room in ROOMS if room != "db" for path in modules(room)]
    wrong = [
        f"{place(path, item.line)} imports {item.module} {' '.join(item.names)}"
        for path in outside
        for item in imports(path)
        if item.module.split(".")[0] in sql
        and not (item.module == "sqlalchemy" and item.names and set(item.names) <= {"Connection", "Row"})
    ]
    wrong += [
        f"{place(path, line)} executes"
        for path in outside
        for owner, name, line in calls(path)
        if name in {"exec_driver_sql", "executemany"} or (owner in {"conn", "connection"} and name == "execute")
    ]
    assert not wrong
