"""The files of a batch: its folders are walked in order, in pieces, and the walk can go on from any piece.

Pre-order, each folder's files before its subfolders, names sorted. A cursor is the folder under way: a walk that goes
on looks through that folder again from its start (the ledger knows what it has), and passes by what lies before it.
Memory holds the sorted subfolders on the way down, and one window of files.

What can't be taken becomes a found file with a refusal, where it would have counted, or else a counted warning.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from flow import batches
from flow.errors import Category, Failure
from flow.tasks import BatchSpec

#: Rows of one transaction, and names that are sorted at once.
CHUNK, WINDOW = 1_000, 20_000
#: PostgreSQL's index takes no longer keys.
MAX_PATH = 2_000  # bytes
MAX_DEPTH = 256

FOLDER_UNREADABLE = "FOLDER_UNREADABLE"
LINK_OUTSIDE = "LINK_OUTSIDE_ROOTS"
LINK_LOOP = "LINK_LOOP"
LINK_COVERED = "LINK_COVERED"
NOT_A_FILE = "NOT_A_FILE"
TOO_DEEP = "TOO_DEEP"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that counts. Its names are text that any database takes; ``failure`` says why it can't be worked on."""

    path: str
    relative: str
    size: int
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some files, the place to go on from after them, and how often what was left out (by reason)."""

    files: tuple[FoundFile, ...]
    cursor: dict[str, Any]
    warnings: Mapping[str, int]


@dataclass(slots=True)
class Walk:
    """What to walk: absolute folders without links in them; ``keywords`` case-folded; ``confined``: may this real path
    be touched?
    """

    folders: Sequence[str]
    takes: Callable[[str], bool]
    keywords: Sequence[str] = ()
    recursive: bool = True
    confined: Callable[[str], bool] = lambda path: True
    _warnings: Counter[str] = field(default_factory=Counter)
    _followed: set[str] = field(default_factory=set)

    def chunks(self, cursor: Mapping[str, Any] | None = None, size: int = CHUNK) -> Iterator[Chunk]:
        """The files, from the cursor on. Blocks on the disk: call ``next`` in a thread."""
        begin = int(cursor["folder"]) if cursor else 0
        for place in range(begin, len(self.folders)):
            resume = [_name(text) for text in cursor["names"]] if cursor and place == begin else []
            files: list[FoundFile] = []
            for found, names in self._folder(self.folders[place], [], resume, not self.keywords, []):
                at = {"folder": place, "names": [_text(name) for name in names]}
                files += found
                while len(files) >= size:
                    yield Chunk(tuple(files[:size]), at, self._told())
                    del files[:size]
            yield Chunk(tuple(files), {"folder": place + 1, "names": []}, self._told())

    def _told(self) -> Mapping[str, int]:
        warnings, self._warnings = dict(self._warnings), Counter()
        return warnings

    def _folder(
        self, path: str, names: list[str], resume: Sequence[str], counts: bool, above: list[str]
    ) -> Iterator[tuple[list[FoundFile], list[str]]]:
        """Windows of files in this folder and below it, each with the names down to its folder."""
        if len(names) > MAX_DEPTH:
            self._warnings[TOO_DEEP] += 1
            return
        subfolders: list[tuple[str, bool]] = []
        try:
            with os.scandir(path) as entries:
                while window := list(islice(entries, WINDOW)):
                    found = []
                    for entry in sorted(window, key=lambda entry: entry.name):
                        kind = self._kind(entry)
                        if kind == "folder":
                            subfolders.append((entry.name, entry.is_symlink()))
                        elif counts and not resume and self.takes(entry.name):
                            found += self._file(entry, names)
                    if found:
                        yield found, names
        except OSError:
            self._warnings[FOLDER_UNREADABLE] += 1
            return
        subfolders.sort()
        for name, is_link in subfolders:
            if resume and name < resume[0]:
                continue
            further = resume[1:] if resume and name == resume[0] else ()
            if name.startswith("."):
                continue
            inner = counts or batches.folder_counts(name, self.keywords)
            if not self.recursive and not (self.keywords and not names and inner):
                continue
            below = os.path.join(path, name)
            reals = above
            if is_link:
                real = self._link(below, [*above, path])
                if real is None:
                    continue
                reals = [*above, real]
            yield from self._folder(below, [*names, name], further, inner, [*reals, below])

    def _kind(self, entry: os.DirEntry[str]) -> str:
        try:
            return "folder" if entry.is_dir() else "file"
        except OSError:
            return "file"

    def _link(self, path: str, above: Sequence[str]) -> str | None:
        """Where a linked folder really is; None, and counted, if it is not to be entered."""
        real = os.path.realpath(path)
        if not self.confined(real):
            self._warnings[LINK_OUTSIDE] += 1
            return None
        if any(batches.inside(os.path.realpath(each), real) for each in above):
            self._warnings[LINK_LOOP] += 1
            return None
        if real in self._followed or any(batches.inside(real, folder) for folder in self.folders):
            self._warnings[LINK_COVERED] += 1
            return None
        self._followed.add(real)
        return real

    def _file(self, entry: os.DirEntry[str], names: Sequence[str]) -> list[FoundFile]:
        relative = "/".join([*names, entry.name])
        failure: Failure | None = None
        size = 0
        try:
            if entry.is_symlink() and not self.confined(os.path.realpath(entry.path)):
                failure = _refused("PATH_NOT_ALLOWED", "It is a link out of the folders that nodes may touch.")
            else:
                status = entry.stat()
                size = status.st_size
                if not stat.S_ISREG(status.st_mode):
                    self._warnings[NOT_A_FILE] += 1
                    return []
        except FileNotFoundError:
            if not entry.is_symlink():
                return []  # it went away between the look at the folder and the look at the file
            failure = _refused("FILE_NOT_FOUND", "It is a link to nothing.")
        except OSError as error:
            failure = _refused("FILE_UNREADABLE", f"It can't be looked at: {error.strerror or error}.")
        path = entry.path
        raw = os.fsencode(path)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            path = raw.decode("utf-8", "backslashreplace")
            relative = os.fsencode(relative).decode("utf-8", "backslashreplace")
            failure = _refused("NAME_NOT_UTF8", "Its name is not UTF-8. Rename it.")
        if len(raw) > MAX_PATH:
            failure = _refused("PATH_TOO_LONG", f"Its path has {len(raw):,} bytes, more than {MAX_PATH:,}.")
            path = f"{path[:400]}…{path[-400:]}"
            relative = path
        return [FoundFile(path, relative, size, failure)]


def walk_of(spec: BatchSpec, confined: Callable[[str], bool]) -> Walk:
    """The walk through a batch's folders."""
    keywords = tuple(word.casefold() for word in spec.folder_keywords)
    return Walk(spec.target_folders, batches.file_matcher(spec.file_patterns), keywords, spec.recursive, confined)


def _refused(code: str, message: str) -> Failure:
    return Failure(code, Category.VALIDATION, message)


def _text(name: str) -> str:
    """A name of any bytes as text that JSON takes."""
    return os.fsencode(name).decode("latin-1")


def _name(text: str) -> str:
    return os.fsdecode(text.encode("latin-1"))
