"""Text to JSON values: JSON, or YAML 1.2 without surprises (``on:`` is a key, ``no`` is text, dates are text).

The YAML reader builds the value from the parser's events itself: no tag can make an object, an alias can't
make a small text a huge value, a key that is there twice is an error, and nesting is bounded before anything
recurses. Every refusal carries a JSON pointer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from flow.errors import Invalid, Problem
from flow.expressions import pointer_token
from flow.problems import ProblemCode, Problems

MAX_BYTES = 16 * 1024 * 1024
MAX_VALUES = 2_000_000
#: No document needs more; what a definition may nest is checked by its reader.
MAX_TEXT_DEPTH = 200

Format = Literal["json", "yaml"]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str | bytes, format: Format | None = None) -> Any:
    """The JSON value of a JSON or YAML text; told apart by the content unless ``format`` says which.

    Raises Invalid with problems BAD_SYNTAX, DUPLICATE_KEY, NOT_JSON, TOO_LARGE or NESTED_TOO_DEEP.
    """
    if len(text) > MAX_BYTES:
        raise _refusal(ProblemCode.TOO_LARGE, f"The document is larger than {MAX_BYTES // 2**20} MiB.")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _refusal(
                ProblemCode.BAD_SYNTAX, f"The document is not UTF-8 (byte {error.start + 1}); save it as UTF-8."
            ) from None
    text = text.removeprefix("\ufeff")
    if format == "yaml" or (format is None and not text.lstrip().startswith(("{", "["))):
        value = _yaml(text)
    else:
        try:
            value = _json(text)
        except Invalid:
            if format == "json":
                raise
            # ``{a: b}`` is YAML too; where that fails as well, the JSON error is the one to tell.
            try:
                value = _yaml(text)
            except Invalid as error:
                if error.problems[0].code != ProblemCode.BAD_SYNTAX:
                    raise
                error_of_json = _json_error(text)
                raise error_of_json if error_of_json is not None else error from None
    problems = Problems()
    check_values(value, problems)
    if problems:
        raise Invalid(problems.sorted())
    return value


def _refusal(code: ProblemCode, message: str, pointer: str = "") -> Invalid:
    return Invalid([Problem(pointer, code.value, message)])


# ---- JSON -----------------------------------------------------------------------------------------------------


class _Repeated(dict[str, Any]):
    """An object that had a key twice; its place is found after parsing."""

    keys_twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    seen: set[str] = set()
    twice = tuple(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    repeated = _Repeated(result)
    repeated.keys_twice = twice
    return repeated


def _json_error(text: str) -> Invalid | None:
    try:
        _json(text)
    except Invalid as error:
        return error
    return None


def _json(text: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _refusal(
            ProblemCode.BAD_SYNTAX, f"The JSON can't be read: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise _refusal(ProblemCode.NESTED_TOO_DEEP, "The JSON is nested too deeply.") from None
    except ValueError:
        raise _refusal(ProblemCode.NOT_JSON, "The JSON has a number of more than 4,300 digits.") from None
    return value


# ---- YAML -----------------------------------------------------------------------------------------------------

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o([0-7]+)")
_HEX = re.compile(r"0x([0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TAG = "tag:yaml.org,2002:"
_MERGE = object()
_NO_KEY: Any = object()


@dataclass(slots=True)
class _Open:
    """A mapping or sequence that is being read. ``size`` counts values with every alias written out."""

    value: dict[str, Any] | list[Any]
    pointer: str
    anchor: str | None
    key: Any = _NO_KEY
    merges: list[Any] = field(default_factory=list)
    size: int = 1


def _scalar(text: str, line: int) -> Any:
    """A plain scalar by the core schema of YAML 1.2."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text[0] in "0123456789+-.":
        if len(text) > 400 and _FLOAT.fullmatch(text):
            raise _refusal(ProblemCode.NOT_JSON, f"The number in line {line} is too long.")
        if _INT.fullmatch(text):
            return int(text)
        if found := _OCTAL.fullmatch(text):
            return int(found[1], 8)
        if found := _HEX.fullmatch(text):
            return int(found[1], 16)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _SPECIAL_FLOAT.fullmatch(text):
            return float(text.lower().replace(".", ""))
    return text


def yaml_scalar(text: str) -> Any:
    """What a text that stands in YAML without quotes is read as."""
    try:
        return _scalar(text, 0)
    except Invalid:
        return None


def _yaml(text: str) -> Any:
    try:
        return _YamlReader().read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not YAML"
        raise _refusal(ProblemCode.BAD_SYNTAX, f"The YAML can't be read: {what}{place}.") from None
    except (RecursionError, UnicodeEncodeError):
        raise _refusal(
            ProblemCode.BAD_SYNTAX, "The YAML can't be read: it is nested too deeply or not Unicode."
        ) from None


class _YamlReader:
    """One reading of one text; the value grows on a stack of open collections."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.root: Any = None
        self.documents = 0

    def read(self, text: str) -> Any:
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else 0
            match event:
                case yaml.DocumentStartEvent():
                    self.documents += 1
                    if self.documents > 1:
                        raise _refusal(ProblemCode.BAD_SYNTAX, f"A second document starts in line {line}; give one.")
                case yaml.ScalarEvent():
                    self.place(self.scalar(event, line), 1, event.anchor, line)
                case yaml.AliasEvent():
                    if event.anchor not in self.anchors:
                        message = f"*{event.anchor} in line {line} names no finished anchor."
                        raise _refusal(ProblemCode.BAD_SYNTAX, message, self.pointer())
                    self.place(*self.anchors[event.anchor], None, line)
                case yaml.MappingStartEvent():
                    self.start({}, event, line)
                case yaml.SequenceStartEvent():
                    self.start([], event, line)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self.end(line)
                case _:
                    pass
        return self.root

    def pointer(self) -> str:
        """Where the next value goes."""
        if not self.open:
            return ""
        top = self.open[-1]
        if isinstance(top.value, list):
            return f"{top.pointer}/{len(top.value)}"
        return top.pointer if top.key is _NO_KEY or top.key is _MERGE else f"{top.pointer}/{pointer_token(top.key)}"

    def at_key(self) -> bool:
        """Whether the next value is the key of a mapping."""
        return bool(self.open) and isinstance(self.open[-1].value, dict) and self.open[-1].key is _NO_KEY

    def scalar(self, event: Any, line: int) -> Any:
        tag = event.tag
        if tag in (None, "!") or event.implicit[0] or event.implicit[1]:
            if event.implicit[0]:
                return _MERGE if event.value == "<<" and self.at_key() else _scalar(event.value, line)
            return event.value
        match tag.removeprefix(_TAG):
            case "str":
                return event.value
            case "null" | "bool" | "int" | "float":
                return _scalar(event.value, line)
            case _:
                raise _refusal(ProblemCode.NOT_JSON, f"The tag {tag!r} in line {line} is not for JSON.", self.pointer())

    def start(self, value: dict[str, Any] | list[Any], event: Any, line: int) -> None:
        if event.tag not in (None, "!", f"{_TAG}map", f"{_TAG}seq"):
            message = f"The tag {event.tag!r} in line {line} is not for JSON."
            raise _refusal(ProblemCode.NOT_JSON, message, self.pointer())
        if self.at_key():
            raise _refusal(ProblemCode.NOT_JSON, f"The key in line {line} is not text.", self.pointer())
        if len(self.open) >= MAX_TEXT_DEPTH:
            message = f"Line {line} is nested deeper than {MAX_TEXT_DEPTH}."
            raise _refusal(ProblemCode.NESTED_TOO_DEEP, message, self.pointer())
        self.open.append(_Open(value, self.pointer(), event.anchor))

    def end(self, line: int) -> None:
        done = self.open.pop()
        if isinstance(done.value, dict):
            for merge in done.merges:
                for key, item in merge.items():
                    done.value.setdefault(key, item)
        self.place(done.value, done.size, done.anchor, line)

    def place(self, value: Any, size: int, anchor: str | None, line: int) -> None:
        if anchor is not None:
            self.anchors[anchor] = (value, size)
        if not self.open:
            self.root = value
            return
        top = self.open[-1]
        top.size += size
        if top.size > MAX_VALUES:
            message = f"With its aliases written out the document has more than {MAX_VALUES:,} values."
            raise _refusal(ProblemCode.TOO_LARGE, message, self.pointer())
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is _NO_KEY:
            top.key = self.key(value, top, line)
        elif top.key is _MERGE:
            maps = value if isinstance(value, list) else [value]
            if not all(isinstance(item, dict) for item in maps):
                raise _refusal(ProblemCode.BAD_SYNTAX, f"'<<' in line {line} needs an object.", top.pointer)
            top.merges.extend(maps)
            top.key = _NO_KEY
        else:
            top.value[top.key] = value
            top.key = _NO_KEY

    def key(self, key: Any, top: _Open, line: int) -> Any:
        if key is _MERGE:
            return key
        if isinstance(key, bool) or key is None:
            key = json.dumps(key)
        elif isinstance(key, int | float):
            key = str(key)
        elif not isinstance(key, str):
            raise _refusal(ProblemCode.NOT_JSON, f"The key in line {line} is not text.", top.pointer)
        if key in top.value:
            message = f"The key {key!r} is there twice (again in line {line}); remove one."
            raise _refusal(ProblemCode.DUPLICATE_KEY, message, f"{top.pointer}/{pointer_token(key)}")
        return key


# ---- values ---------------------------------------------------------------------------------------------------


def check_values(value: Any, problems: Problems) -> None:
    """Everything in a Python value that isn't JSON as every database and client takes it.

    NaN and infinity, NUL and lone surrogates in text, integers beyond 64 bits, keys that aren't text,
    repeated keys, other Python types, and nesting deeper than ``MAX_TEXT_DEPTH``.
    """
    stack: list[tuple[str, int, Any]] = [("", 1, value)]
    budget = MAX_VALUES
    while stack:
        pointer, depth, current = stack.pop()
        budget -= 1
        if budget < 0:
            problems.add("", ProblemCode.TOO_LARGE, f"The document has more than {MAX_VALUES:,} values.")
            return
        match current:
            case None | bool():
                pass
            case str():
                _check_text(current, pointer, problems)
            case int():
                if not -(2**63) <= current < 2**63:
                    problems.add(pointer, ProblemCode.NOT_JSON, "An integer has at most 64 bits; write it as text.")
            case float():
                if current != current or current in (float("inf"), float("-inf")):
                    problems.add(pointer, ProblemCode.NOT_JSON, "NaN and infinity are not JSON; write null or text.")
            case dict() | list() if depth > MAX_TEXT_DEPTH:
                problems.add(pointer, ProblemCode.NESTED_TOO_DEEP, f"This is nested deeper than {MAX_TEXT_DEPTH}.")
            case list():
                stack.extend((f"{pointer}/{number}", depth + 1, item) for number, item in enumerate(current))
            case dict():
                for key, item in current.items():
                    at = f"{pointer}/{pointer_token(key)}"
                    if isinstance(key, str):
                        _check_text(key, at, problems)
                    else:
                        problems.add(pointer, ProblemCode.NOT_JSON, f"The key {key!r} is not text.")
                    stack.append((at, depth + 1, item))
                if isinstance(current, _Repeated):
                    for key in current.keys_twice:
                        at = f"{pointer}/{pointer_token(key)}"
                        problems.add(at, ProblemCode.DUPLICATE_KEY, f"The key {key!r} is there twice; remove one.")
            case _:
                problems.add(pointer, ProblemCode.NOT_JSON, f"A {type(current).__name__} is not a JSON value.")


def _check_text(text: str, pointer: str, problems: Problems) -> None:
    if "\x00" in text:
        problems.add(pointer, ProblemCode.NOT_JSON, "The text holds a NUL character, which no database stores.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            problems.add(pointer, ProblemCode.NOT_JSON, "The text holds half of a surrogate pair; it is not Unicode.")
