"""Documents are parsed, measured and validated once and then remembered by their text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    parse,
    specified_rules,
    validate,
)
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from graph.errors import RequestError
from graph.limits import Limits, Measure, cost_of, limit_error, measures, refusals, variable_defaults
from graph.strings import NoNulRule

RULES = (*specified_rules, MaybeNullValidationRule, OneOfInputValidationRule, NoNulRule)

#: Longer texts (a definition pasted into a mutation, say) are not worth the memory.
LONGEST_REMEMBERED = 32 * 1024


class Refused(Exception):
    """The document can't be executed: these are its errors."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation of a valid document. ``field`` is its root field, ``*`` where there are several."""

    document: DocumentNode
    node: OperationDefinitionNode
    measure: Measure
    defaults: Mapping[str, Any]
    field: str
    introspects: bool

    @property
    def kind(self) -> OperationType:
        """Query, mutation or subscription."""
        return self.node.operation

    @property
    def name(self) -> str | None:
        """The name that the document gives it."""
        return self.node.name.value if self.node.name else None

    def cost(self, variables: Mapping[str, Any]) -> int:
        """What it costs with these variables, see ``graph.limits``."""
        if isinstance(self.measure.cost, int) and isinstance(self.measure.item_cost, int):
            return self.measure.cost + self.measure.item_cost
        return cost_of(self.measure, {**self.defaults, **variables})


class Documents:
    """The valid documents seen lately, for one schema and one set of limits."""

    def __init__(self, schema: GraphQLSchema, limits: Limits) -> None:
        self.schema = schema
        self.limits = limits
        self._known: OrderedDict[str, list[Operation]] = OrderedDict()

    def operation(self, text: str, name: str | None) -> Operation:
        """The operation of that name in the document, or its only one.

        Raises Refused (syntax, limits, validation), RequestError where the name fits none or is missing.
        """
        operations = self._known.get(text)
        if operations is None:
            operations = self._prepared(text)
            if len(text) <= LONGEST_REMEMBERED:
                self._known[text] = operations
                if len(self._known) > self.limits.cached_documents:
                    self._known.popitem(last=False)
        else:
            self._known.move_to_end(text)
        return _chosen(operations, name)

    def _prepared(self, text: str) -> list[Operation]:
        try:
            document = parse(text, max_tokens=self.limits.tokens)
        except GraphQLSyntaxError as error:
            raise Refused([_syntax_error(error, self.limits)]) from None
        try:
            measured = measures(document, self.schema, self.limits)
            if errors := refusals(document, measured, self.limits):
                raise Refused(errors)
        except RecursionError:
            raise Refused([_too_deep(self.limits)]) from None
        if errors := validate(self.schema, document, RULES, max_errors=self.limits.errors):
            for invalid in errors:
                invalid.extensions = {"code": "GRAPHQL_VALIDATION_FAILED", **(invalid.extensions or {})}
            raise Refused(errors)
        return [
            Operation(document, node, measure, variable_defaults(node), *_root(document, node))
            for node, measure in measured
        ]


def _syntax_error(error: GraphQLSyntaxError, limits: Limits) -> GraphQLError:
    if "tokens. Parsing aborted" in error.message:
        what = "The number of tokens in a document"
        return limit_error("TOKEN_LIMIT_EXCEEDED", what, limits.tokens, None)
    if "nested too deeply" in error.message:
        return _too_deep(limits)
    return error


def _too_deep(limits: Limits) -> GraphQLError:
    return limit_error("DEPTH_LIMIT_EXCEEDED", "The depth of an operation", limits.depth, None)


def _chosen(operations: list[Operation], name: str | None) -> Operation:
    if name:
        for operation in operations:
            if operation.name == name:
                return operation
        raise RequestError(400, "OPERATION_NOT_FOUND", f"The document has no operation named {name!r}.")
    if len(operations) == 1:
        return operations[0]
    if not operations:
        raise RequestError(400, "OPERATION_NOT_FOUND", "The document holds no operation.")
    names = ", ".join(str(operation.name) for operation in operations)
    raise RequestError(400, "OPERATION_NAME_MISSING", f"The document holds several operations ({names}): name one.")


def _root(document: DocumentNode, node: OperationDefinitionNode) -> tuple[str, bool]:
    """The root field's name (``*`` where there are several), and whether the operation reads the schema itself."""
    names = _root_names(document, node)
    return (next(iter(names)) if len(names) == 1 else "*"), not names.isdisjoint({"__schema", "__type"})


def _root_names(document: DocumentNode, node: OperationDefinitionNode) -> set[str]:
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    names: set[str] = set()
    seen: set[str] = set()
    waiting = [node.selection_set]
    while waiting:
        for selection in waiting.pop().selections:
            match selection:
                case FieldNode(name=name):
                    names.add(name.value)
                case InlineFragmentNode(selection_set=inner):
                    waiting.append(inner)
                case FragmentSpreadNode(name=name) if name.value not in seen:
                    seen.add(name.value)
                    waiting.append(fragments[name.value].selection_set)
                case _:
                    pass
    return names
