"""One database, one folder of artifacts: who has another one does not start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from db.session import Database
from mirrorflow.artifact_guard import MARK, difference, same_artifacts
from mirrorflow.lock import StartRefused


async def test_the_first_process_marks_the_folder_and_the_others_find_the_mark(
    database: Database, tmp_path: Path
) -> None:
    """An empty or a missing folder is fine at the first start; afterwards only the same one is."""
    folder = tmp_path / "artifacts"
    await same_artifacts(database, folder)
    mark = (folder / MARK).read_text()
    await same_artifacts(database, folder)
    assert (folder / MARK).read_text() == mark


async def test_another_folder_is_refused_and_left_as_it_is(database: Database, tmp_path: Path) -> None:
    """The line says what to mount or to set; nothing is made in the wrong place."""
    await same_artifacts(database, tmp_path / "one")
    with pytest.raises(StartRefused, match=r"has no mark.*MIRRORFLOW_ARTIFACTS_DIR") as refusal:
        await same_artifacts(database, tmp_path / "two")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "two").exists()
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / MARK).write_text("store-of-somebody-else\n")
    with pytest.raises(StartRefused, match="belongs to another database"):
        await same_artifacts(database, tmp_path / "three")


async def test_a_lost_folder_is_taken_into_use_as_the_line_says(database: Database, tmp_path: Path) -> None:
    """Whoever has lost the files for good writes the mark that the refusal names."""
    await same_artifacts(database, tmp_path / "one")
    (tmp_path / "new").mkdir()
    told = await difference(database, tmp_path / "new")
    assert told is not None
    mark, _, file = told.partition("echo ")[2].partition(" > ")
    assert file == str(tmp_path / "new" / MARK)
    (tmp_path / "new" / MARK).write_text(mark + "\n")
    assert await difference(database, tmp_path / "new") is None


async def test_of_many_first_starts_with_one_folder_all_go_on(database: Database, tmp_path: Path) -> None:
    """Whoever comes first marks folder and database, in whatever order the others look."""
    await asyncio.gather(*(same_artifacts(database, tmp_path / "one") for _ in range(20)))


async def test_of_many_first_starts_with_two_folders_one_folder_wins(database: Database, tmp_path: Path) -> None:
    """The processes of the other folder are refused, and it is not left looking like a store."""
    folders = [tmp_path / "one", tmp_path / "two"] * 5
    told = await asyncio.gather(*(difference(database, folder) for folder in folders))
    right = [folder for folder, refusal in zip(folders, told, strict=True) if refusal is None]
    assert len(set(right)) == 1
    assert len(right) == 5


async def test_looking_marks_nothing(database: Database, tmp_path: Path) -> None:
    """``mirrorflow doctor`` before the first start finds nothing wrong and makes nothing."""
    assert await difference(database, tmp_path / "artifacts", mark=False) is None
    assert not (tmp_path / "artifacts").exists()


async def test_a_folder_that_can_not_be_made_is_told(database: Database, tmp_path: Path) -> None:
    """Not a stack."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="can't be used"):
        await same_artifacts(database, tmp_path / "file" / "artifacts")
