"""Is what a handler returned JSON, and small enough? The one check that every output passes."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from engine.artifacts import ArtifactStore
from flow.errors import Category, Failure
from flow.events import Artifact

MAX_INLINE = 64 * 1024  # bytes of JSON that an event carries itself
MAX_OUTPUT = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_BITS = 14_000  # of an integer; Python itself refuses to write much larger ones as text

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class OutputRefused(Exception):
    """The output can't be kept; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def encoded(output: Any) -> tuple[Any, bytes]:
    """The output as plain JSON values of its own (nothing shared with the handler), and its JSON text.

    Raises OutputRefused: OUTPUT_NOT_JSON with a pointer, or OUTPUT_TOO_LARGE.

    What comes back from encoding and decoding must equal what went in: NaN becomes null, a number
    as a key becomes text, a date becomes text, and so each is found by one comparison. Only where
    that fails does the slow walk look for the place.
    """
    try:
        text = _encode(output)
        plain = _decode(text)
        same = plain == output
        if same and b"\\u0000" not in text and not _deeper(plain, text):
            if len(text) > MAX_OUTPUT:
                raise OutputRefused(_too_large(len(text)))
            return plain, text
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    problem = _problem(output)
    if problem is None:
        # equal to JSON, though not of JSON's own types (a tuple compares unequal, a NUL in an escaped text is harmless)
        plain, text = _decode(text := _encode(output)), text
        if len(text) > MAX_OUTPUT:
            raise OutputRefused(_too_large(len(text)))
        return plain, text
    pointer, reason = problem
    raise OutputRefused(
        Failure(
            "OUTPUT_NOT_JSON",
            Category.VALIDATION,
            f"The handler's output is not JSON at {pointer or 'the top'}: {reason}",
            details={"pointer": pointer},
        )
    )


def stored(output: Any, artifacts: ArtifactStore) -> tuple[Any, Artifact | None]:
    """The output, or None and the artifact if it is large. Raises OutputRefused. Writes a file: not on the loop."""
    plain, text = encoded(output)
    if len(text) <= MAX_INLINE:
        return plain, None
    return None, artifacts.put_bytes(text, "application/json")


def _too_large(size: int) -> Failure:
    return Failure(
        "OUTPUT_TOO_LARGE",
        Category.VALIDATION,
        f"The output has {size:,} bytes of JSON and a node gives at most {MAX_OUTPUT:,}: "
        "write it to a file or an artifact and give its path.",
        details={"size": size, "limit": MAX_OUTPUT},
    )


def _deeper(plain: Any, text: bytes) -> bool:
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    level = [plain]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _problem(value: Any) -> tuple[str, str] | None:
    """The first place that is not JSON: its pointer, and the reason. None if there is no such place."""
    # (value, pointer, the containers it lies in): a stack, because a cycle or a deep list must not exhaust ours
    pending: list[tuple[Any, str, frozenset[int]]] = [(value, "", frozenset())]
    while pending:
        current, pointer, inside = pending.pop()
        if current is None or current is True or current is False:
            continue
        match current:
            case str():
                if "\0" in current:
                    return pointer, "a text contains the character NUL."
                try:
                    current.encode()
                except UnicodeEncodeError:
                    return pointer, "a text contains a lone surrogate."
            case int() if type(current) is int:
                if current.bit_length() > MAX_BITS:
                    return pointer, "a number has thousands of digits."
            case float() if type(current) is float:
                if not math.isfinite(current):
                    return pointer, f"{current} is no JSON number."
            case dict() | list() if type(current) in (dict, list):
                if id(current) in inside:
                    return pointer, "it contains itself."
                if len(inside) >= MAX_DEPTH:
                    return pointer, f"it is nested deeper than {MAX_DEPTH}."
                within = inside | {id(current)}
                if isinstance(current, list):
                    pending += [(item, f"{pointer}/{index}", within) for index, item in enumerate(current)][::-1]
                    continue
                for key, item in reversed(current.items()):
                    if type(key) is not str:
                        return pointer, f"a key is a {type(key).__name__}, not text."
                    escaped = key.replace("~", "~0").replace("/", "~1").encode("utf-8", "replace").decode()
                    pending.append((item, f"{pointer}/{escaped}", within))
                    pending.append((key, f"{pointer}/{escaped}", within))
            case _:
                return pointer, f"{type(current).__module__}.{type(current).__qualname__} is no JSON value."
    return None
