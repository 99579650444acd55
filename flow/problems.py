"""What can be wrong with a document, and how it is gathered: every problem, not the first."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum

from flow.errors import Problem


class ProblemCode(StrEnum):
    """The stable code of each kind of problem."""

    # the text
    BAD_SYNTAX = "BAD_SYNTAX"
    DUPLICATE_KEY = "DUPLICATE_KEY"
    NOT_JSON = "NOT_JSON"
    TOO_LARGE = "TOO_LARGE"
    NESTED_TOO_DEEP = "NESTED_TOO_DEEP"
    # the shape
    WRONG_TYPE = "WRONG_TYPE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    MISSING_KEY = "MISSING_KEY"
    UNKNOWN_VALUE = "UNKNOWN_VALUE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    MISSING_NAME = "MISSING_NAME"
    NO_TRIGGER = "NO_TRIGGER"
    NO_NODE = "NO_NODE"
    TOO_MANY_NODES = "TOO_MANY_NODES"
    BAD_ID = "BAD_ID"
    DUPLICATE_ID = "DUPLICATE_ID"
    UNKNOWN_JOIN = "UNKNOWN_JOIN"
    UNKNOWN_ERROR_CATEGORY = "UNKNOWN_ERROR_CATEGORY"
    BAD_DURATION = "BAD_DURATION"
    # what it refers to
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    UNKNOWN_TRIGGER_TYPE = "UNKNOWN_TRIGGER_TYPE"
    BAD_PARAMETERS = "BAD_PARAMETERS"
    BAD_CRON = "BAD_CRON"
    BAD_TIME_ZONE = "BAD_TIME_ZONE"
    BAD_INPUT_SCHEMA = "BAD_INPUT_SCHEMA"
    # the graph
    UNKNOWN_NODE = "UNKNOWN_NODE"
    DUPLICATE_EDGE = "DUPLICATE_EDGE"
    SELF_LOOP = "SELF_LOOP"
    CYCLE = "CYCLE"
    NO_ENTRY_NODE = "NO_ENTRY_NODE"
    UNREACHABLE_NODE = "UNREACHABLE_NODE"
    # expressions
    BAD_EXPRESSION = "BAD_EXPRESSION"
    BAD_MAPPING = "BAD_MAPPING"
    TEMPLATE_UNKNOWN_NODE = "TEMPLATE_UNKNOWN_NODE"
    TEMPLATE_LATER_NODE = "TEMPLATE_LATER_NODE"
    SECRETS_UNAVAILABLE = "SECRETS_UNAVAILABLE"
    # an instance's input
    BAD_INPUT = "BAD_INPUT"


#: A document can be wrong in as many places as it has; an answer is bounded.
MAX_PROBLEMS = 1_000


class Problems:
    """Gathers problems; ``sorted()`` gives them by pointer."""

    def __init__(self) -> None:
        self._found: set[Problem] = set()
        # A comparison takes 0.1 ms; a document of a hundred thousand unknown keys shall not take ten seconds.
        self._comparisons = 200

    def __len__(self) -> int:
        return len(self._found)

    def add(self, pointer: str, code: ProblemCode, message: str) -> None:
        self._found.add(Problem(pointer, code.value, message))

    def did_you_mean(self, word: str, known: Iterable[str]) -> str:
        """As the function of this name, but silent once many were asked for."""
        self._comparisons -= 1
        return did_you_mean(word, known) if self._comparisons >= 0 else ""

    def under(self, pointer: str) -> Problems:
        """The same, for what tells pointers that begin at this place."""
        return _Under(self, pointer)

    def sorted(self) -> list[Problem]:
        """At most ``MAX_PROBLEMS``, in the order of the places in the document (numbers as numbers)."""
        return sorted(self._found, key=_place)[:MAX_PROBLEMS]


class _Under(Problems):
    def __init__(self, outer: Problems, pointer: str) -> None:
        self._outer = outer
        self._pointer = pointer

    def __len__(self) -> int:
        return len(self._outer)

    def add(self, pointer: str, code: ProblemCode, message: str) -> None:
        self._outer.add(self._pointer + pointer, code, message)

    def did_you_mean(self, word: str, known: Iterable[str]) -> str:
        return self._outer.did_you_mean(word, known)

    def sorted(self) -> list[Problem]:
        return self._outer.sorted()


def _place(problem: Problem) -> tuple[list[tuple[int, str]], str, str]:
    tokens = [(int(token), "") if token.isdecimal() else (-1, token) for token in problem.pointer.split("/")]
    return tokens, problem.code, problem.message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known word (preceded by a space), or nothing."""
    candidates = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold()[:100], candidates, n=1, cutoff=0.6)
    return f" Did you mean {candidates[near[0]]!r}?" if near else ""


def listed(words: Iterable[str]) -> str:
    """``a, b or c`` for a sentence that says what may be written."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def shown(value: object, limit: int = 60) -> str:
    """A value for a sentence: its repr, shortened."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
