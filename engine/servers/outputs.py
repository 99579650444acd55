"""What a Mirrorflow instance gave, found in its output: artifacts, and files that its nodes wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from mimetypes import guess_extension, guess_type
from pathlib import PurePosixPath
from typing import Any

import msgspec

from engine.servers.contract import Done, Failed, OutputFile, refused
from flow.errors import Category, Failure
from flow.states import InstanceStatus

#: Files that one instance may hand over.
MAX_FILES = 10_000


def ended(status: str, output: Any, error: Mapping[str, Any] | None) -> Done | Failed:
    """What an instance that has ended in this status came to."""
    if status == InstanceStatus.COMPLETED:
        return Done(output, files(output))
    if status == InstanceStatus.CANCELED:
        return refused("CANCELED", "The instance was cancelled.", category=Category.CANCELED)
    if error is not None:
        return Failed(msgspec.convert(error, Failure, strict=False))
    return refused("INSTANCE_FAILED", f"The instance ended as {status}.", category=Category.CODE)


def files(output: Any) -> tuple[OutputFile, ...]:
    """Every artifact and every file in the output, in its order, each once.

    An artifact is an object with ``artifact`` and ``sha256``; a file one with ``filename`` and ``path``, or with the
    absolute ``location`` of what was written, as the nodes of the families image, storage and data give it. What a
    node read has no ``filename``.
    """
    found: dict[tuple[str, str], OutputFile] = {}
    for each in _objects(output):
        match each:
            case {"artifact": str(id), "sha256": str()}:
                kind = each.get("media_type")
                kind = kind if isinstance(kind, str) else None
                name = each.get("filename")
                if not isinstance(name, str):
                    name = f"{id}{guess_extension(kind or '') or ''}"
                found.setdefault(("artifact", id), OutputFile(name, {"artifact": id}, kind, _size(each)))
            case {"filename": str(name), "path": str(path)} | {"filename": str(name), "location": str(path)}:
                kind = guess_type(name)[0]
                found.setdefault(("path", path), OutputFile(name, {"path": path}, kind, _size(each)))
            case {"location": str(path)} if PurePosixPath(path).is_absolute():
                name = PurePosixPath(path).name
                kind = guess_type(name)[0]
                found.setdefault(("path", path), OutputFile(name, {"path": path}, kind, _size(each)))
        if len(found) >= MAX_FILES:
            break
    return tuple(found.values())


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside, outer before inner, in order."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield current
            waiting += reversed(current.values())
        elif isinstance(current, list):
            waiting += reversed(current)


def _size(each: Mapping[str, Any]) -> int | None:
    size = each.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def suffix(file: OutputFile) -> str:
    """The suffix of a file by the server's word, such as ``.png``: a few plain characters, or nothing."""
    said = PurePosixPath(file.name.replace("\\", "/")).suffix
    if 1 < len(said) <= 12 and said[1:].isascii() and said[1:].isalnum():
        return said.lower()
    return guess_extension(file.media_type or "") or ""
