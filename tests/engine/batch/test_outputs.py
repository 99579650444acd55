"""Where outputs land: each once, under a name of its own, whoever died in between."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.batch.outputs import OutputRefused, Staging, place
from flow.batches import safe_name


@pytest.fixture(autouse=True, params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this holds on file systems with hard links, and on those without."""

    def refuse(_: object, target: object) -> None:
        raise FileExistsError(str(target)) if os.path.lexists(str(target)) else PermissionError(errno.EPERM, "no links")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


def staged(root: Path, item: str, attempt: int = 1, **files: str) -> Staging:
    """An attempt that left these files in its own folder."""
    staging = Staging(root, item, attempt)
    staging.make()
    for name, content in files.items():
        (staging.out / name.replace("_", ".")).write_text(content)
    return staging


def fetch(staging: Staging, name: str, content: str) -> None:
    """Its server gave this file."""
    (staging.fetched / "1").mkdir()
    (staging.fetched / "1" / name).write_text(content)


def tree(root: Path) -> dict[str, str]:
    """Every output, by its relative path."""
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".mirrorflow" not in path.parts
    }


def test_outputs_land_in_the_inputs_relative_folder(tmp_path: Path) -> None:
    """With the folders that the run made below its own."""
    staging = staged(tmp_path, "item-1", a_jpg="x")
    (staging.out / "thumbs").mkdir()
    (staging.out / "thumbs" / "a.jpg").write_text("small")
    fetch(staging, "b.png", "fetched")
    placed = place(staging, "2024/旅行/in.raw")
    assert tree(tmp_path) == {
        "2024/旅行/a.jpg": "x", "2024/旅行/b.png": "fetched", "2024/旅行/thumbs/a.jpg": "small",
    }  # fmt: skip
    assert {Path(each.path).name: each.size for each in placed} == {"a.jpg": 5, "b.png": 7}
    staging.discard()
    assert not (tmp_path / ".mirrorflow").exists()


def test_two_inputs_with_one_output_keep_both(tmp_path: Path) -> None:
    """Nobody's file is overwritten: not another item's, not one that was there, not the same item's second one."""
    (tmp_path / "a.jpg").write_text("was there")
    place(staged(tmp_path, "item-1", a_jpg="one"), "x.png")
    second = staged(tmp_path, "item-2", a_jpg="two")
    fetch(second, "a.jpg", "three")
    place(second, "y.png")
    assert tree(tmp_path) == {"a.jpg": "was there", "a-2.jpg": "one", "a-3.jpg": "two", "a-4.jpg": "three"}


def test_placing_again_changes_nothing(tmp_path: Path) -> None:
    """A death between the rename and the ledger: whoever comes next finds the outputs in their places."""
    staging = staged(tmp_path, "item-1", a_jpg="one", b_jpg="two")
    fetch(staging, "a.jpg", "three")
    first = place(staging, "x.png")
    assert place(staging, "x.png") == first
    assert tree(tmp_path) == {"a.jpg": "one", "a-2.jpg": "three", "b.jpg": "two"}


def test_a_later_attempt_takes_the_place_of_one_that_nobody_was_told_of(tmp_path: Path) -> None:
    """The first attempt died between its outputs and the ledger, and its server is gone: no second copy is left."""
    place(staged(tmp_path, "item-1", 1, a_jpg="old"), "x.png")
    later = staged(tmp_path, "item-1", 2, a_jpg="new")
    place(later, "x.png")
    assert tree(tmp_path) == {"a.jpg": "new"}
    later.discard()
    assert tree(tmp_path) == {"a.jpg": "new"}


def test_an_output_does_not_follow_a_link_out(tmp_path: Path) -> None:
    """A folder under the output root that is a link to elsewhere is refused; links among the outputs don't count."""
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    staging = staged(tmp_path / "out", "item-1", a_jpg="x")
    with pytest.raises(OutputRefused):
        place(staging, "sub/in.png")
    (staging.out / "passwd").symlink_to("/etc/passwd")
    assert [Path(each.path).name for each in place(staging, "in.png")] == ["a.jpg"]


@pytest.mark.parametrize("name", ["图" * 83 + ".png", "a.part", ".part", "x" * 300 + ".png"])
def test_every_name_that_is_one_lands(tmp_path: Path, name: str) -> None:
    """However long it is, and whatever it ends with."""
    staging = staged(tmp_path, "item-1")
    if len(name.encode()) <= 255:
        (staging.out / name).write_text("own")
    fetch(staging, safe_name(name), "fetched")
    (staging.fetched / "1" / ".part").write_text("cut off")
    placed = place(staging, "x.png")
    assert [Path(each.path).read_text() for each in placed] == ["own", "fetched"][-len(placed) :]
    assert len(placed) == 1 + (len(name.encode()) <= 255)


def test_many_at_once_keep_their_own(tmp_path: Path) -> None:
    """Forty items that want one name have forty files."""
    items = [staged(tmp_path, f"item-{n}", a_jpg=str(n)) for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda staging: place(staging, "x.png"), items))
    assert sorted(tree(tmp_path).values(), key=int) == [str(n) for n in range(40)]


def test_what_an_older_version_fetched_is_no_output(tmp_path: Path) -> None:
    """It lay beside the folders in which fetched files lie now, whole ones and halves; they are fetched again."""
    staging = staged(tmp_path, "item-1")
    (staging.fetched / "1-a.jpg.part").write_text("ha")
    (staging.fetched / "1-a.jpg").write_text("half")
    fetch(staging, "a.jpg", "whole")
    place(staging, "x.png")
    assert tree(tmp_path) == {"a.jpg": "whole"}


def test_a_copy_that_fails_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt, or another item, has it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    staging = staged(tmp_path, "item-1", a_jpg="one")
    with monkeypatch.context() as full:
        full.setattr(os, "link", lambda *_: _raise(PermissionError(errno.EPERM, "no links")))
        full.setattr(shutil, "copyfile", refuse)
        with pytest.raises(OSError, match="No space left"):
            place(staging, "x.png")
    assert tree(tmp_path) == {}
    place(staging, "x.png")
    assert tree(tmp_path) == {"a.jpg": "one"}


def _raise(error: Exception) -> None:
    raise error


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no file system without links, and leaves nothing behind."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left"):
        place(staged(tmp_path, "item-1", a_jpg="one"), "x.png")
    assert tree(tmp_path) == {}
