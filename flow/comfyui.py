"""ComfyUI's graphs: what goes into them, and what comes out. What its server says is in ``flow.comfyanswers``.

A graph in API format is ``{node id: {"class_type": …, "inputs": {…}}}``. What goes into it is named by *place*,
``node.inputs.field``. Whatever a server answers is data of a stranger: read here with every type checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flow import mapping
from flow.definition import Definition
from flow.expressions import ExpressionError
from flow.problems import did_you_mean, listed, shown

#: The node type that sends a graph to a ComfyUI.
PROMPT = "comfyui/prompt"
#: What an input mapping calls the file that is to be uploaded.
FILE = "file"

_PLACE = re.compile(r"([^.]{1,200})\.inputs\.(.{1,200})\Z", re.DOTALL)
_OUTPUT = re.compile(r"([^.]{1,200})(?:\.outputs)?(?:\.([^.]{1,200}))?\Z", re.DOTALL)
#: Nodes that read a file from the server's input folder, and the field that names it.
LOADERS = {
    "LoadImage": "image",
    "LoadImageMask": "image",
    "LoadImageOutput": "image",
    "LoadAudio": "audio",
    "LoadVideo": "file",
    "VHS_LoadVideo": "video",
    "VHS_LoadAudioUpload": "audio",
}
_FILES_BY_NAME = (".obj", ".fbx", ".gltf", ".glb", ".usdz")


class MappingError(ValueError):
    """What is to go into a graph doesn't fit it; ``place`` is where, and the message says how to mend it."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


def misfit(definition: Definition) -> str | None:
    """Why a ComfyUI server can't run the workflow itself, or None if it can."""
    nodes = definition.nodes
    if len(nodes) == 1 and nodes[0].type == PROMPT:
        return None
    kinds = ", ".join(sorted({node.type for node in nodes})[:5])
    return (
        f"A ComfyUI server runs workflows of one node of type {PROMPT!r}; this one has {len(nodes)} ({kinds}). "
        f"Run it on a server of type local or mirrorflow, with {PROMPT!r} naming this server."
    )


def is_graph(document: Any) -> bool:
    """Whether this is ComfyUI's API format: every value is ``{"class_type": …, "inputs": …}``."""
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in document.values())
    )


# ---- what goes in ---------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """One input of one node of a graph."""

    node: str
    field: str

    def __str__(self) -> str:
        return f"{self.node}.inputs.{self.field}"


def place(text: Any) -> Place | None:
    """The place that is written ``node.inputs.field``; None if it isn't one."""
    found = _PLACE.match(text) if isinstance(text, str) else None
    return Place(found[1], found[2]) if found else None


def sources(input_mapping: Mapping[str, Any]) -> list[tuple[Place, Any]]:
    """Which place gets what. Written as ``place: source``, or the other way round, ``source: place``.

    Raises MappingError for an entry that names no place.
    """
    found: list[tuple[Place, Any]] = []
    for key, value in input_mapping.items():
        if (at := place(key)) is not None:
            found.append((at, value))
        elif (at := place(value)) is not None:
            found.append((at, key))
        else:
            raise MappingError(
                key, f"The input mapping {shown(key)} names no place of the graph; write it as 'node.inputs.field'."
            )
    return found


def wants_file(input_mapping: Mapping[str, Any]) -> bool:
    """Whether some place gets the file. Raises MappingError."""
    return any(source == FILE for _, source in sources(input_mapping))


def mapped(input_mapping: Mapping[str, Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    """Place → value. A source is a path (``$.<jmespath>`` on the scope), a name of the scope, or a value as it is.

    Text is never a value as it is: it names something (``$$…`` is the text ``$…``). Raises MappingError where
    something isn't there: a graph that silently keeps its sample picture or prompt is worse.
    """
    values: dict[str, Any] = {}
    for at, source in sources(input_mapping):
        try:
            expression = mapping.path(source)
            if expression is not None:
                value = expression.search(scope)
            elif isinstance(source, str) and source.startswith("$$"):
                value = source[1:]
            elif isinstance(source, str):
                value = scope.get(source)
            else:
                value = source
        except ExpressionError as error:
            raise MappingError(str(at), f"The input mapping of {str(at)!r} can't be read: {error.message}") from None
        if value is None and source is not None:
            names = sorted(scope)
            message = (
                f"{str(at)!r} takes {shown(source)}, which is not given; there are {listed(names)}."
                if names
                else f"{str(at)!r} takes {shown(source)}, which is not given: there is no input."
            )
            raise MappingError(str(at), message)
        values[str(at)] = value
    return values


def filled(graph: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A new graph with a value at each place. Raises MappingError where the graph has no such node."""
    result = dict(graph)
    for text, value in values.items():
        at = place(text)
        if at is None:
            raise MappingError(text, f"{shown(text)} is no place of a graph; write it as 'node.inputs.field'.")
        node = result.get(at.node)
        if not isinstance(node, dict):
            message = f"The graph has no node {shown(at.node)} for {text!r}.{did_you_mean(at.node, graph)}"
            raise MappingError(text, message)
        given = node.get("inputs")
        # A field that isn't there may be an optional one: the server says if it is unknown.
        result[at.node] = {**node, "inputs": {**(given if isinstance(given, dict) else {}), at.field: value}}
    return result


def loader(graph: Mapping[str, Any]) -> Place | None:
    """The one place of the graph that takes a file; None where there is none, or a choice."""
    found = [
        Place(id, LOADERS[node["class_type"]])
        for id, node in graph.items()
        if isinstance(node, dict) and node.get("class_type") in LOADERS
    ]
    return found[0] if len(found) == 1 else None


# ---- what comes out -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Produced:
    """One file of a prompt, as the server names it: never a path of ours. ``name`` may be shown."""

    node: str
    key: str
    filename: str
    subfolder: str
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """Everything that a prompt made: files of any key, and texts by node."""

    files: tuple[Produced, ...] = ()
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


MAX_FILES = 10_000
_MAX_TEXT = 20_000
_MAX_NAME = 4_096


def produced(outputs: Mapping[str, Any]) -> Outputs:
    """The files and texts of ``outputs``, in their order, each file once."""
    files: dict[tuple[str, str, str], Produced] = {}
    texts: dict[str, tuple[str, ...]] = {}
    for node, by_key in outputs.items():
        for key, items in by_key.items() if isinstance(by_key, dict) else ():
            for item in items if isinstance(items, list) else [items]:
                if (file := _file(node, key, item)) is not None:
                    if len(files) < MAX_FILES:
                        files.setdefault((file.type, file.subfolder, file.filename), file)
                elif isinstance(item, str):
                    texts[node] = (*texts.get(node, ()), plain(item, _MAX_TEXT))
    return Outputs(tuple(files.values()), texts)


def _file(node: str, key: str, item: Any) -> Produced | None:
    if isinstance(item, str) and key != "text" and item.lower().endswith(_FILES_BY_NAME):
        item = {"filename": item}
    if not isinstance(item, dict) or not isinstance(item.get("filename"), str) or not item["filename"]:
        return None
    # A name with a NUL can't be stored; without it, it names no file, which is what asking for it will say.
    filename, subfolder, kind = (plain(item.get(key), _MAX_NAME) for key in ("filename", "subfolder", "type"))
    return Produced(plain(node, 200), plain(key, 200), filename, subfolder, kind or "output", display_name(filename))


def display_name(filename: str) -> str:
    """A server's word for a file as the plain name of a file: no folder, nothing unprintable, at most 150 bytes."""
    last = re.split(r"[/\\]", filename)[-1]
    name = "".join(letter if letter.isprintable() and letter not in '<>:"|?*' else "_" for letter in last)
    name = name.strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > 20:
        stem, dot, suffix = name, "", ""
    return stem.encode()[:120].decode("utf-8", "ignore") + dot + suffix or "file"


def chosen(outputs: Outputs, wanted: Mapping[str, str]) -> dict[str, tuple[Produced | str, ...]]:
    """Name → what a node made: ``"9"`` everything of node 9, ``"9.images"`` only the files under that key."""
    found: dict[str, tuple[Produced | str, ...]] = {}
    for name, source in wanted.items():
        node, key = output(source) or ("", None)
        files = tuple(file for file in outputs.files if file.node == node and key in (None, file.key))
        texts = outputs.texts.get(node, ()) if key in (None, "text") else ()
        found[name] = (*files, *texts)
    return found


def output(text: Any) -> tuple[str, str | None] | None:
    """Node and key of what is written ``node``, ``node.key`` or ``node.outputs.key``; None if it isn't that."""
    found = _OUTPUT.match(text) if isinstance(text, str) else None
    return (found[1], found[2]) if found else None


def unknown_outputs(graph: Mapping[str, Any], wanted: Mapping[str, str]) -> Iterable[str]:
    """The names of ``wanted`` whose node isn't in the graph."""
    return [name for name, source in wanted.items() if (found := output(source)) is None or found[0] not in graph]


def plain(value: Any, limit: int) -> str:
    """A stranger's word as text that any database takes: no NUL, no lone surrogate, at most ``limit`` characters."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    text = text[:limit] + "…" if len(text) > limit else text
    return text.replace("\0", "�").encode("utf-8", "replace").decode()
