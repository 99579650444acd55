"""Migrations: the models' schema from nothing, whole or not at all, and clear refusals."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine

from db import migrate
from db.models import Base
from db.session import connect
from flow.errors import StorageUnavailable
from tests.postgres import Postgres


def test_a_new_database_gets_every_revision_and_an_up_to_date_one_none(empty_url: str) -> None:
    """The first upgrade applies all revisions in order; the second has nothing to do."""
    assert migrate.current(empty_url) is None
    assert migrate.upgrade(empty_url) == list(migrate.REVISIONS)
    assert migrate.current(empty_url) == migrate.head()
    assert migrate.upgrade(empty_url) == []
    migrate.check(empty_url)


def test_an_old_database_is_refused_by_check(empty_url: str) -> None:
    """A server that doesn't migrate says what to run."""
    with pytest.raises(StorageUnavailable, match="db upgrade"):
        migrate.check(empty_url)


def test_the_constant_revisions_are_those_of_the_migration_files() -> None:
    """The quick check compares with a constant; it must be what Alembic would find."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == migrate.REVISIONS


async def test_models_and_migrations_agree(database_url: str) -> None:
    """Alembic finds nothing to change between the migrated database and the models."""

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    db = connect(database_url)
    try:
        assert await db.read(differences) == []
    finally:
        await db.close()


def test_sqlite_tables_are_to_the_letter_those_of_the_models(sqlite_url: str, tmp_path: Path) -> None:
    """What Alembic doesn't compare is equal too: constraint names, partial indexes, WITHOUT ROWID, AUTOINCREMENT."""
    made = create_engine(f"sqlite:///{tmp_path / 'made.db'}", poolclass=NullPool)
    Base.metadata.create_all(made)
    assert _sqlite_schema(tmp_path / "mirrorflow.db") == _sqlite_schema(tmp_path / "made.db")


def _sqlite_schema(path: Path) -> dict[str, list[str]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: _parts(sql) for name, sql in rows if name not in ("alembic_version", "sqlite_sequence")}


def _parts(sql: str) -> list[str]:
    """What is before, between and after the outermost parentheses, in no order: added columns come last."""
    parts, depth = [""], 0
    for character in " ".join(sql.split()):
        depth += (character == "(") - (character == ")")
        if (character == "(" and depth == 1) or (character == ")" and depth == 0) or (character == "," and depth == 1):
            parts.append("")
        else:
            parts[-1] += character
    return sorted(part.strip() for part in parts)


async def test_postgres_tables_are_to_the_letter_those_of_the_models(
    postgres: Postgres, postgres_url: str, empty_postgres_url: str
) -> None:
    """Names and definitions of every index and constraint are equal."""
    db = connect(empty_postgres_url)
    await db.write(Base.metadata.create_all)
    await db.close()
    for query in (
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND conname <> 'alembic_version_pkc'",
    ):
        migrated = {tuple(row) for row in postgres.execute(query, postgres_url)}
        assert migrated == {tuple(row) for row in postgres.execute(query, empty_postgres_url)}
        assert migrated


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """A photo named as the database stays as it is."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 not a database at all, but a photo" * 100)
    before = path.read_bytes()
    for act in (migrate.current, migrate.upgrade, migrate.check):
        with pytest.raises(migrate.DatabaseRefused) as refusal:
            act(f"sqlite:///{path}")
        assert refusal.value.code == "NOT_A_DATABASE"
    assert path.read_bytes() == before


def test_somebody_elses_tables_are_refused(empty_url: str, postgres: Postgres) -> None:
    """A database with other tables is left alone."""
    _execute(empty_url, postgres, "CREATE TABLE customers (id integer)")
    with pytest.raises(migrate.DatabaseRefused, match="customers") as refusal:
        migrate.upgrade(empty_url)
    assert refusal.value.code == "FOREIGN_SCHEMA"


def test_another_programs_migrations_are_refused(empty_url: str, postgres: Postgres) -> None:
    """A database that somebody else's Alembic keeps is not taken for a newer Mirrorflow."""
    _execute(empty_url, postgres, "CREATE TABLE customers (id integer)")
    _execute(empty_url, postgres, "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)")
    _execute(empty_url, postgres, "INSERT INTO alembic_version VALUES ('abc123')")
    with pytest.raises(migrate.DatabaseRefused) as refusal:
        migrate.upgrade(empty_url)
    assert refusal.value.code == "FOREIGN_SCHEMA"


def test_a_newer_database_is_refused(database_url: str, postgres: Postgres) -> None:
    """A program older than its database does not touch it."""
    _execute(database_url, postgres, "UPDATE alembic_version SET version_num = '9999'")
    for act in (migrate.current, migrate.upgrade, migrate.check):
        with pytest.raises(migrate.DatabaseRefused, match="9999") as refusal:
            act(database_url)
        assert refusal.value.code == "DATABASE_NEWER"


def test_a_failed_migration_leaves_nothing_behind(
    empty_url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDL is part of the transaction on both databases: all tables, or none."""
    monkeypatch.setattr(migrate, "_judged", lambda tables, revisions: None)
    _execute(empty_url, postgres, "CREATE TABLE node_executions (in_the_way integer)")
    with pytest.raises(Exception, match=r"node_executions|already exists"):
        migrate.upgrade(empty_url)
    assert _tables(empty_url, postgres) == {"node_executions"}


def test_four_first_starts_at_once_make_one_database(empty_url: str) -> None:
    """Of processes that start together one migrates, the others find it done."""
    code = f"from db import migrate; print(migrate.upgrade({empty_url!r}))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    said = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert sorted(out.decode().strip() for out, _ in said) == sorted(["[]"] * 3 + [str(list(migrate.REVISIONS))])


def test_seeing_that_nothing_is_to_do_needs_no_alembic(sqlite_url: str) -> None:
    """Alembic is not loaded at an ordinary start."""
    code = f"import sys; from db import migrate; migrate.upgrade({sqlite_url!r}); print('alembic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The refusal says what to check."""
    with pytest.raises(StorageUnavailable, match="folder"):
        migrate.upgrade(f"sqlite:///{tmp_path / 'nowhere' / 'mirrorflow.db'}")


def test_a_server_that_is_not_there_is_told() -> None:
    """No server: a refusal with a remedy, not a stack."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(StorageUnavailable, match="can't be reached"):
            migrate.upgrade(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/test")


def _execute(url: str, postgres: Postgres, statement: str) -> None:
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        with connection:
            connection.execute(statement)
        connection.close()
    else:
        postgres.execute(statement, url)


def _tables(url: str, postgres: Postgres) -> set[str]:
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        connection.close()
    else:
        rows = postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", url)
    return {str(row[0]) for row in rows}
