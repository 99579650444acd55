"""Walking the folders of a batch on a real disk: what counts, what is left out and why, and going on from any piece."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.batch.expansion import Chunk, FoundFile, Walk
from flow import batches


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def walk(root: Path, *folders: str, patterns: tuple[str, ...] = (), **options: Any) -> Walk:
    """A walk through the folders in ``root``, which is all that may be touched."""
    confined = lambda path: batches.inside(os.path.realpath(path), str(root))  # noqa: E731
    return Walk(
        [str(root / folder) for folder in folders], batches.file_matcher(patterns), confined=confined, **options
    )


def gathered(chunks: list[Chunk]) -> tuple[list[FoundFile], Counter[str]]:
    warnings: Counter[str] = Counter()
    for chunk in chunks:
        warnings.update(chunk.warnings)
    return [file for chunk in chunks for file in chunk.files], warnings


def found(given: Walk) -> list[str]:
    files, _ = gathered(list(given.chunks()))
    return [file.relative for file in files]


def test_every_file_in_order_with_its_size(tmp_path: Path) -> None:
    """Each folder's files before its subfolders', names sorted; hidden ones are left alone."""
    make(tmp_path, "in/b.txt", "in/a.txt", "in/sub/c.txt", "in/.hidden", "in/.git/d.txt", "in/Z.txt")
    files, warnings = gathered(list(walk(tmp_path, "in").chunks()))
    assert [file.relative for file in files] == ["Z.txt", "a.txt", "b.txt", "sub/c.txt"]
    assert files[0].size == len("in/Z.txt")
    assert not warnings


@pytest.mark.parametrize(
    ("keywords", "recursive", "names"),
    [
        ((), True, ["top.jpg", "misc/trip/b.jpg", "misc/x.jpg", "trip 旅行/a.jpg", "trip 旅行/deep/c.jpg"]),
        ((), False, ["top.jpg"]),
        (("旅行",), True, ["trip 旅行/a.jpg", "trip 旅行/deep/c.jpg"]),
        (("trip",), True, ["misc/trip/b.jpg", "trip 旅行/a.jpg", "trip 旅行/deep/c.jpg"]),
        (("trip",), False, ["trip 旅行/a.jpg"]),
    ],
)
def test_keywords_choose_subfolders(
    tmp_path: Path, keywords: tuple[str, ...], recursive: bool, names: list[str]
) -> None:
    """A folder that counts counts with all below it; without recursion only the target's own subfolders may."""
    every = ("top.jpg", "misc/x.jpg", "misc/trip/b.jpg", "trip 旅行/a.jpg", "trip 旅行/deep/c.jpg")
    make(tmp_path, *(f"in/{name}" for name in every))
    got = found(walk(tmp_path, "in", keywords=keywords, recursive=recursive))
    assert sorted(got) == sorted(names)


def test_names_of_every_kind(tmp_path: Path) -> None:
    """Chinese, newlines, 255 bytes: taken. Bytes that are no UTF-8: a refusal, under a name that can be read."""
    long = "长" * 83 + ".jpg"
    make(tmp_path, "in/照片.jpg", "in/two\nlines.jpg", f"in/{long}")
    with open(os.fsencode(tmp_path) + b"/in/bad-\xff.jpg", "wb"):
        pass
    files, _ = gathered(list(walk(tmp_path, "in", patterns=("*.jpg",)).chunks()))
    refusals = {file.relative: file.failure.code if file.failure else None for file in files}
    assert refusals == {"照片.jpg": None, "two\nlines.jpg": None, long: None, "bad-\\xff.jpg": "NAME_NOT_UTF8"}
    for file in files:
        file.path.encode()


def test_links_are_followed_within_bounds(tmp_path: Path) -> None:
    """A loop, a link out, a link to what is walked anyway and a broken one are told; a good one is walked, once."""
    make(tmp_path, "in/a.txt", "in/sub/b.txt", "other/c.txt", "other/deep/d.txt")
    (tmp_path / "in/sub/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/again").symlink_to(tmp_path / "in/sub")
    (tmp_path / "in/out").symlink_to("/etc")
    (tmp_path / "in/good").symlink_to(tmp_path / "other")
    (tmp_path / "in/good2").symlink_to(tmp_path / "other")
    (tmp_path / "other/deep/up").symlink_to(tmp_path / "other")
    (tmp_path / "in/passwd.txt").symlink_to("/etc/passwd")
    (tmp_path / "in/nothing.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "in/self.txt").symlink_to("self.txt")
    files, warnings = gathered(list(walk(tmp_path, "in", patterns=("*.txt",)).chunks()))
    assert {file.relative: file.failure.code if file.failure else None for file in files} == {
        "a.txt": None, "nothing.txt": "FILE_NOT_FOUND", "passwd.txt": "PATH_NOT_ALLOWED",
        "self.txt": "FILE_UNREADABLE", "good/c.txt": None, "good/deep/d.txt": None, "sub/b.txt": None,
    }  # fmt: skip
    assert warnings == {"LINK_LOOP": 2, "LINK_COVERED": 2, "LINK_OUTSIDE_ROOTS": 1}


def test_what_is_no_file_is_counted(tmp_path: Path) -> None:
    """A pipe would block whoever reads it."""
    make(tmp_path, "in/a")
    os.mkfifo(tmp_path / "in/pipe")
    files, warnings = gathered(list(walk(tmp_path, "in").chunks()))
    assert [file.relative for file in files] == ["a"]
    assert warnings == {"NOT_A_FILE": 1}


def test_a_folder_that_goes_away_is_counted(tmp_path: Path) -> None:
    """So is one that may not be read."""
    make(tmp_path, "in/a/x", "in/b/y")
    pieces = walk(tmp_path, "in").chunks(size=1)
    first = next(pieces)
    (tmp_path / "in/b/y").unlink()
    (tmp_path / "in/b").rmdir()
    files, warnings = gathered([first, *pieces])
    assert [file.relative for file in files] == ["a/x"]
    assert warnings == {"FOLDER_UNREADABLE": 1}


def test_folders_too_deep_are_counted(tmp_path: Path) -> None:
    """However deep a tree is, the walk ends."""
    deep = str(tmp_path / "in")
    os.mkdir(deep)
    for _ in range(300):
        deep += "/d"
        os.mkdir(deep)
    Path(deep, "x").touch()
    files, warnings = gathered(list(walk(tmp_path, "in").chunks()))
    assert not files
    assert warnings == {"TOO_DEEP": 1}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_walk_goes_on_from_every_piece(tmp_path: Path, size: int) -> None:
    """After a death at any piece: what the ledger has and what the walk finds from its cursor is everything."""
    names = [f"{a}/{b}/{c}.txt" for a in "xyz" for b in ("p", "q\udcff") for c in range(4)] + ["top.txt", "y/mid.txt"]
    for name in names:
        os.makedirs(os.path.dirname(tmp_path / "in" / name), exist_ok=True)
        Path(tmp_path / "in" / name).touch()
    make(tmp_path, "second/s.txt")
    pieces = list(walk(tmp_path, "in", "second").chunks(size=size))
    everything = {file.path for file in gathered(pieces)[0]}
    assert len(everything) == len(names) + 1
    for place, piece in enumerate(pieces):
        before, _ = gathered(pieces[: place + 1])
        after, _ = gathered(list(walk(tmp_path, "in", "second").chunks(piece.cursor, size=size)))
        assert {file.path for file in [*before, *after]} == everything
        assert len(after) < len(everything) or place == 0
