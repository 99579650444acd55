"""The contract: its export is up to date, every root field asks for a permission, everything is described."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLUnionType,
    is_specified_scalar_type,
)

from engine.access import Permission
from flow.events import EVENT_TYPES
from graph.events import KINDS
from graph.permissions import PUBLIC, SIGNED_IN
from graph.schema import build_schema, sdl

ROOT = Path(__file__).parents[1]
SCHEMA = build_schema()
TYPES = {name: kind for name, kind in SCHEMA._schema.type_map.items() if not name.startswith("__")}

#: Fields that a stranger may ask for.
OPEN = {"Query.viewer", "Query.health"}


def test_the_export_is_up_to_date() -> None:
    """schema.graphql is what the code says; `python -m graph.schema > schema.graphql` mends it."""
    assert (ROOT / "schema.graphql").read_text() == sdl()


@pytest.mark.parametrize("root", ["Query", "Mutation", "Subscription"])
def test_every_root_field_asks_for_a_permission(root: str) -> None:
    """No root field was made without saying who may use it; only those listed here are open to strangers."""
    kind = SCHEMA.get_type_by_name(root)
    needed = {f"{root}.{field.name}": field.metadata.get("permission") for field in kind.fields}  # type: ignore[union-attr]
    assert needed
    unguarded = [name for name, need in needed.items() if not isinstance(need, Permission) and need != SIGNED_IN]
    assert [name for name in unguarded if name not in OPEN or needed[name] != PUBLIC] == []


def described() -> Iterator[tuple[str, str | None]]:
    """Everything that a reader of the playground can come across, with its description."""
    for name, kind in TYPES.items():
        if is_specified_scalar_type(kind):
            continue
        yield name, kind.description
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType):
            for field_name, field in kind.fields.items():
                yield f"{name}.{field_name}", field.description
                for argument, about in getattr(field, "args", {}).items():
                    yield f"{name}.{field_name}({argument})", about.description


def test_everything_is_described() -> None:
    """Every type, field and argument has a description."""
    assert [name for name, text in described() if not text and name not in {"Subscription"}] == []


def test_every_mutation_takes_one_input_and_answers_a_union() -> None:
    """`xY(input: XYInput!): XYResult!`, a union of its payload and refusals, all of which are UserErrors."""
    for name, field in SCHEMA._schema.mutation_type.fields.items():  # type: ignore[union-attr]
        pascal = name[0].upper() + name[1:]
        assert {key: str(about.type) for key, about in field.args.items()} == {"input": f"{pascal}Input!"}
        assert str(field.type) == f"{pascal}Result!"
        union = TYPES[f"{pascal}Result"]
        assert isinstance(union, GraphQLUnionType)
        payload, *refusals = union.types
        assert payload.name == f"{pascal}Payload"
        # A worker belongs to no project, so it has no place in a project's order of changes.
        assert "changeSeq" in payload.fields or name in {"workflowExport", "workerDrain", "serverCheckHealth"}
        assert all("UserError" in {i.name for i in refusal.interfaces} for refusal in refusals)


def test_fields_of_one_name_agree() -> None:
    """Types that can stand in one place give fields of one name one type, so that a client can ask for all at once."""
    groups: dict[str, list[GraphQLObjectType]] = defaultdict(list)
    for name, kind in TYPES.items():
        if isinstance(kind, GraphQLUnionType):
            groups[name] = list(kind.types)
        elif isinstance(kind, GraphQLObjectType):
            for interface in kind.interfaces:
                if interface.name != "Node":
                    groups[interface.name].append(kind)
    clashes = []
    for name, members in groups.items():
        seen: dict[str, str] = {}
        for member in members:
            for field_name, field in member.fields.items():
                if seen.setdefault(field_name, str(field.type)) != str(field.type):
                    clashes.append(f"{name}: {member.name}.{field_name} is {field.type}, not {seen[field_name]}")
    assert clashes == []


def test_every_kind_of_event_has_a_type() -> None:
    """A new event in flow.events needs its type here."""
    assert set(KINDS) == set(EVENT_TYPES.values())


def test_names_suit_code_generators() -> None:
    """No enum value, field or argument has a name that typed clients stumble over."""
    for name, kind in TYPES.items():
        if isinstance(kind, GraphQLEnumType):
            assert "mro" not in kind.values, name
        if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            for field in kind.fields.values():
                assert not {"self", "info", "None"} & set(field.args), name


def test_defaults_are_scalars() -> None:
    """Generators can't write an object as a default, and `= null` says nothing."""
    assert "= {" not in sdl()
    assert "= null" not in sdl()
