"""What the syntax tree of an expression tells before it is evaluated: its bounds, and the names that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from flow.jmes import FUNCTIONS, Ast

MAX_NESTING = 50
#: How many times larger than its data the result of an expression may be.
MAX_AMPLIFICATION = 1_000


class Unfit(ValueError):
    """A tree that will not be evaluated; the message goes on after "the expression …"."""


@dataclass(frozen=True, slots=True)
class References:
    """The names that an expression takes from its scope, and the ids that it takes from ``nodes``."""

    names: frozenset[str]
    nodes: frozenset[str]


def _children(ast: Ast) -> list[Ast]:
    children: list[Ast] = ast["children"]
    if ast["type"] != "slice":
        return children
    # A slice holds plain numbers instead of trees.
    return [child for child in ast["children"] if isinstance(child, dict)]


_BUILDING = frozenset({"multi_select_list", "multi_select_dict", "function_expression"})


def grows(ast: Ast) -> bool:
    """Whether the result can be larger than the data.

    Raises Unfit for a tree that is nested too deeply, calls what isn't there, or could grow its data beyond bounds.
    """
    builds = False
    stack = [(1, ast)]
    while stack:
        depth, node = stack.pop()
        if depth > MAX_NESTING:
            raise Unfit(f"is nested deeper than {MAX_NESTING}; split it over several nodes")
        if node["type"] in _BUILDING:
            builds = True
            if node["type"] == "function_expression":
                _check_call(node["value"], len(node["children"]))
        for child in _children(node):
            stack.append((depth + 1, child))
    if not builds:
        return False
    if (amplification := _amplification(ast)) > MAX_AMPLIFICATION:
        raise Unfit(f"could make its data more than {MAX_AMPLIFICATION:,} times larger")
    return amplification > 1


def _check_call(name: str, given: int) -> None:
    if name not in FUNCTIONS:
        known = ", ".join(sorted(FUNCTIONS))
        raise Unfit(f"calls {name}(), which JMESPath doesn't have; there are {known}")
    wanted, more = FUNCTIONS[name]
    if given < wanted or (given > wanted and not more):
        raise Unfit(f"gives {name}() {given} arguments; it takes {'at least ' if more else ''}{wanted}")


def _amplification(ast: Ast) -> int:
    """An upper bound of (size of the result) / (size of the data): what lists and objects add up, chains multiply."""
    children = _children(ast)
    match ast["type"]:
        case "multi_select_list" | "multi_select_dict":
            return max(1, sum(map(_amplification, children)))
        case "function_expression" if ast["value"] in ("merge", "join", "not_null"):
            return max(1, sum(map(_amplification, children)))
        case "or_expression" | "and_expression":
            return max(map(_amplification, children))
        case "comparator" | "not_expression":
            # The result is one truth value, but the sides are built to get it.
            return max(map(_amplification, children))
        case _:
            product = 1
            for child in children:
                product *= _amplification(child)
            return product


class _At(Enum):
    SCOPE = "scope"
    NODES = "nodes"
    ELSEWHERE = "elsewhere"


def references(ast: Ast) -> References:
    """What the expression refers to, by following where each part of it is evaluated. ``grows`` bounds the depth."""
    names: set[str] = set()
    nodes: set[str] = set()

    def visit(node: Ast, at: _At) -> _At:
        """Where the value of ``node``, evaluated at ``at``, stands."""
        children = _children(node)
        match node["type"]:
            case "field":
                if at is _At.SCOPE:
                    names.add(node["value"])
                    return _At.NODES if node["value"] == "nodes" else _At.ELSEWHERE
                if at is _At.NODES:
                    nodes.add(node["value"])
                return _At.ELSEWHERE
            case "identity" | "current":
                return at
            case "subexpression" | "pipe" | "index_expression":
                for child in children:
                    at = visit(child, at)
                return at
            case "projection" | "value_projection" | "filter_projection" | "flatten":
                visit(children[0], at)
                for child in children[1:]:
                    visit(child, _At.ELSEWHERE)
                return _At.ELSEWHERE
            case "expref":
                visit(children[0], _At.ELSEWHERE)
                return _At.ELSEWHERE
            case "or_expression" | "and_expression":
                ends = [visit(child, at) for child in children]
                return _At.NODES if _At.NODES in ends else _At.ELSEWHERE
            case _:
                for child in children:
                    visit(child, at)
                return _At.ELSEWHERE

    visit(ast, _At.SCOPE)
    return References(frozenset(names), frozenset(nodes))
