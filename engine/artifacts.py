"""The artifact store's files: large values under their SHA-256, ``<root>/ab/cd/<sha256>``.

Only files are here; the row that gives an artifact to its project is written by the journal in
the transaction of the event that refers to it. A file without a row is garbage, a row without a
file cannot be: the file is renamed into place before the event exists.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from engine.clock import new_id
from flow.events import Artifact

PREVIEW_CHARACTERS = 1_000
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_CHUNK = 1 << 20


class ArtifactMissing(Exception):
    """The store has no file for this artifact."""


class ArtifactStore:
    """Writes and reads artifacts below one folder. Methods do file I/O: call them off the event loop."""

    __slots__ = ("root",)

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the content with this digest is, or would be. Raises ArtifactMissing for what is no digest."""
        if not _SHA256.match(sha256):
            raise ArtifactMissing(f"{sha256!r} is not a SHA-256 digest.")
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def put_bytes(self, content: bytes, media_type: str = "application/octet-stream") -> Artifact:
        """Store the content. Storing the same content again is cheap and gives a new reference to one file."""
        sha256 = hashlib.sha256(content).hexdigest()
        target = self.path(sha256)
        if not target.exists():
            with _Draft(self.root) as draft:
                draft.file.write(content)
                draft.keep(target)
        return Artifact(new_id("art"), sha256, len(content), media_type, _preview(content, media_type))

    def put_json(self, value: Any) -> Artifact:
        """Store a JSON value."""
        return self.put_bytes(msgspec.json.encode(value), "application/json")

    def put_file(self, source: Path, media_type: str = "application/octet-stream") -> Artifact:
        """Store a copy of a file of any size."""
        digest = hashlib.sha256()
        size = 0
        head = b""
        with source.open("rb") as reading, _Draft(self.root) as draft:
            while chunk := reading.read(_CHUNK):
                head = head or chunk
                digest.update(chunk)
                size += len(chunk)
                draft.file.write(chunk)
            target = self.path(digest.hexdigest())
            if not target.exists():
                draft.keep(target)
        return Artifact(new_id("art"), digest.hexdigest(), size, media_type, _preview(head, media_type))

    def read_bytes(self, artifact: Artifact | Mapping[str, Any]) -> bytes:
        """The content of an artifact, or of its reference in a node's output. Raises ArtifactMissing."""
        sha256 = artifact.sha256 if isinstance(artifact, Artifact) else str(artifact.get("sha256", ""))
        try:
            return self.path(sha256).read_bytes()
        except FileNotFoundError:
            raise ArtifactMissing(f"The artifact store has no content with SHA-256 {sha256}.") from None

    def read_json(self, artifact: Artifact | Mapping[str, Any]) -> Any:
        """The JSON value of an artifact. Raises ArtifactMissing, or msgspec.DecodeError if it is not JSON."""
        return msgspec.json.decode(self.read_bytes(artifact))

    def discard(self, sha256: str) -> bool:
        """Remove the content with this digest; whether it was there."""
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True


def reference(artifact: Artifact) -> dict[str, Any]:
    """How a node's output names an artifact that its handler put: ``read_bytes`` takes it as it stands."""
    return {
        "artifact": artifact.id,
        "sha256": artifact.sha256,
        "size": artifact.size,
        "media_type": artifact.media_type,
    }


class _Draft:
    """A temporary file in the store's own file system: it appears under its name whole, or not at all.

    It is not fsynced: like the database (``synchronous=NORMAL``), the store promises to survive a
    killed process, not a power cut.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "tmp"

    def __enter__(self) -> _Draft:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder)
        self.file: IO[bytes] = os.fdopen(handle, "wb")
        self._name = Path(name)
        return self

    def keep(self, target: Path) -> None:
        self.file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self._name.replace(target)

    def __exit__(self, *exc: object) -> None:
        self.file.close()
        self._name.unlink(missing_ok=True)


def _preview(content: bytes, media_type: str) -> str:
    if not (media_type == "application/json" or media_type.startswith("text/")):
        return ""
    # four bytes a character at most; a cut in the middle of a character loses only that character
    return content[: PREVIEW_CHARACTERS * 4].decode("utf-8", "ignore")[:PREVIEW_CHARACTERS].replace("\0", "�")
