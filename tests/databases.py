"""Databases for tests, each a migrated one of its own: ``database`` gives every test both kinds."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from db import migrate
from db.session import Database, connect
from tests.postgres import Postgres, Unavailable


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL server, one for all tests; skips where none can be started."""
    try:
        server = Postgres()
    except Unavailable as reason:
        pytest.skip(f"PostgreSQL can't be started: {reason}")
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The URL of a migrated database to copy from."""
    url = postgres.create()
    migrate.upgrade(url)
    return url


@functools.cache
def _sqlite_template() -> bytes:
    """A migrated file to copy from: to migrate takes a hundred times as long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        migrate.upgrade(f"sqlite:///{path}")
        return path.read_bytes()


def migrated_sqlite(path: Path) -> str:
    """The URL of the SQLite database at ``path``, made and migrated if there is none yet."""
    if not path.exists():
        path.write_bytes(_sqlite_template())
    return f"sqlite:///{path}"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a migrated SQLite database of the test's own."""
    return migrated_sqlite(tmp_path / "mirrorflow.db")


@pytest.fixture
def postgres_url(postgres: Postgres, postgres_template: str) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database of the test's own."""
    url = postgres.create(postgres_template)
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a migrated database of the test's own, of each kind in turn."""
    return str(request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of the test's own, of each kind in turn."""
    db = connect(database_url)
    yield db
    await db.close()


@pytest.fixture
async def sqlite_database(sqlite_url: str) -> AsyncIterator[Database]:
    """A migrated SQLite database of the test's own, for tests of what stands above the store."""
    db = connect(sqlite_url)
    yield db
    await db.close()


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))
