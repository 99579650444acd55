"""Where the outputs of a batch's items land: whole or not at all, each under a name of its own, and once.

Every attempt has a staging folder ``<output root>/.mirrorflow/<item>/<attempt>``: ``out`` is the run's own
(``output_dir`` of its input), ``fetched`` holds what was fetched from the server. A file lands by a hard link from
there to its place (linking to a name that exists fails, so nobody's file is overwritten, without a race), and
staging is removed only after the ledger knows. So whoever died in between is recognised: a name that is linked to the
item's staging is the item's own. Where a file system has no hard links, an empty file reserves the name, a note in the
staging says so, and a copy takes the empty file's place; a death between the first two leaves the empty file behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow import batches

STAGING = ".mirrorflow"
#: A file that is still being fetched; no name that ``safe_name`` gives begins with a dot.
PART = ".part"
_CHUNK = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_MOST_NAMES = 100_000


def staged(root: Path) -> list[str]:
    """The ids of the items that have staging under this output root."""
    try:
        return sorted(os.listdir(root / STAGING))
    except FileNotFoundError:
        return []


class OutputRefused(Exception):
    """An output can't be kept; ``code`` and the message say why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Placed:
    """An output in its place; ``path`` is absolute."""

    path: str
    size: int
    sha256: str

    def row(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {"path": self.path, "name": os.path.basename(self.path), "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Staging:
    """One attempt's folders. Methods do file I/O: call them in a thread."""

    root: Path
    item_id: str
    attempt: int

    @property
    def item(self) -> Path:
        """All attempts of the item."""
        return self.root / STAGING / self.item_id

    @property
    def out(self) -> Path:
        """The run's own folder."""
        return self.item / str(self.attempt) / "out"

    @property
    def fetched(self) -> Path:
        """What was fetched: each file in a folder of its own, named by its number, since two may have one name."""
        return self.item / str(self.attempt) / "fetched"

    def note(self, source: Path) -> Path:
        """Where it is noted that a name is reserved for this file, in this and later attempts."""
        said = os.fsencode(source.relative_to(self.item / str(self.attempt)))
        return self.item / "reserved" / hashlib.sha256(said).hexdigest()

    def make(self) -> None:
        """Both folders are there, and can be written by the run."""
        for folder in (self.out, self.fetched):
            for again in (True, True, False):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    break
                except FileNotFoundError:  # the last other item has just removed the folder of all
                    if not again:
                        raise

    def discard(self) -> None:
        """Remove the staging of all attempts; the last one out removes the folder of all items."""
        shutil.rmtree(self.item, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are at work
            (self.root / STAGING).rmdir()


def place(staging: Staging, relative: str) -> list[Placed]:
    """Put everything in the attempt's staging where it belongs: beside the input's place under the output root.

    May be called again after whatever happened: what is in its place stays there. Raises OutputRefused, OSError.
    """
    folder = staging.root / os.path.dirname(relative)
    if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(staging.root)):
        raise OutputRefused("PATH_NOT_ALLOWED", f"{str(folder)!r} leads out of the output root by a link.")
    placed = []
    earlier = _inodes(staging)
    for source, name in _left(staging):
        _sync(source)
        target = _landed(source, folder / os.path.dirname(name), os.path.basename(name), earlier, staging.note(source))
        placed.append(Placed(str(target), *_digest(target)))
    return placed


def _left(staging: Staging) -> Iterator[tuple[Path, str]]:
    """The files of the attempt, with the names that they want; links and special files don't count."""
    for top, fetched in ((staging.out, False), (staging.fetched, True)):
        for folder, below, names in os.walk(top):
            below.sort()
            for name in sorted(names):
                path = Path(folder) / name
                if path.is_symlink() or not path.is_file() or (fetched and (name == PART or folder == str(top))):
                    continue
                yield path, name if fetched else str(Path(*map(_utf8, path.relative_to(top).parts)))


def _utf8(name: str) -> str:
    """The name in UTF-8, whatever bytes it has on the disk."""
    return os.fsencode(name).decode("utf-8", "replace")


def _inodes(staging: Staging) -> set[tuple[int, int]]:
    """The files of the item's earlier attempts: a name linked to one of them is the item's own, to be replaced."""
    found = set()
    for folder, below, names in os.walk(staging.item):
        if folder == str(staging.item) and str(staging.attempt) in below:
            below.remove(str(staging.attempt))
        for name in names:
            found.add(_inode(Path(folder) / name))
    return found


def _landed(source: Path, folder: Path, wanted: str, own: set[tuple[int, int]], note: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for _, name in zip(range(_MOST_NAMES), batches.distinct_names(wanted), strict=False):
        target = folder / name
        if _reserved(note) == target:
            _copied(source, target)
        else:
            try:
                os.link(source, target)
            except FileExistsError:
                there = _inode(target)
                if there in own:  # an earlier attempt's, which the ledger was not told of
                    again = folder / f".{source.stat().st_ino}.part"
                    again.unlink(missing_ok=True)
                    os.link(source, again)
                    again.replace(target)
                elif there != _inode(source):
                    continue
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if not _reserve(target, note):
                    continue
                try:
                    _copied(source, target)
                except OSError:
                    target.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)
                    raise
        _sync(folder)
        return target
    raise OutputRefused("TOO_MANY_OUTPUTS", f"There are {_MOST_NAMES:,} files called like {wanted!r} already.")


def _reserved(note: Path) -> Path | None:
    """The name that is reserved for the file of the note."""
    try:
        return Path(os.fsdecode(note.read_bytes()))
    except FileNotFoundError:
        return None


def _reserve(target: Path, note: Path) -> bool:
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    note.parent.mkdir(exist_ok=True)
    note.write_bytes(os.fsencode(target))
    return True


def _copied(source: Path, target: Path) -> None:
    """The file takes the place of what has its reserved name."""
    part = target.with_name(f".{source.stat().st_ino}.part")
    try:
        shutil.copyfile(source, part)
        _sync(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def described(path: str) -> dict[str, Any]:
    """A file that is in its place already, as the ledger keeps it. Raises OSError."""
    return Placed(path, *_digest(Path(path))).row()


def sha256_of(path: str) -> str:
    """The digest of an input. Raises OSError."""
    return _digest(Path(path))[1]


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
