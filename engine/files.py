"""The folders that nodes may touch, and the way from a path in a document to a file inside them."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flow.errors import Category

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class PathRefused(Exception):
    """The path leads nowhere a node may go. ``code`` is PATH_NOT_ALLOWED, PATH_TOO_LONG, FILE_NOT_FOUND or
    NO_WRITABLE_FOLDER.
    """

    category = Category.VALIDATION

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Files:
    """Paths confined to the allowed folders (``roots``), after every symlink is resolved.

    A relative path means, for reading, the first root in which it exists, and for writing the
    first root that can be written. An absolute path must lie in one of the roots.
    """

    __slots__ = ("roots",)

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots: tuple[Path, ...] = tuple(Path(os.path.realpath(root)) for root in roots)

    def reading(self, path: str) -> Path:
        """The existing file or folder that ``path`` names.

        Raises PathRefused: PATH_NOT_ALLOWED outside the roots, FILE_NOT_FOUND where nothing is there, PATH_TOO_LONG.
        """
        asked = _asked(path)
        if asked.is_absolute():
            found = self._confined(asked, path)
            if not _exists(found, path):
                raise PathRefused("FILE_NOT_FOUND", f"There is no file {path!r}.")
            return found
        escaped = False
        for root in self.roots:
            try:
                found = self._confined(root / asked, path)
            except PathRefused:
                escaped = True
                continue
            if _exists(found, path):
                return found
        if escaped:
            raise self._outside(path)
        raise PathRefused("FILE_NOT_FOUND", f"There is no {path!r} in the allowed folders (MIRRORFLOW_ALLOWED_ROOTS).")

    def writing(self, path: str) -> Path:
        """Where ``path`` is to be written; its folder need not exist yet.

        Raises PathRefused: PATH_NOT_ALLOWED outside the roots, NO_WRITABLE_FOLDER if there is none, PATH_TOO_LONG.
        """
        asked = _asked(path)
        target = self._confined(asked if asked.is_absolute() else self.writable() / asked, path)
        _exists(target, path)
        return target

    def writable(self) -> Path:
        """The first root that can be written. Raises PathRefused with NO_WRITABLE_FOLDER if there is none."""
        for root in self.roots:
            if os.access(root, os.W_OK):
                return root
        raise PathRefused("NO_WRITABLE_FOLDER", "None of the allowed folders can be written.")

    def allows(self, path: str) -> bool:
        """Whether the path, with every symlink resolved, lies within the roots."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(root) for root in self.roots)

    def _confined(self, candidate: Path, said: str) -> Path:
        try:
            real = Path(os.path.realpath(candidate))
        except (OSError, ValueError):
            raise self._outside(said) from None
        if not any(real.is_relative_to(root) for root in self.roots):
            raise self._outside(said)
        return real

    def _outside(self, said: str) -> PathRefused:
        return PathRefused(
            "PATH_NOT_ALLOWED", f"{said!r} is outside the folders that nodes may touch (MIRRORFLOW_ALLOWED_ROOTS)."
        )


def _asked(path: str) -> Path:
    if not path or "\0" in path:
        raise PathRefused("PATH_NOT_ALLOWED", f"{path!r} is no path: write one within the allowed folders.")
    if _ADDRESS.match(path):
        raise PathRefused("PATH_NOT_ALLOWED", f"{path[:100]!r} is an address: write a path, without a scheme.")
    return Path(path)


def _exists(path: Path, said: str) -> bool:
    """Raises PathRefused with PATH_TOO_LONG where the file system can't have such a name."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise PathRefused("PATH_TOO_LONG", f"{said[:60]!r}… is too long for the file system.") from None


@contextmanager
def whole(target: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A file that appears under ``target`` whole, synced to disk, when the block ends without an error, or not at all.

    Its folder is made. With ``replace=False`` an existing file is left alone and FileExistsError raised,
    without a race: linking a name that exists fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        if replace:
            draft.replace(target)
        else:
            os.link(draft, target)
        _sync(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a new name in the folder durable, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
