"""Nodes that read and write tables."""

from __future__ import annotations

import csv
import io
import re
from typing import Annotated, Any, Literal

import msgspec

from engine.files import whole
from engine.nodes.contract import Context, NodeError, node
from flow.errors import Category

Describe = msgspec.Meta

MAX_BYTES = 64 * 1024 * 1024
MAX_ROWS = 100_000
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?\Z", re.ASCII)


class ReadCsv(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str | None, Describe(description="The file to read.")] = None
    text: Annotated[str | None, Describe(description="The table itself, instead of a file.")] = None
    delimiter: Annotated[str, Describe(description="What separates columns.", min_length=1, max_length=1)] = ","
    header: Annotated[bool, Describe(description="Whether the first row names the columns.")] = True
    types: Annotated[
        Literal["auto", "text"],
        Describe(description="`auto`: a column of numbers gives numbers, an empty cell null; `text`: all as written."),
    ] = "auto"


class Table(msgspec.Struct, frozen=True):
    columns: list[str]
    rows: list[dict[str, Any]]
    count: int


@node("data/csv", title="Read a table", icon="table", parameters=ReadCsv, output=Table)
def read_csv(ctx: Context[ReadCsv]) -> dict[str, Any]:
    """Reads a CSV file (UTF-8) or text into rows: at most 64 MiB and 100,000 rows.

    The output has `columns`, `rows` (objects by column) and `count`. Without a header the columns
    are `column1`, `column2`, …
    """
    asked = ctx.parameters
    if (asked.path is None) == (asked.text is None):
        raise NodeError("Give either 'path' or 'text'.", category=Category.VALIDATION, code="PARAMETERS_INVALID")
    rows = _rows(_read(ctx), asked.delimiter)
    names = (
        _names(rows.pop(0))
        if asked.header and rows
        else [f"column{n + 1}" for n in range(len(rows[0] if rows else ()))]
    )
    for number, row in enumerate(rows, start=2 if asked.header else 1):
        if len(row) != len(names):
            raise NodeError(
                f"Row {number} has {len(row)} cells and the table {len(names)} columns.",
                category=Category.VALIDATION,
                code="BAD_TABLE",
                details={"row": number},
            )
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else []
    typed = [_typed(column) if asked.types == "auto" else column for column in columns]
    return {
        "columns": names,
        "rows": [dict(zip(names, row, strict=True)) for row in zip(*typed, strict=True)],
        "count": len(rows),
    }


def _read(ctx: Context[ReadCsv]) -> str:
    if ctx.parameters.text is not None:
        return ctx.parameters.text
    assert ctx.parameters.path is not None
    path = ctx.reading(ctx.parameters.path)
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise NodeError(
            f"{path.name!r} is not a file of at most {MAX_BYTES // 2**20} MiB.",
            category=Category.VALIDATION,
            code="BAD_TABLE",
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise NodeError(
            f"{path.name!r} is not UTF-8 (byte {problem.start + 1}).", category=Category.VALIDATION, code="BAD_TABLE"
        ) from None


def _rows(text: str, delimiter: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) > MAX_ROWS + 1:
                raise NodeError(
                    f"The table has more than {MAX_ROWS:,} rows.", category=Category.VALIDATION, code="BAD_TABLE"
                )
    except csv.Error as problem:
        raise NodeError(
            f"Line {reader.line_num} is not CSV: {problem}", category=Category.VALIDATION, code="BAD_TABLE"
        ) from None
    return rows


def _names(header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    if "" in names or len(set(names)) != len(names):
        raise NodeError("The header has an empty or repeated name.", category=Category.VALIDATION, code="BAD_TABLE")
    return names


def _typed(column: list[str]) -> list[Any]:
    """A column of numbers as numbers; any other as the texts that they are. Empty cells are null."""
    cells = [cell.strip() for cell in column]
    filled = [cell for cell in cells if cell]
    if filled and all(_INTEGER.match(cell) for cell in filled):
        return [int(cell) if cell else None for cell in cells]
    if filled and all(_NUMBER.match(cell) and abs(float(cell)) < 1e300 for cell in filled):
        return [float(cell) if cell else None for cell in cells]
    return [cell or None for cell in column]


class WriteCsv(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[str, Describe(description="The file to write; it is replaced if it exists.", min_length=1)]
    rows: Annotated[list[dict[str, Any]], Describe(description="The rows, objects by column.")]
    columns: Annotated[
        list[str] | None, Describe(description="Which columns, in which order; by default those of the rows.")
    ] = None
    delimiter: Annotated[str, Describe(description="What separates columns.", min_length=1, max_length=1)] = ","


class Written(msgspec.Struct, frozen=True):
    location: str
    count: int
    size: int


@node("data/csv-write", title="Write a table", icon="table", parameters=WriteCsv, output=Written)
def write_csv(ctx: Context[WriteCsv]) -> dict[str, Any]:
    """Writes rows as a CSV file (UTF-8, with a header). Null is an empty cell; objects and lists become JSON."""
    asked = ctx.parameters
    target = ctx.writing(asked.path)
    columns = asked.columns or list(dict.fromkeys(name for row in asked.rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=asked.delimiter, lineterminator="\n")
    writer.writerow(columns)
    for row in asked.rows:
        writer.writerow([_cell(row.get(name)) for name in columns])
    content = text.getvalue().encode()
    with whole(target) as file:
        file.write(content)
    return {"location": str(target), "count": len(asked.rows), "size": len(content)}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
