"""Nodes that put files where they belong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from engine.files import whole
from engine.nodes.contract import Context, NodeError, node
from flow.errors import Category

Describe = msgspec.Meta
_CHUNK = 1 << 20
_MAX_RENAMES = 10_000


class StorageFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[
        str, Describe(description="Where to put it, usually with templates; folders are made.", min_length=1)
    ]
    source: Annotated[
        str | None,
        Describe(description="The file to copy. Left out: `path`, `image` or `file_path` of the input, if no content."),
    ] = None
    content: Annotated[
        Any, Describe(description="What to write instead of copying a file: text as it is, anything else as JSON.")
    ] = msgspec.UNSET
    metadata: Annotated[
        dict[str, Any] | None, Describe(description="JSON to write beside it, under the same name with `.meta.json`.")
    ] = None
    on_conflict: Annotated[
        Literal["overwrite", "rename", "fail"],
        Describe(description="What to do if there is another file: replace it, add a number to the name, or fail."),
    ] = "overwrite"


class Stored(msgspec.Struct, frozen=True):
    location: str
    filename: str
    size: int
    sha256: str
    metadata_location: str | None = None


@node("storage/file", title="Store a file", icon="archive", parameters=StorageFile, output=Stored)
def storage_file(ctx: Context[StorageFile]) -> dict[str, Any]:
    """Copies a file, or writes content, to a path within the allowed folders.

    The file appears whole or not at all, synced to disk. A second attempt finds the file of the first
    one and does not count it as another.
    """
    asked = ctx.parameters
    target = ctx.writing(asked.path)
    if target.is_dir():
        raise NodeError(f"{asked.path!r} is a folder.", category=Category.VALIDATION, code="PATH_IS_FOLDER")
    source = None if asked.content is not msgspec.UNSET else ctx.reading(_source(ctx))
    if source is not None and not source.is_file():
        raise NodeError(f"{asked.source!r} is not a file.", category=Category.VALIDATION, code="FILE_NOT_FOUND")
    if source == target:
        raise NodeError("The source and the target are one file.", category=Category.VALIDATION, code="SAME_FILE")
    content = None if source is not None else _content(asked.content)
    location, size, sha256 = _put(target, source, content, asked.on_conflict)
    beside = None
    if asked.metadata is not None:
        beside = location.with_name(location.name + ".meta.json")
        with whole(beside) as file:
            file.write(msgspec.json.format(msgspec.json.encode(asked.metadata), indent=2) + b"\n")
    return {
        "location": str(location),
        "filename": location.name,
        "size": size,
        "sha256": sha256,
        "metadata_location": str(beside) if beside is not None else None,
    }


def _source(ctx: Context[StorageFile]) -> str:
    if ctx.parameters.source is not None:
        return ctx.parameters.source
    return input_path(ctx.input, "source")


def input_path(given: Any, parameter: str) -> str:
    """The path of a file in a node's input: its ``path``, ``image`` or ``file_path``.

    Raises NodeError VALIDATION, FILE_NOT_NAMED, that tells of the parameter which could name it instead.
    """
    if isinstance(given, dict):
        for key in ("path", "image", "file_path"):
            if isinstance(given.get(key), str):
                return str(given[key])
    raise NodeError(
        f"Name a file: by the parameter {parameter!r}, or by 'path', 'image' or 'file_path' in the input.",
        category=Category.VALIDATION,
        code="FILE_NOT_NAMED",
    )


def _content(content: Any) -> bytes:
    return content.encode() if isinstance(content, str) else msgspec.json.encode(content)


def _put(
    target: Path, source: Path | None, content: bytes | None, on_conflict: Literal["overwrite", "rename", "fail"]
) -> tuple[Path, int, str]:
    digest = hashlib.sha256()
    size = 0
    if on_conflict != "overwrite":
        size, sha256 = _digest(source, content)
        for candidate in _names(target) if on_conflict == "rename" else [target]:
            if candidate.exists():
                if candidate.is_file() and _digest(candidate, None) == (size, sha256):
                    return candidate, size, sha256
                continue
            try:
                with whole(candidate, replace=False) as file:
                    _copy(source, content, file.write)
            except FileExistsError:
                continue
            return candidate, size, sha256
        raise NodeError(f"There is another file at {str(target)!r}.", category=Category.VALIDATION, code="FILE_EXISTS")
    with whole(target) as file:

        def write(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)

        _copy(source, content, write)
    return target, size, digest.hexdigest()


def _names(target: Path) -> Any:
    yield target
    for number in range(2, _MAX_RENAMES):
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")


def _digest(source: Path | None, content: bytes | None) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0

    def take(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        digest.update(chunk)

    _copy(source, content, take)
    return size, digest.hexdigest()


def _copy(source: Path | None, content: bytes | None, write: Any) -> None:
    if content is not None:
        write(content)
        return
    assert source is not None
    with source.open("rb") as reading:
        while chunk := reading.read(_CHUNK):
            write(chunk)
