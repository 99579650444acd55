"""How much one request may ask for, measured before anything else looks at the document.

Everything is found in one walk, linear in the document: a fragment is measured once and its
measure is reused at every spread. (Limiters that walk into each spread again take exponential
time: 579 bytes were enough for four seconds.) A cost that depends on variables is kept as a
small expression and evaluated per request, so that a cached document stays cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLEnumType,
    GraphQLError,
    GraphQLField,
    GraphQLNamedType,
    GraphQLScalarType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    Node,
    NullValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_composite_type,
    value_from_ast_untyped,
)


class Limits(msgspec.Struct, frozen=True):
    """What one client may ask of the GraphQL endpoint; sizes in bytes, times in seconds."""

    body_bytes: int = 1024 * 1024
    tokens: int = 2_000
    depth: int = 12
    aliases: int = 30
    root_fields: int = 20
    directives: int = 50
    cost: int = 5_000
    page: int = 20
    execution_seconds: float = 10.0
    errors: int = 20
    cached_documents: int = 1_000
    socket_init_seconds: float = 5.0
    socket_frame_bytes: int = 256 * 1024
    socket_check_seconds: float = 20.0
    sockets_per_user: int = 10
    subscriptions_per_socket: int = 20


@dataclass(frozen=True, slots=True)
class Variable:
    """A page size (or a list of ids) that is known only with the request; ``default`` where it is not given."""

    name: str
    default: int


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A cost of several parts."""

    constant: int
    parts: tuple[Cost, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """A cost paid once per item."""

    count: int | Variable
    item: Cost


Cost = int | Sum | Times


@dataclass(frozen=True, slots=True)
class Measure:
    """What a selection set asks for, its fragments included.

    ``depth`` is the longest chain of fields, ``fields`` the fields directly at this level;
    a field that is repeated beside itself counts with the ``aliases``.
    Cost is split: ``item_cost`` is the part under ``nodes`` or ``edges``, which a connection
    pays per item, ``cost`` the rest.
    """

    depth: int = 0
    aliases: int = 0
    fields: int = 0
    cost: Cost = 0
    item_cost: Cost = 0


def limit_error(code: str, what: str, limit: int, actual: int | None, node: Any = None) -> GraphQLError:
    """The refusal of a request that asks for too much; ``extensions`` name the limit and the value met."""
    met = "" if actual is None else f", this one {actual:,}"
    extensions: dict[str, Any] = {"code": code, "limit": limit}
    if actual is not None:
        extensions["actual"] = actual
    return GraphQLError(f"{what} is limited to {limit:,}{met}.", node, extensions=extensions)


def measures(
    document: DocumentNode, schema: GraphQLSchema, limits: Limits
) -> list[tuple[OperationDefinitionNode, Measure]]:
    """The measure of every operation in the document. Unknown fields and types cost nothing: validation names them."""
    walk = _Walk(document, schema, limits)
    return [
        (node, walk.selections(node.selection_set, schema.get_root_type(node.operation), root=True))
        for node in document.definitions
        if isinstance(node, OperationDefinitionNode)
    ]


def refusals(
    document: DocumentNode, measured: Iterable[tuple[OperationDefinitionNode, Measure]], limits: Limits
) -> list[GraphQLError]:
    """Every limit that the document breaks whatever its variables are (tokens and cost are checked elsewhere)."""
    errors = []
    directives = sum(len(getattr(node, "directives", None) or ()) for node in _nodes(document))
    if directives > limits.directives:
        what = "The number of directives in a document"
        errors.append(limit_error("DIRECTIVE_LIMIT_EXCEEDED", what, limits.directives, directives))
    for node, measure in measured:
        for code, what, limit, actual in (
            ("DEPTH_LIMIT_EXCEEDED", "The depth of an operation", limits.depth, measure.depth),
            (
                "ALIAS_LIMIT_EXCEEDED",
                "The number of aliases and repeated fields in an operation",
                limits.aliases,
                measure.aliases,
            ),
            ("ROOT_FIELD_LIMIT_EXCEEDED", "The number of root fields", limits.root_fields, measure.fields),
        ):
            if actual > limit:
                errors.append(limit_error(code, what, limit, actual, node))
    return errors


def cost_of(measure: Measure, variables: Mapping[str, Any]) -> int:
    """What the operation costs with these variables: about the number of objects it may produce."""
    return _evaluate(_sum(measure.cost, measure.item_cost), variables, {})


class _Walk:
    def __init__(self, document: DocumentNode, schema: GraphQLSchema, limits: Limits) -> None:
        self.schema = schema
        self.page = limits.page
        self.definitions = {n.name.value: n for n in document.definitions if isinstance(n, FragmentDefinitionNode)}
        self.fragments: dict[tuple[str, bool], Measure] = {}

    def selections(
        self,
        selection_set: SelectionSetNode | None,
        parent: GraphQLNamedType | None,
        *,
        root: bool = False,
        seen: set[str] | None = None,
    ) -> Measure:
        seen = set() if seen is None else seen
        depth = aliases = fields = 0
        costs: list[Cost] = []
        item_costs: list[Cost] = []
        for node in selection_set.selections if selection_set else ():
            match node:
                case FieldNode():
                    key = (node.alias or node.name).value
                    # Validation compares all fields of one name in pairs: 480 of them took it 0.8 s.
                    aliases += node.alias is not None or key in seen
                    seen.add(key)
                    part = self.field(node, parent, root=root)
                case InlineFragmentNode():
                    named = node.type_condition
                    inner = self.schema.get_type(named.name.value) if named else parent
                    part = self.selections(node.selection_set, inner, root=root, seen=seen)
                case FragmentSpreadNode():
                    part = self.fragment(node.name.value, root=root)
                case _:
                    continue
            depth = max(depth, part.depth)
            aliases += part.aliases
            fields += part.fields
            costs.append(part.cost)
            item_costs.append(part.item_cost)
        return Measure(depth, aliases, fields, _sum(*costs), _sum(*item_costs))

    def fragment(self, name: str, *, root: bool) -> Measure:
        key = (name, root)
        if key not in self.fragments:
            self.fragments[key] = Measure()  # a cycle counts once here; validation refuses it by name
            if node := self.definitions.get(name):
                parent = self.schema.get_type(node.type_condition.name.value)
                self.fragments[key] = self.selections(node.selection_set, parent, root=root)
        return self.fragments[key]

    def field(self, node: FieldNode, parent: GraphQLNamedType | None, *, root: bool) -> Measure:
        name = node.name.value
        if root and name in ("__schema", "__type"):
            # The whole introspection query is deeper than any other; graphql-core bounds its nesting by a rule.
            return Measure(1, 0, 1)
        definition = getattr(parent, "fields", {}).get(name) if is_composite_type(parent) else None
        kind = get_named_type(definition.type) if definition else None
        inner = self.selections(node.selection_set, kind)
        if definition is None or isinstance(kind, (GraphQLScalarType, GraphQLEnumType)):
            return Measure(inner.depth + 1, inner.aliases, 1)
        depth, aliases = inner.depth + 1, inner.aliases
        count = self.count(node, definition)
        if _named(kind, "Connection"):
            return Measure(depth, aliases, 1, _sum(1, inner.cost, _fold(Times(count, inner.item_cost))))
        own = 0 if name == "node" and _named(parent, "Edge") else 1
        cost = _fold(Times(count, _sum(own, inner.cost, inner.item_cost)))
        if name in ("nodes", "edges") and _named(parent, "Connection"):
            return Measure(depth, aliases, 1, 0, cost)
        return Measure(depth, aliases, 1, cost)

    def count(self, node: FieldNode, definition: GraphQLField) -> int | Variable:
        """How many items the field may give: ``first`` or ``last`` of a connection, the length of ``ids``."""
        given = {argument.name.value: argument.value for argument in node.arguments or ()}
        paged = [_count(given[name], self.page) for name in ("first", "last") if name in given]
        if paged:
            return max(paged, key=lambda n: n if isinstance(n, int) else float("inf"))
        if "ids" in definition.args:
            return _count(given["ids"], 1) if "ids" in given else 1
        if "first" not in definition.args:
            return 1
        default = definition.args["first"].default_value
        return default if isinstance(default, int) else self.page


def _named(kind: object, ending: str) -> bool:
    return isinstance(kind, GraphQLNamedType) and kind.name.endswith(ending)


def _count(value: ValueNode, default: int) -> int | Variable:
    match value:
        case VariableNode():
            return Variable(value.name.value, default)
        case IntValueNode():
            return max(0, int(value.value))
        case ListValueNode():
            return len(value.values)
        case NullValueNode():
            return default
        case _:
            return 1


def _sum(*parts: Cost) -> Cost:
    constant = sum(part for part in parts if isinstance(part, int))
    rest = tuple(part for part in parts if not isinstance(part, int))
    if not rest:
        return constant
    return rest[0] if len(rest) == 1 and constant == 0 else Sum(constant, rest)


def _fold(times: Times) -> Cost:
    match times:
        case Times(int() as count, int() as item):
            return count * item
        case Times(_, 0) | Times(0, _):
            return 0
        case Times(1, item):
            return item
        case _:
            return times


def _evaluate(cost: Cost, variables: Mapping[str, Any], known: dict[int, int]) -> int:
    if isinstance(cost, int):
        return cost
    if id(cost) not in known:
        match cost:
            case Sum(constant, parts):
                known[id(cost)] = constant + sum(_evaluate(part, variables, known) for part in parts)
            case Times(count, item):
                known[id(cost)] = _value(count, variables) * _evaluate(item, variables, known)
    return known[id(cost)]


def _value(count: int | Variable, variables: Mapping[str, Any]) -> int:
    if isinstance(count, int):
        return count
    match variables.get(count.name):
        case bool() | None:
            return count.default
        case int() as given:
            return max(0, given)
        case list() as given:
            return len(given)
        case _:
            return count.default


def variable_defaults(operation: OperationDefinitionNode) -> dict[str, Any]:
    """The defaults that the operation itself gives to its variables."""
    return {
        definition.variable.name.value: value_from_ast_untyped(definition.default_value)
        for definition in operation.variable_definitions or ()
        if definition.default_value is not None
    }


def _nodes(document: DocumentNode) -> Iterable[Any]:
    waiting: list[Any] = [document]
    while waiting:
        node = waiting.pop()
        yield node
        for key in node.keys:
            match getattr(node, key, None):
                case tuple() | list() as many:
                    waiting.extend(many)
                case Node() as one:
                    waiting.append(one)
