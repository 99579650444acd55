"""All node types that this process knows: its own and those of installed plugins."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

from engine.nodes.contract import NodeType, node_type
from flow.definition import TypeInfo

GROUP = "mirrorflow.nodes"
FAMILIES = ("control", "http", "data", "image", "ai", "storage", "comfyui", "bench")


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """A plugin, or one of its node types, that could not be used, and why. The others work."""

    plugin: str
    message: str


class Registry:
    """Node types by name."""

    __slots__ = ("_types", "problems")

    def __init__(self, types: Iterable[NodeType] = ()) -> None:
        self._types: dict[str, NodeType] = {kind.name: kind for kind in types}
        self.problems: list[PluginProblem] = []

    @classmethod
    def load(cls) -> Registry:
        """The built-in types, then those of every plugin in the entry point group ``mirrorflow.nodes``.

        A plugin that fails to import, declares no type, or takes a name that is taken is listed in ``problems``.
        """
        registry = cls()
        for family in FAMILIES:
            for kind in declared(importlib.import_module(f"engine.nodes.{family}")):
                registry.add(kind)
        for entry in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
            registry.add_plugin(entry)
        return registry

    def add(self, kind: NodeType) -> None:
        """Add a type. Raises ValueError if its name is taken."""
        if kind.name in self._types:
            raise ValueError(f"The node type {kind.name!r} exists already.")
        self._types[kind.name] = kind

    def add_plugin(self, entry: metadata.EntryPoint) -> None:
        """Add the types of an entry point (a module, a handler, a list of them). Never raises; see ``problems``."""
        plugin = f"{entry.name} ({entry.value})"
        try:
            kinds = declared(entry.load())
        except Exception as problem:  # anything may go wrong in foreign code, and none of it may stop the server
            self.problems.append(PluginProblem(plugin, f"{type(problem).__name__}: {problem}"))
            return
        if not kinds:
            self.problems.append(PluginProblem(plugin, "It declares no node type (a function with @node)."))
        for kind in kinds:
            try:
                self.add(kind)
            except ValueError as problem:
                self.problems.append(PluginProblem(plugin, str(problem)))

    def get(self, name: str) -> NodeType | None:
        """The type of this name, if there is one."""
        return self._types.get(name)

    def all(self) -> list[NodeType]:
        """Every type, by name."""
        return [self._types[name] for name in sorted(self._types)]

    def type_infos(self) -> dict[str, TypeInfo]:
        """What reading a definition needs to know of each type, by name."""
        return {name: TypeInfo(name, kind.parameters_schema) for name, kind in self._types.items()}


def declared(source: object) -> list[NodeType]:
    """The node types that a module, a handler or a collection of handlers declares, each once."""
    match source:
        case ModuleType():
            candidates: Iterable[object] = vars(source).values()
        case list() | tuple() | set():
            candidates = source
        case _:
            candidates = [source]
    kinds = {id(kind): kind for candidate in candidates if (kind := node_type(candidate)) is not None}
    return list(kinds.values())
