"""What the settings of many processes take, and how they refuse the rest: one line that names the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorflow import settings
from mirrorflow.settings import BadSettings

PG = "postgresql+asyncpg://me:hush@db/mirrorflow"


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No .env file and no variables but a test's own."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"MIRRORFLOW_{name.upper()}", raising=False)


@pytest.mark.parametrize("url", ["postgres://me:hush@db/mirrorflow", "postgresql://me:hush@db/mirrorflow", PG])
def test_postgresql_is_known_by_each_of_its_names(url: str) -> None:
    """URLs as other programs write them mean the same."""
    assert settings.load(database_url=url).database == PG


@pytest.mark.parametrize("url", ["redis://:pw@r:6379/1", "rediss://r", "unix:///run/redis.sock"])
def test_redis_goes_with_postgresql(url: str) -> None:
    """All three kinds of address."""
    assert settings.load(database_url=PG, redis_url=url).redis == url
    assert settings.load(database_url=PG).redis is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"redis_url": "redis://:hush@r"}, r"--redis-url can't be used: .*SQLite belongs to one"),
        ({"database_url": PG, "redis_url": "http://:hush@r"}, r"--redis-url can't be used: must begin with redis://"),
        ({"database_url": "mysql://me:hush@r"}, r"--database-url can't be used: must begin with"),
        ({"labels": "gpu,two words"}, r"--labels=gpu,two words can't be used: 'two words' is no label"),
        ({"labels": "x" * 64}, r"is no label"),
        ({"gpus": -1}, r"--gpus=-1"),
        ({"health_port": 70_000}, r"--health-port=70000"),
        ({"database_pool": 1}, r"--database-pool=1"),
    ],
)
def test_what_can_not_be_used_is_told_in_one_line(values: dict[str, object], said: str) -> None:
    """The line names the setting and the remedy, and never a password."""
    with pytest.raises(BadSettings, match=said) as refusal:
        settings.load(**values)
    assert "\n" not in str(refusal.value)
    assert "hush" not in str(refusal.value)


def test_labels_are_a_set() -> None:
    """In any order, however often, with spaces or none, they are the same labels."""
    assert settings.load(labels="gpu, eu,gpu,").labels == ("eu", "gpu")


def test_passwords_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``mirrorflow config`` prints can be shown to others."""
    monkeypatch.setenv("MIRRORFLOW_DATABASE_URL", PG)
    monkeypatch.setenv("MIRRORFLOW_REDIS_URL", "redis://user:p@ss:w@r/0")
    shown = {row.name: row.value for row in settings.effective(settings.load(), {})}
    assert shown["MIRRORFLOW_DATABASE_URL"] == "postgresql+asyncpg://me:********@db/mirrorflow"
    assert shown["MIRRORFLOW_REDIS_URL"] == "redis://user:********@r/0"


def test_artifacts_are_in_the_data_folder_unless_said_otherwise(tmp_path: Path) -> None:
    """Relative folders start where the program was started."""
    assert settings.load(data_dir="data").artifacts == tmp_path / "data" / "artifacts"
    assert settings.load(data_dir="data", artifacts_dir="").artifacts == tmp_path / "data" / "artifacts"
    assert settings.load(data_dir="data", artifacts_dir="shared").artifacts == tmp_path / "shared"
