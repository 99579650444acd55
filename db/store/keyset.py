"""Pages by key: a page is found by the *key* of its neighbour (``where (created_at, id) < (…)``), never by an offset.

So it costs the same at any depth, and nothing is shown twice when rows come in between. What may be filtered and
sorted is declared once per kind in a ``Listing`` (``db.store.lists``); the filters are data (``Compare``, ``All``,
``Either``, ``Not``), so that a caller can only ask what a listing offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
)

from db.base import Instant

Op: TypeAlias = Literal["eq", "in", "contains", "gte", "lte"]
Record: TypeAlias = Row[Any]
Rows: TypeAlias = Sequence[Record]


class Compare(msgspec.Struct, frozen=True):
    """One field against a value: ``in`` takes a tuple, ``contains`` looks inside a text regardless of case."""

    field: str
    op: Op
    value: Any


class All(msgspec.Struct, frozen=True):
    """True where every part is."""

    parts: tuple[Filter, ...] = ()


class Either(msgspec.Struct, frozen=True):
    """True where at least one part is."""

    parts: tuple[Filter, ...] = ()


class Not(msgspec.Struct, frozen=True):
    """True where the part is not (also where it is unknown)."""

    part: Filter


Filter: TypeAlias = Compare | All | Either | Not

#: Everything.
EVERY = All()

Key: TypeAlias = tuple[Any, ...]
Special: TypeAlias = Callable[[str, Compare], ColumnElement[bool]]


class Listing(msgspec.Struct, frozen=True):
    """One kind of thing that is listed: its columns, what may be filtered, and the orders it has an index for.

    The last column of each order is unique within ``parent`` (or the project), so that every row has one place.
    ``shared``: the rows belong to no project; every project sees them all.
    """

    columns: tuple[Any, ...]
    fields: Mapping[str, Any]
    orders: Mapping[str, tuple[Any, ...]]
    project: Any = None
    parent: Any = None
    shared: bool = False


class Slice(msgspec.Struct, frozen=True):
    """Which part of a list: at most ``limit`` rows after the one key and before the other.

    ``backward`` takes them from the end; the rows come in list order either way.
    """

    order: str
    descending: bool = False
    limit: int = 20
    after: Key | None = None
    before: Key | None = None
    backward: bool = False


class Page(msgspec.Struct, frozen=True):
    """The rows, and whether there are more beyond the end that was read towards."""

    rows: Rows
    more: bool


def page(connection: Connection, listing: Listing, project_id: str, where: Filter, part: Slice) -> Page:
    """One page of the project's rows that match."""
    order, reverse = listing.orders[part.order], part.descending != part.backward
    query = (
        select(*listing.columns)
        .where(_seen(listing, project_id), condition(connection, listing, where), *_bounds(listing, part))
        .order_by(*(column.desc() if reverse else column.asc() for column in order))
        .limit(part.limit + 1)
    )
    return _page(connection.execute(query).all(), part)


def count(connection: Connection, listing: Listing, project_id: str, where: Filter) -> int:
    """How many of the project's rows match."""
    query = select(func.count()).where(_seen(listing, project_id), condition(connection, listing, where))
    return int(connection.execute(query).scalar_one())


def pages(
    connection: Connection, listing: Listing, parents: Sequence[str], where: Filter, part: Slice
) -> dict[str, Page]:
    """One page for each of many parents, in one statement."""
    if len(parents) == 1:
        query = _nested(connection, listing, parents, where, part).limit(part.limit + 1)
        return {parents[0]: _page(connection.execute(query).all(), part)}
    order, reverse = listing.orders[part.order], part.descending != part.backward
    place = func.row_number().over(
        partition_by=listing.parent, order_by=[column.desc() if reverse else column.asc() for column in order]
    )
    numbered = _nested(connection, listing, parents, where, part).order_by(None).add_columns(place.label("place"))
    inner = numbered.subquery()
    query = select(inner).where(inner.c.place <= part.limit + 1).order_by(inner.c.place)
    found: dict[str, list[Record]] = {parent: [] for parent in parents}
    parent_at = [column.key for column in listing.columns].index(listing.parent.key)
    for row in connection.execute(query):
        found[row[parent_at]].append(row)
    return {parent: _page(rows, part) for parent, rows in found.items()}


def counts(connection: Connection, listing: Listing, parents: Sequence[str], where: Filter) -> dict[str, int]:
    """How many rows each of many parents has that match."""
    query = (
        select(listing.parent, func.count())
        .where(listing.parent.in_(parents), condition(connection, listing, where))
        .group_by(listing.parent)
    )
    return dict.fromkeys(parents, 0) | {parent: int(number) for parent, number in connection.execute(query)}


def key(listing: Listing, order: str, row: Record) -> Key:
    """The row's place in that order."""
    return tuple(getattr(row, column.key) for column in listing.orders[order])


def key_types(listing: Listing, order: str) -> tuple[type[datetime] | type[int] | type[str], ...]:
    """What each part of a key in that order is."""
    return tuple(
        datetime if isinstance(column.type, Instant) else int if isinstance(column.type, Integer) else str
        for column in listing.orders[order]
    )


def condition(connection: Connection, listing: Listing, where: Filter) -> ColumnElement[bool]:
    """The filter as SQL. Raises KeyError for a field that the listing does not offer."""
    match where:
        case All(parts):
            return and_(true(), *(condition(connection, listing, part) for part in parts))
        case Either(parts):
            return or_(false(), *(condition(connection, listing, part) for part in parts))
        case Not(part):
            return not_(func.coalesce(condition(connection, listing, part), false()))
        case Compare(field, op, value):
            column = listing.fields[field]
            if not isinstance(column, ColumnElement) and not hasattr(column, "property"):
                special: Special = column
                return special(connection.dialect.name, where)
            match op:
                case "eq":
                    return column.is_(None) if value is None else column == value  # type: ignore[no-any-return]
                case "in":
                    return column.in_(value)  # type: ignore[no-any-return]
                case "contains":
                    return column.icontains(value, autoescape=True)  # type: ignore[no-any-return]
                case "gte":
                    return column >= value  # type: ignore[no-any-return]
                case "lte":
                    return column <= value  # type: ignore[no-any-return]


def _seen(listing: Listing, project_id: str) -> ColumnElement[bool]:
    """True for every row of a shared listing: said of its first column, so that a count knows what it counts."""
    if listing.shared:
        return listing.columns[0].is_not(None)  # type: ignore[no-any-return]
    return listing.project == project_id  # type: ignore[no-any-return]


def _nested(
    connection: Connection, listing: Listing, parents: Sequence[str], where: Filter, part: Slice
) -> Select[Any]:
    reverse = part.descending != part.backward
    return (
        select(*listing.columns)
        .where(listing.parent.in_(parents), condition(connection, listing, where), *_bounds(listing, part))
        .order_by(*(column.desc() if reverse else column.asc() for column in listing.orders[part.order]))
    )


def _page(rows: Rows, part: Slice) -> Page:
    more = len(rows) > part.limit
    kept = rows[: part.limit]
    return Page(kept[::-1] if part.backward else kept, more)


def _bounds(listing: Listing, part: Slice) -> Iterable[ColumnElement[bool]]:
    columns = listing.orders[part.order]
    for bound, later in ((part.after, True), (part.before, False)):
        if bound is None:
            continue
        place = tuple_(*columns)
        given = tuple_(*(literal(value, column.type) for value, column in zip(bound, columns, strict=True)))
        yield place > given if later != part.descending else place < given
