"""What a client asked for, read strictly: everything that is not a GraphQL request is refused by name."""

from __future__ import annotations

from typing import Any

import msgspec

from graph.errors import RequestError

MAX_NESTING = 100


class Ask(msgspec.Struct, frozen=True):
    """One GraphQL request, as HTTP bodies, query strings and ``subscribe`` messages carry it."""

    query: str
    operation_name: str | None = None
    variables: dict[str, Any] = {}


def decoded(raw: bytes | str) -> object:
    """The JSON value in ``raw``.

    Stricter than most: NaN, Infinity, invalid UTF-8, lone surrogates, NUL and nesting deeper
    than 100 are refused, because no database would take them.
    Raises RequestError 400 BAD_JSON.
    """
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise bad_json(f"nested deeper than {MAX_NESTING} levels") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise bad_json(str(error)) from None
    # Only then can there be a NUL in it, and only with this many brackets can it be nested too deeply.
    if isinstance(raw, str):
        suspicious = "\\u0000" in raw or raw.count("{") + raw.count("[") > MAX_NESTING
    else:
        suspicious = b"\\u0000" in raw or raw.count(b"{") + raw.count(b"[") > MAX_NESTING
    if suspicious:
        _check(value)
    return value


def bad_json(reason: str) -> RequestError:
    """The refusal of what is not JSON."""
    return RequestError(400, "BAD_JSON", f"The request is not valid JSON: {reason}.")


def bad_request(message: str) -> RequestError:
    """The refusal of JSON that is not a GraphQL request."""
    return RequestError(400, "BAD_REQUEST", message)


def ask(body: object) -> Ask:
    """The request in a decoded body. Raises RequestError 400 BAD_REQUEST, naming the member at fault."""
    if isinstance(body, list):
        raise RequestError(400, "BATCHING_REFUSED", "Batched requests are not supported: send one request at a time.")
    if not isinstance(body, dict):
        raise bad_request('A GraphQL request is a JSON object, such as {"query": "{ __typename }"}.')
    query = body.get("query")
    if not isinstance(query, str):
        raise bad_request('"query" must be a string that holds a GraphQL document.')
    name = body.get("operationName")
    if not isinstance(name, str | None):
        raise bad_request('"operationName" must be a string or null.')
    variables = body.get("variables")
    if not isinstance(variables, dict | None):
        raise bad_request('"variables" must be an object or null.')
    if not isinstance(body.get("extensions"), dict | None):
        raise bad_request('"extensions" must be an object or null.')
    return Ask(query, name or None, variables or {})


def _check(value: object) -> None:
    waiting: list[tuple[object, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str) and "\0" in item:
            raise bad_json("a string holds the character NUL (\\u0000)")
        if isinstance(item, dict | list):
            if depth > MAX_NESTING:
                raise bad_json(f"nested deeper than {MAX_NESTING} levels")
            inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            waiting.extend((each, depth + 1) for each in inner)
