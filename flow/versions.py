"""Versions of a workflow: their order, the kind of a change, and the difference between two definitions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from enum import IntEnum, StrEnum
from typing import Any, TypeVar

import msgspec

from flow import jsonschemas, older
from flow.definition import Definition
from flow.documents import export, export_part
from flow.errors import Problem
from flow.expressions import pointer_token
from flow.parsing import check_values
from flow.problems import ProblemCode, Problems

_NUMBER = r"(0|[1-9]\d{0,8})"
_IDENTIFIER = r"(?:0|[1-9]\d{0,17}|\d*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+([0-9A-Za-z.-]+))?", re.ASCII
)


class SemVer(msgspec.Struct, frozen=True):
    """A semantic version (semver.org 2.0.0): ``1.0.10`` > ``1.0.9`` > ``1.0.9-rc.1``. Build metadata is refused."""

    major: int
    minor: int = 0
    patch: int = 0
    prerelease: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SemVer:
        """Raises ValueError with a sentence."""
        found = _SEMVER.fullmatch(text) if len(text) <= 100 else None
        if found is None or found[5] is not None:
            raise ValueError(f"{text[:100]!r} is not a semantic version such as 1.2.3 or 2.0.0-rc.1")
        return cls(int(found[1]), int(found[2]), int(found[3]), tuple(found[4].split(".")) if found[4] else ())

    def __str__(self) -> str:
        release = f"{self.major}.{self.minor}.{self.patch}"
        return f"{release}-{'.'.join(self.prerelease)}" if self.prerelease else release

    @property
    def order(self) -> tuple[Any, ...]:
        """A key that sorts as semver says: a prerelease before its release, numbers before words."""
        words = tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in self.prerelease)
        return self.major, self.minor, self.patch, not self.prerelease, words

    # Written out: a Struct has all four already (refusing), so functools.total_ordering would add none.
    def __lt__(self, other: SemVer) -> bool:
        return self.order < other.order

    def __le__(self, other: SemVer) -> bool:
        return self.order <= other.order

    def __gt__(self, other: SemVer) -> bool:
        return self.order > other.order

    def __ge__(self, other: SemVer) -> bool:
        return self.order >= other.order


FIRST = SemVer(1, 0, 0)
_MAX_NUMBER = 2**31 - 1


def first_number(document: Mapping[str, Any]) -> SemVer:
    """The number of a new workflow's first version: what the older batch form gave, if a version can have it."""
    said = older.legacy(document).get("version")
    try:
        number = SemVer.parse(said) if isinstance(said, str) else FIRST
    except ValueError:
        return FIRST
    whole = not number.prerelease and max(number.major, number.minor, number.patch) <= _MAX_NUMBER
    return number if whole else FIRST


class Bump(StrEnum):
    """The kind of a change: breaking, a feature, a fix."""

    MAJOR = "MAJOR"
    MINOR = "MINOR"
    PATCH = "PATCH"


def bump(version: SemVer, kind: Bump) -> SemVer:
    """The next version after a change of this kind. A prerelease that already announces it becomes its release."""
    major, minor, patch = version.major, version.minor, version.patch
    announced = bool(version.prerelease)
    match kind:
        case Bump.MAJOR:
            return SemVer(major if announced and minor == patch == 0 else major + 1)
        case Bump.MINOR:
            return SemVer(major, minor if announced and patch == 0 else minor + 1)
        case Bump.PATCH:
            return SemVer(major, minor, patch if announced else patch + 1)


# ---- the kind of a change -------------------------------------------------------------------------------------


class _Weight(IntEnum):
    PATCH = 0
    MINOR = 1
    MAJOR = 2


def kind_of_change(old: Definition, new: Definition) -> Bump:
    """What a change means for those who use the workflow.

    MAJOR: an input is removed, newly required, or takes fewer types; an output is removed. MINOR: a new optional
    input, a new node or a new output. PATCH: the rest.
    """
    old_inputs, old_required = _inputs(old)
    new_inputs, new_required = _inputs(new)
    old_outputs, new_outputs = _outputs(old), _outputs(new)
    if (
        old_inputs.keys() - new_inputs.keys()
        or new_required - old_required
        or any(_narrowed(schema, new_inputs[name]) for name, schema in old_inputs.items() if name in new_inputs)
        or old_outputs - new_outputs
    ):
        return Bump.MAJOR
    old_nodes, new_nodes = ({node.id for node in definition.nodes} for definition in (old, new))
    if new_inputs.keys() - old_inputs.keys() or new_nodes - old_nodes or new_outputs - old_outputs:
        return Bump.MINOR
    return Bump.PATCH


def _inputs(definition: Definition) -> tuple[dict[str, Any], frozenset[str]]:
    schema = definition.input_schema or {}
    properties, required = schema.get("properties"), schema.get("required")
    names = frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset()
    inputs = dict(properties) if isinstance(properties, dict) else {}
    return {**dict.fromkeys(names, True), **inputs}, names


def _outputs(definition: Definition) -> frozenset[str]:
    """Targets of the output mapping, or the ids of the terminal nodes, whose outputs stand in for it."""
    if definition.output_mapping:
        return frozenset(target.split(".")[0] for target in definition.output_mapping)
    return frozenset(node.id for node in definition.nodes) - {edge.source for edge in definition.edges}


def _types(schema: Any) -> frozenset[str] | None:
    """The types that a property may have, None for any."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, str):
        kinds = {kind}
    elif isinstance(kind, list):
        kinds = {word for word in kind if isinstance(word, str)}
    else:
        return None
    return frozenset(kinds | {"integer"} if "number" in kinds else kinds)


def _narrowed(old: Any, new: Any) -> bool:
    after = _types(new)
    if after is None:
        return False
    before = _types(old)
    return before is None or bool(before - after)


# ---- difference -----------------------------------------------------------------------------------------------


class ChangeKind(StrEnum):
    ADDED = "ADDED"
    REMOVED = "REMOVED"
    CHANGED = "CHANGED"


class Change(msgspec.Struct, frozen=True):
    """One difference. ``before`` and ``after`` are canonical JSON, None where there was or is nothing.

    ``key`` is a node's or trigger's id, ``source → target`` of an edge, or a JSON pointer. Within a changed node, edge
    or trigger ``parts`` are its own differences, with pointers inside it.
    """

    key: str
    kind: ChangeKind
    before: Any = None
    after: Any = None
    parts: tuple[Change, ...] = ()


class DefinitionDiff(msgspec.Struct, frozen=True):
    """What changed between two definitions; ``settings`` are all the other top-level keys. ``bump``: its kind."""

    bump: Bump
    nodes: tuple[Change, ...] = ()
    edges: tuple[Change, ...] = ()
    triggers: tuple[Change, ...] = ()
    parameters: tuple[Change, ...] = ()
    settings: tuple[Change, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.nodes or self.edges or self.triggers or self.parameters or self.settings)


_SECTIONS = ("nodes", "edges", "triggers", "parameters")


def diff(old: Definition, new: Definition) -> DefinitionDiff:
    """Every difference, each list in the order of the old definition, then what is new in the order of the new one.

    The mere order of nodes, edges and triggers is not a difference.
    """
    before, after = export(old), export(new)
    return DefinitionDiff(
        bump=kind_of_change(old, new),
        nodes=_listed({node.id: export_part(node) for node in old.nodes}, {n.id: export_part(n) for n in new.nodes}),
        edges=_listed(_edges(old), _edges(new)),
        triggers=_listed(
            {trigger.id: export_part(trigger) for trigger in old.triggers},
            {trigger.id: export_part(trigger) for trigger in new.triggers},
        ),
        parameters=tuple(_values(old.parameters, new.parameters, "")),
        settings=tuple(
            _values(
                {key: value for key, value in before.items() if key not in _SECTIONS},
                {key: value for key, value in after.items() if key not in _SECTIONS},
                "",
            )
        ),
    )


def _edges(definition: Definition) -> dict[str, dict[str, Any]]:
    """Edges by ``source → target``; several between the same two are numbered."""
    seen: Counter[str] = Counter()
    result: dict[str, dict[str, Any]] = {}
    for edge in definition.edges:
        name = f"{edge.source} → {edge.target}"
        seen[name] += 1
        result[name if seen[name] == 1 else f"{name} ({seen[name]})"] = export_part(edge)
    return result


K = TypeVar("K", bound=Hashable)


def _in_order(old: Iterable[K], new: Iterable[K]) -> Iterable[K]:
    return dict.fromkeys([*old, *new])


def _listed(old: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]) -> tuple[Change, ...]:
    changes: list[Change] = []
    for key in _in_order(old, new):
        if key not in new:
            changes.append(Change(key, ChangeKind.REMOVED, before=old[key]))
        elif key not in old:
            changes.append(Change(key, ChangeKind.ADDED, after=new[key]))
        elif parts := tuple(_values(old[key], new[key], "")):
            changes.append(Change(key, ChangeKind.CHANGED, old[key], new[key], parts))
    return tuple(changes)


def _values(old: Any, new: Any, pointer: str) -> Iterable[Change]:
    """Differences of two objects, key by key down to what isn't an object on both sides."""
    for key in _in_order(old, new):
        at = f"{pointer}/{pointer_token(key)}"
        if key not in new:
            yield Change(at, ChangeKind.REMOVED, before=old[key])
        elif key not in old:
            yield Change(at, ChangeKind.ADDED, after=new[key])
        elif isinstance(old[key], dict) and isinstance(new[key], dict):
            yield from _values(old[key], new[key], at)
        elif not same_json(old[key], new[key]):
            yield Change(at, ChangeKind.CHANGED, old[key], new[key])


def same_json(a: Any, b: Any) -> bool:
    """Equality as JSON has it: ``true`` is not ``1`` (in Python it is), while ``1`` is ``1.0``."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    return bool(a == b)


# ---- input ----------------------------------------------------------------------------------------------------


def input_problems(schema: dict[str, Any] | None, input: Any) -> list[Problem]:
    """Every reason why a version with this input schema can't be started with this input; pointers under ``/input``."""
    found = Problems()
    check_values(input, found)
    if not found and schema is not None:
        for mismatch in jsonschemas.mismatches(jsonschemas.validator(schema), input):
            found.add(mismatch.pointer, ProblemCode.BAD_INPUT, f"The input doesn't fit: {mismatch.message}")
    return [Problem(f"/input{problem.pointer}", problem.code, problem.message) for problem in found.sorted()]
