"""Expressions (JMESPath) and templates (``{{ expression }}``) over a node's scope.

JMESPath has no side effects and no way to code. An expression is bounded in length, nesting and in what
it can build; a node id that isn't a plain identifier is quoted in it: ``nodes."preprocess-01".output``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jmespath import exceptions

from flow import jmes, jmestree
from flow.errors import Category, Failure, WorkflowError
from flow.jmestree import References

MAX_LENGTH = 2_000
MAX_RENDER_DEPTH = 100

Scope = dict[str, Any]


class ExpressionError(WorkflowError):
    """An expression that can't be read or evaluated.

    Codes: ``EXPRESSION_INVALID`` (does not compile), ``EXPRESSION_UNRESOLVED`` (null inside a text),
    ``EXPRESSION_FAILED`` (a function met a value of the wrong type), ``EXPRESSION_TOO_LARGE``.
    """

    code = "EXPRESSION_INVALID"

    def failure(self, node_id: str | None = None) -> Failure:
        """The same as data: why a node failed."""
        return Failure(code=self.code, category=Category.EXPRESSION, message=self.message, node_id=node_id)


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A compiled expression; share it freely. ``grows``: the result may be larger than the data."""

    text: str
    ast: jmes.Ast
    references: References
    grows: bool

    def search(self, data: Any) -> Any:
        """The value on ``data``, None where nothing is found. It may share parts with ``data``: do not change it.

        Raises ExpressionError (EXPRESSION_FAILED, EXPRESSION_TOO_LARGE).
        """
        try:
            result = jmes.plain(jmes.evaluate(self.ast, data))
            return jmes.bounded(result) if self.grows else result
        except jmes.TooLarge:
            message = (
                f"The expression {_shown(self.text)} builds more than an expression may (16 MiB, 1,000,000 items)."
            )
            raise ExpressionError(message, code="EXPRESSION_TOO_LARGE") from None
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            message = f"The expression {_shown(self.text)} can't be evaluated here: {_shortened(str(error))}"
            raise ExpressionError(message, code="EXPRESSION_FAILED") from None


@lru_cache(maxsize=8_192)
def compiled(expression: str) -> Expression:
    """The expression, read and checked once. Raises ExpressionError with the place and, where known, the remedy."""
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(
            f"The expression {_shown(expression)} has {len(expression):,} characters; the limit is {MAX_LENGTH:,}."
        )
    if not expression.strip():
        raise ExpressionError("The expression is empty.")
    try:
        ast = jmes.StrictParser().ast(expression)
    except exceptions.IncompleteExpressionError:
        raise ExpressionError(f"The expression {_shown(expression)} ends too early.") from None
    except exceptions.LexerError as error:
        raise ExpressionError(_unreadable(expression, error.lex_position, _shortened(error.message))) from None
    except exceptions.ParseError as error:
        if error.lex_position >= len(expression):
            raise ExpressionError(f"The expression {_shown(expression)} ends too early.") from None
        what = f"unexpected {str(error.token_value)[:40]!r}"
        raise ExpressionError(_unreadable(expression, error.lex_position, what)) from None
    except RecursionError:
        raise ExpressionError(f"The expression {_shown(expression)} is nested too deeply.") from None
    try:
        grows = jmestree.grows(ast)
    except jmestree.Unfit as error:
        raise ExpressionError(f"The expression {_shown(expression)} {error}.") from None
    return Expression(expression, ast, jmestree.references(ast), grows)


def search(expression: str, data: Any) -> Any:
    """The value of the expression on ``data``; None where nothing is found."""
    return compiled(expression).search(data)


def truthy(value: Any) -> bool:
    """JMESPath truth: false are null, false and everything empty. Zero is true."""
    return not (value is None or value is False or (isinstance(value, str | list | Mapping) and len(value) == 0))


# ---- scope ----------------------------------------------------------------------------------------------------


class Nodes(Mapping[str, Any]):
    """``nodes`` of a scope without building it: each node is looked up when an expression asks for it.

    ``lookup(id)`` gives what ``node_view`` gives, or None for a node that isn't there.
    """

    __slots__ = ("_ids", "_lookup")

    def __init__(self, ids: Collection[str], lookup: Callable[[str], dict[str, Any] | None]) -> None:
        self._ids = ids
        self._lookup = lookup

    def __getitem__(self, id: str) -> Any:
        if (view := self._lookup(id)) is None:
            raise KeyError(id)
        return view

    def get(self, id: str, default: Any = None) -> Any:
        view = self._lookup(id)
        return default if view is None else view

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def node_view(output: Any, status: str, skipped: bool = False) -> dict[str, Any]:
    """What ``nodes.<id>`` holds: ``output``, ``status``, ``skipped``, and an object output's keys beneath them.

    So both ``nodes.a.output.path`` and the short ``nodes.a.path`` are found.
    """
    view = dict(output) if isinstance(output, dict) else {}
    view["output"] = output
    view["status"] = status
    view["skipped"] = skipped
    return view


_ABSENT: Any = object()


def scope(
    *,
    input: Any = None,
    trigger: Any = None,
    nodes: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    instance: Mapping[str, Any] | None = None,
    project: Mapping[str, Any] | None = None,
    item: Any = _ABSENT,
    index: int | None = None,
) -> Scope:
    """What a node's expressions see: the keys of its input, overlaid by the fixed names.

    Nothing is copied but the input's top-level keys; ``nodes`` may be a lazy ``Nodes``.
    """
    result: Scope = dict(input) if isinstance(input, dict) else {}
    result["input"] = input
    result["trigger"] = trigger if trigger is not None else {}
    result["nodes"] = nodes if nodes is not None else {}
    result["parameters"] = parameters if parameters is not None else {}
    result["instance"] = instance if instance is not None else {}
    result["project"] = project if project is not None else {}
    if item is not _ABSENT:
        result["item"] = item
        result["index"] = index
    return result


# ---- templates ------------------------------------------------------------------------------------------------


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    """Any JSON value with its templates resolved; keys stay as they are, and results are not rendered again.

    A string that is one template keeps the type of the value. Inside longer text a value is written as
    text, an object as JSON, and null is an ExpressionError (EXPRESSION_UNRESOLVED).
    A value without any template is returned as it is, not copied.
    """
    return _rendered(value, scope, 0)


def _rendered(value: Any, scope: Mapping[str, Any], depth: int) -> Any:
    if isinstance(value, str):
        return _text(template(value), scope) if "{{" in value else value
    if not isinstance(value, dict | list):
        return value
    if depth >= MAX_RENDER_DEPTH:
        raise ExpressionError(f"The value is nested deeper than {MAX_RENDER_DEPTH}.", code="EXPRESSION_TOO_LARGE")
    if isinstance(value, list):
        items = [_rendered(item, scope, depth + 1) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    members = {key: _rendered(item, scope, depth + 1) for key, item in value.items()}
    return members if any(members[key] is not old for key, old in value.items()) else value


Part = str | Expression


def _text(parts: tuple[Part, ...], scope: Mapping[str, Any]) -> Any:
    match parts:
        case (Expression() as only,):
            return only.search(scope)
    texts = [part if isinstance(part, str) else _written(part, scope) for part in parts]
    if sum(map(len, texts)) > jmes.MAX_BUILT_CHARACTERS:
        raise ExpressionError("A template's text is larger than 16 MiB.", code="EXPRESSION_TOO_LARGE")
    return "".join(texts)


def _written(expression: Expression, scope: Mapping[str, Any]) -> str:
    value = expression.search(scope)
    if value is None:
        names = sorted(map(str, scope))
        shown = ", ".join(names[:30]) + (f", and {len(names) - 30} more" if len(names) > 30 else "")
        message = (
            f"{{{{ {expression.text} }}}} is null here, inside a text. The scope has: {shown}. "
            f"Give it a default: {{{{ {expression.text} || '' }}}}."
        )
        raise ExpressionError(message, code="EXPRESSION_UNRESOLVED")
    return value if isinstance(value, str) else jmes.json_text(value)


def template(text: str) -> tuple[Part, ...]:
    """The literal texts and compiled expressions of a string, in order. Raises ExpressionError.

    A literal ``{{`` is written ``{{ '{{' }}``.
    """
    return _template(text) if len(text) <= 10_000 else _parts(text)


def _parts(text: str) -> tuple[Part, ...]:
    return tuple(compiled(piece) if within else piece for within, piece in _pieces(text))


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """The literal texts (False) and the texts of expressions (True). Raises ExpressionError for an open template."""
    position = 0
    while (start := text.find("{{", position)) >= 0:
        if start > position:
            yield False, text[position:start]
        end = _template_end(text, start + 2)
        if end is None:
            raise ExpressionError(f"The template {_shown(text[start : start + 200])} is not closed by '}}}}'.")
        yield True, text[start + 2 : end].strip()
        position = end + 2
    if position < len(text):
        yield False, text[position:]


def expressions_in(text: str) -> tuple[list[Expression], list[ExpressionError]]:
    """Every expression of a template, and every error in it: the one doesn't hide the other."""
    found: list[Expression] = []
    errors: list[ExpressionError] = []
    try:
        for within, piece in _pieces(text):
            if within:
                try:
                    found.append(compiled(piece))
                except ExpressionError as error:
                    errors.append(error)
    except ExpressionError as error:
        errors.append(error)
    return found, errors


_template = lru_cache(maxsize=4_096)(_parts)
_TEMPLATE_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`(?:\\.|[^`\\])*`|[{}]""", re.DOTALL)


def _template_end(text: str, start: int) -> int | None:
    """Where the closing ``}}`` is: braces of the expression itself and anything quoted do not close it."""
    depth = 0
    for token in _TEMPLATE_TOKEN.finditer(text, start, start + MAX_LENGTH * 2):
        match token.group():
            case "{":
                depth += 1
            case "}" if depth:
                depth -= 1
            case "}" if text.startswith("}}", token.start()):
                return token.start()
            case _:
                pass
    # An expression with an unbalanced quote still ends at the next braces, so that its own error is the one told.
    end = text.find("}}", start, start + MAX_LENGTH * 2)
    return end if end >= 0 else None


def templates(value: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a JSON value that holds a template, with its JSON pointer."""
    stack: list[tuple[str, Any]] = [(pointer, value)]
    while stack:
        at, current = stack.pop()
        if isinstance(current, str):
            if "{{" in current:
                yield at, current
        elif isinstance(current, dict):
            stack.extend((f"{at}/{pointer_token(key)}", item) for key, item in current.items())
        elif isinstance(current, list):
            stack.extend((f"{at}/{number}", item) for number, item in enumerate(current))


def pointer_token(key: object) -> str:
    """A key as one token of a JSON pointer (RFC 6901)."""
    return str(key).replace("~", "~0").replace("/", "~1")


# ---- words for errors -----------------------------------------------------------------------------------------

_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`(?:\\.|[^`\\])*`""", re.DOTALL)
_NAME = re.compile(r"(?<![\w\"'`-])[\w]+(?:-[\w]+)*(?![\w\"'`])")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE_NUMBER = re.compile(r"(?:[=<>]|&&|\|\||[(,])\s*(-?\d+(?:\.\d+)?)")


def _unreadable(expression: str, position: int, what: str) -> str:
    sentence = f"The expression {_shown(expression)} can't be read: {what} at character {position + 1}."
    if hint := _hint(expression):
        return f"{sentence} {hint}"
    return sentence


def _hint(expression: str) -> str | None:
    # Same length, so that positions stay: what is quoted is right already.
    bare = _QUOTED.sub(lambda found: " " * len(found.group()), expression)
    if number := _BARE_NUMBER.search(bare):
        return f"A number is written in backticks: `{number.group(1)}`."
    for found in _NAME.finditer(bare):
        name = found.group()
        if _PLAIN_NAME.fullmatch(name) or (name.isascii() and name.isdigit()):
            continue
        before = expression[: found.start()].rstrip()
        prefix = "nodes." if re.search(r"\bnodes\s*\.$", before) else ""
        return f'A name with other characters than letters, digits and _ is quoted: write {prefix}"{name}".'
    return None


def _shown(expression: str) -> str:
    return f"`{_shortened(expression)}`"


def _shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
