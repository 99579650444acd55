"""What ``mirrorflow doctor`` says about what many processes share."""

from __future__ import annotations

from pathlib import Path

from mirrorflow import settings
from mirrorflow.artifact_guard import MARK
from mirrorflow.checkup import Finding, Level, findings
from tests.live.server import free_port
from tests.postgres import Postgres
from tests.redis import RedisServer, redis_for_all  # noqa: F401


def found(folder: Path, database_url: str, redis_url: str | None) -> dict[str, Finding]:
    """The findings, by part."""
    given = settings.load(data_dir=folder, database_url=database_url, redis_url=redis_url, port=free_port())
    return {finding.part: finding for finding in findings(given)}


def test_each_part_is_looked_at(
    tmp_path: Path,
    postgres_url: str,
    redis_for_all: RedisServer,  # noqa: F811
) -> None:
    """Server, clocks, Redis and folder are fine; that nobody works is not."""
    said = found(tmp_path, postgres_url, redis_for_all.url)
    for part in ("postgresql", "clocks", "redis", "artifacts", "migrations"):
        assert said[part].level is Level.FINE, said[part]
    assert said["workers"].level is Level.WRONG
    assert "start `mirrorflow worker`" in said["workers"].message


def test_what_is_wrong_is_told_with_its_remedy(tmp_path: Path, postgres: Postgres, postgres_url: str) -> None:
    """No Redis there, another artifact folder: each is one finding, and the others are still made."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / MARK).write_text("store-a\n")
    postgres.execute("INSERT INTO meta VALUES ('artifact-store', 'store-b')", postgres_url)
    said = found(tmp_path, postgres_url, f"redis://127.0.0.1:{free_port()}/0")
    assert said["redis"].level is Level.WRONG
    assert "There is no Redis" in said["redis"].message
    assert said["artifacts"].level is Level.WRONG
    assert "MIRRORFLOW_ARTIFACTS_DIR" in said["artifacts"].message
    assert said["clocks"].level is Level.FINE


def test_an_empty_database_is_asked_nothing_more(tmp_path: Path, empty_postgres_url: str) -> None:
    """Before the first start there is nothing to look into, and that is fine."""
    said = found(tmp_path, empty_postgres_url, None)
    assert said["database"].level is Level.FINE
    assert said["redis"].level is Level.NOTE
    assert "workers" not in said
