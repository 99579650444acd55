"""Connections, cursors and filters: how a list is asked for and answered, the same for every kind of thing.

A cursor is opaque to clients: it holds the order and the key of a row (see ``db.store.lists``). ``where`` inputs
become the filters of the store by one walk over their fields, so that an input type is all that a list needs.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Generic, TypeVar, cast

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset
from db.store.keyset import Listing, Slice
from flow.errors import WorkflowError
from graph.objects import derived

T = TypeVar("T")

DEFAULT_PAGE = 20
LARGEST_PAGE = 100
#: How deep a filter may be nested, how many comparisons it may hold, how many values an ``in``.
FILTER_DEPTH, FILTER_SIZE, FILTER_VALUES = 8, 100, 500

First = Annotated[
    int | None, argument(description="At most this many from the beginning (or after `after`): 1 to 100.")
]
Last = Annotated[int | None, argument(description="At most this many from the end (or before `before`): 1 to 100.")]
After = Annotated[str | None, argument(description="Only what comes after this cursor of an earlier page.")]
Before = Annotated[str | None, argument(description="Only what comes before this cursor of an earlier page.")]


@strawberry.type(description="Where a page stands in its list.")
class PageInfo:
    """As Relay has it."""

    has_next_page: bool = field(description="True when there is more after this page.")
    has_previous_page: bool = field(description="True when there is more before this page.")
    start_cursor: str | None = field(description="The first row's cursor: ask for `before` it to page backwards.")
    end_cursor: str | None = field(description="The last row's cursor: ask for `after` it to go on.")


@strawberry.type(description="One row of a page.")
class Edge(Generic[T]):
    """A row and its place."""

    cursor: str = field(description="The row's place in this order: opaque, stable while rows are added.")
    node: T = field(description="The row itself.")


@strawberry.type(description="A page of a list.")
class Connection(Generic[T]):
    """Rows in order; ``count`` is asked only when ``totalCount`` is selected."""

    edges: list[Edge[T]] = field(description="The rows with their cursors.")
    nodes: list[T] = field(description="The rows alone.")
    page_info: PageInfo = field(description="Where this page stands in the list.")
    count: strawberry.Private[Callable[[], Awaitable[int]]]

    @derived("How many rows match in all. Counted only when you ask for it.")
    async def total_count(self) -> int:
        """All rows that match."""
        return await self.count()


def refuse(code: str, message: str, *path: str) -> WorkflowError:
    """A refusal of an argument, for a top-level error with that code."""
    return WorkflowError(message, path=path, code=code)


def part(
    listing: Listing,
    order: str,
    descending: bool,
    first: int | None,
    after: str | None,
    last: int | None = None,
    before: str | None = None,
) -> Slice:
    """The slice that these arguments ask for. Raises WorkflowError BAD_PAGE or BAD_CURSOR."""
    if first is not None and last is not None:
        raise refuse("BAD_PAGE", "Give `first` or `last`, not both.", "last")
    for name, size in (("first", first), ("last", last)):
        if size is not None and not 1 <= size <= LARGEST_PAGE:
            raise refuse("BAD_PAGE", f"`{name}` must be between 1 and {LARGEST_PAGE}, not {size}.", name)
    return Slice(
        order,
        descending,
        first or last or DEFAULT_PAGE,
        None if after is None else _read(listing, order, after, "after"),
        None if before is None else _read(listing, order, before, "before"),
        last is not None,
    )


def connection(
    listing: Listing,
    part: Slice,
    page: keyset.Page,
    make: Callable[[keyset.Record], T],
    count: Callable[[], Awaitable[int]],
) -> Connection[T]:
    """The page as the schema shows it."""
    nodes = [make(row) for row in page.rows]
    edges = [
        Edge(cursor=_write(listing, part.order, row), node=node) for row, node in zip(page.rows, nodes, strict=True)
    ]
    return Connection(
        edges=edges,
        nodes=nodes,
        page_info=PageInfo(
            has_next_page=page.more if not part.backward else part.before is not None,
            has_previous_page=page.more if part.backward else part.after is not None,
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        ),
        count=count,
    )


def _write(listing: Listing, order: str, row: keyset.Record) -> str:
    return (
        base64.urlsafe_b64encode(msgspec.json.encode([order, *keyset.key(listing, order, row)])).rstrip(b"=").decode()
    )


def _read(listing: Listing, order: str, cursor: str, argument: str) -> keyset.Key:
    kinds = keyset.key_types(listing, order)
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        kept = msgspec.json.decode(raw, type=list[Any])
        if kept[:1] != [order] or len(kept) != len(kinds) + 1:
            raise ValueError("of another list")
        key = tuple(
            msgspec.convert(value, type=_KINDS[kind], strict=True) for value, kind in zip(kept[1:], kinds, strict=True)
        )
    except (binascii.Error, UnicodeError, ValueError, msgspec.MsgspecError):
        raise refuse(
            "BAD_CURSOR",
            f"`{argument}` is not a cursor of this list in this order; take one from `pageInfo`.",
            argument,
        ) from None
    return key


#: What a key's parts may be, so that whatever is in a forged cursor can be compared by the database.
_KINDS: dict[type, Any] = {
    datetime: Annotated[datetime, msgspec.Meta(tz=True)],
    int: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    str: Annotated[str, msgspec.Meta(pattern="^[^\\x00]*$")],
}


# ---- filters --------------------------------------------------------------------------------------------------


@strawberry.input(description="Compares an id.")
class IdFilter:
    """``eq`` or ``in``."""

    eq: strawberry.ID | None = field(default=UNSET, description="Is exactly this.")
    in_: list[strawberry.ID] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Compares a text.")
class StringFilter:
    """``eq``, ``in`` or ``contains``."""

    eq: str | None = field(default=UNSET, description="Is exactly this; null: is empty.")
    in_: list[str] | None = field(default=UNSET, name="in", description="Is one of these.")
    contains: str | None = field(default=UNSET, description="Contains this, in capitals or not.")


@strawberry.input(description="Compares a number. Several comparators together must all hold.")
class IntFilter:
    """``eq``, ``in``, ``gte`` or ``lte``."""

    eq: int | None = field(default=UNSET, description="Is exactly this.")
    in_: list[int] | None = field(default=UNSET, name="in", description="Is one of these.")
    gte: int | None = field(default=UNSET, description="Is this or more.")
    lte: int | None = field(default=UNSET, description="Is this or less.")


@strawberry.input(description="Compares an instant. Several comparators together must all hold.")
class DateTimeFilter:
    """``eq``, ``gte`` or ``lte``."""

    eq: datetime | None = field(default=UNSET, description="Is exactly then; null: has not happened.")
    gte: datetime | None = field(default=UNSET, description="Is then or later.")
    lte: datetime | None = field(default=UNSET, description="Is then or earlier.")


_OPS: dict[str, keyset.Op] = {"eq": "eq", "in_": "in", "contains": "contains", "gte": "gte", "lte": "lte"}


def where(given: object | None) -> keyset.Filter:
    """The filter that a ``where`` input asks for. Raises WorkflowError BAD_FILTER if it is too large."""
    if given is None:
        return keyset.EVERY
    budget = [FILTER_SIZE]
    return _group(given, budget, 0)


def _group(given: object, budget: list[int], depth: int) -> keyset.Filter:
    if depth > FILTER_DEPTH:
        raise refuse("BAD_FILTER", f"A filter can be nested {FILTER_DEPTH} levels deep at most.", "where")
    parts: list[keyset.Filter] = []
    for each in dataclasses.fields(cast(Any, given)):
        value = getattr(given, each.name)
        if value is None or value is UNSET:
            continue
        match each.name:
            case "and_":
                parts.append(keyset.All(tuple(_group(inner, budget, depth + 1) for inner in value)))
            case "or_":
                parts.append(keyset.Either(tuple(_group(inner, budget, depth + 1) for inner in value)))
            case "not_":
                parts.append(keyset.Not(_group(value, budget, depth + 1)))
            case name:
                parts.extend(_comparisons(name, value, budget))
    return parts[0] if len(parts) == 1 else keyset.All(tuple(parts))


def _comparisons(name: str, given: object, budget: list[int]) -> list[keyset.Compare]:
    found = []
    for each in dataclasses.fields(cast(Any, given)):
        value = getattr(given, each.name)
        if each.name not in _OPS or value is UNSET or (value is None and each.name != "eq"):
            continue
        budget[0] -= 1
        if budget[0] < 0:
            raise refuse("BAD_FILTER", f"A filter can hold {FILTER_SIZE} comparisons at most.", "where")
        if isinstance(value, list):
            if len(value) > FILTER_VALUES:
                raise refuse("BAD_FILTER", f"`in` takes {FILTER_VALUES} values at most.", "where", name, "in")
            value = tuple(_plain(item) for item in value)
        found.append(keyset.Compare(name, _OPS[each.name], _plain(value)))
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
