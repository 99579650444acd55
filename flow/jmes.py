"""JMESPath made safe for text from outside: strict literals, bounded growth, no warning, no NaN.

``jmespath`` evaluates ``[@,@][] | [@,@][] | …`` into as much memory as there is, reads a literal in
backticks that isn't JSON with a warning, and lets Python's own errors (``'a' < 1``) through.
The classes here keep its grammar and mend these places.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jmespath import exceptions, functions, lexer, parser, visitor

Ast = dict[str, Any]

#: Elements of one list, or characters of one string, that an expression may build.
MAX_BUILT_ITEMS = 1_000_000
MAX_BUILT_CHARACTERS = 16 * 1024 * 1024

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


class TooLarge(ValueError):
    """An expression builds more than the limits above."""


def json_constant(text: str) -> Any:
    """For ``json.loads(parse_constant=…)``: ``NaN`` and ``Infinity`` are not JSON."""
    raise ValueError(f"{text} is not JSON")


def finite(text: str) -> float:
    """For ``json.loads(parse_float=…)``: a number beyond the range of a double is refused, not made infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond the range of a number")
    return number


class StrictLexer(lexer.Lexer):
    """Takes JSON only in a backtick literal (the library would take text, and warn)."""

    _position: int
    _consume_until: Callable[[str], str]

    def _consume_literal(self) -> dict[str, Any]:
        start = self._position
        lexeme = self._consume_until("`").replace("\\`", "`")
        try:
            value = json.loads(lexeme, parse_constant=json_constant, parse_float=finite)
        except ValueError:
            raise exceptions.LexerError(
                lexer_position=start,
                lexer_value=lexeme,
                message=f"`{lexeme}` is not JSON; text is written in single quotes: '{lexeme}'",
            ) from None
        return {"type": "literal", "value": value, "start": start, "end": self._position - start}


class StrictParser(parser.Parser):
    """Reads with the strict lexer and without the library's own cache."""

    _expression: Callable[..., Ast]
    _current_token: Callable[[], str]
    _lookahead_token: Callable[[int], dict[str, Any]]

    def ast(self, expression: str) -> Ast:
        """The syntax tree; raises the library's ``JMESPathError`` family."""
        self._tokens = list(StrictLexer().tokenize(expression))
        self._index = 0
        tree = self._expression(binding_power=0)
        if self._current_token() != "eof":
            token = self._lookahead_token(0)
            raise exceptions.ParseError(token["start"], token["value"], token["type"], "unexpected")
        return tree


def plain(value: Any) -> Any:
    """A lazy mapping as a dict; anything else as it is."""
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return dict(value)
    return value


def bounded(value: Any) -> Any:
    """The value itself, or ``TooLarge``.

    Counts every element and character as often as it is reached, so a small graph
    of shared lists that would be huge as JSON is caught without being written out.
    """
    budget = MAX_BUILT_CHARACTERS
    stack = [value]
    while stack:
        current = stack.pop()
        budget -= 1
        if isinstance(current, str):
            budget -= len(current)
        elif isinstance(current, list):
            budget -= len(current)
            if budget >= 0:
                stack.extend(current)
        elif isinstance(current, Mapping):
            budget -= len(current)
            if budget >= 0:
                stack.extend(current.values())
        if budget < 0:
            raise TooLarge
    return value


def _bounded_items(items: list[Any]) -> list[Any]:
    if len(items) > MAX_BUILT_ITEMS:
        raise TooLarge
    return items


class StrictFunctions(functions.Functions):
    """The standard functions, with JSON numbers only and bounded results."""

    def call_function(self, function_name: str, resolved_args: Iterable[Any]) -> Any:
        result = super().call_function(function_name, [plain(argument) for argument in resolved_args])
        if isinstance(result, float) and not math.isfinite(result):
            raise TooLarge
        return result

    @functions.signature({"types": []})
    def _func_to_number(self, argument: Any) -> Any:
        if isinstance(argument, str):
            try:
                return json.loads(argument, parse_float=finite) if _NUMBER.fullmatch(argument) else None
            except ValueError:
                return None
        return argument if isinstance(argument, int | float) and not isinstance(argument, bool) else None

    @functions.signature({"types": []})
    def _func_to_string(self, argument: Any) -> str:
        return argument if isinstance(argument, str) else json_text(bounded(argument))

    @functions.signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> bool:
        if isinstance(subject, str) and not isinstance(search, str):
            return False
        return search in subject

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        if sum(map(len, array)) + len(separator) * len(array) > MAX_BUILT_CHARACTERS:
            raise TooLarge
        return separator.join(array)

    @functions.signature({"types": ["expref"]}, {"types": ["array"]})
    def _func_map(self, expref: Any, array: list[Any]) -> list[Any]:
        return [expref.visit(expref.expression, element) for element in _bounded_items(array)]


class StrictInterpreter(visitor.TreeInterpreter):
    """Evaluates a tree. It holds no state of a run, so one serves every thread."""

    def __init__(self) -> None:
        super().__init__(visitor.Options(custom_functions=StrictFunctions()))

    def visit_comparator(self, node: Any, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        operator = node["value"]
        if operator not in ("eq", "ne"):
            numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
            if not numbers and not (isinstance(left, str) and isinstance(right, str)):
                return None
        return self.COMPARATOR_FUNC[operator](left, right)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        if sum(len(element) if isinstance(element, list) else 1 for element in base) > MAX_BUILT_ITEMS:
            raise TooLarge
        return [inner for element in base for inner in (element if isinstance(element, list) else (element,))]

    def visit_multi_select_list(self, node: Any, value: Any) -> Any:
        if value is None:
            return None
        return [plain(self.visit(child, value)) for child in node["children"]]

    def visit_multi_select_dict(self, node: Any, value: Any) -> Any:
        if value is None:
            return None
        return {child["value"]: plain(self.visit(child, value)) for child in node["children"]}


def json_text(value: Any) -> str:
    """Compact JSON that keeps every letter as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


FUNCTIONS: dict[str, tuple[int, bool]] = {
    name: (len(spec["signature"]), bool(spec["signature"] and spec["signature"][-1].get("variadic")))
    for name, spec in StrictFunctions.FUNCTION_TABLE.items()
}
"""Name → (number of arguments, whether more are allowed)."""

_INTERPRETER: Any = StrictInterpreter()


def evaluate(ast: Ast, data: Any) -> Any:
    """The value of a tree on ``data``; raises ``ValueError``s (the library's own, and ``TooLarge``)."""
    return _INTERPRETER.visit(ast, data)
