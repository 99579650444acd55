"""Databases as earlier revisions left them, with data in every table.

``0001.json`` and ``0002.json`` hold the rows of databases that the programs of these revisions wrote themselves: runs
that ended well and badly, one that was accepted and not begun, one whose worker was killed in its middle, retries and
waits that go on for hours. What later revisions add is written here by hand, against their own tables.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Boolean, Connection, DateTime, MetaData, Table, insert

__all__ = ["WRITTEN", "dump", "fill", "rows"]

#: Revisions whose own program has written its rows.
WRITTEN = sorted(file.stem for file in Path(__file__).parent.glob("*.json"))
AT = "2026-11-21T08:00:00.000000Z"
SERVER = "srv-01m7yyfc5rerg8a2c0w2bqycdq"
TASK = "task-01m7yyfc5rerg8a2c0w2bqycd"

LATER: dict[str, dict[str, list[dict[str, Any]]]] = {
    "0003": {
        "meta": [{"key": "note", "value": "kept"}],
        "workers": [
            {
                "id": "old:1:abcdef", "host": "old", "pid": 1, "version": "0.1.0", "labels": '["gpu"]', "gpus": 1,
                "slots": '{"async":10}', "running": "{}", "instances": 0, "draining": 0, "started_at": AT,
                "heartbeat_at": AT, "stopped_at": AT,
            }
        ],
    },
    "0004": {
        "servers": [
            {
                "id": SERVER, "project_id": "proj-default", "name": "old server", "url": "http://127.0.0.1:9/",
                "type": "HTTP", "enabled": 0, "batch_size": 4, "status": "OFFLINE", "failures": 3, "due_at": AT,
                "last_error": "gone", "change_seq": 1, "created_at": AT, "updated_at": AT,
            }
        ],
        "server_checks": [
            {"id": "chk-1", "server_id": SERVER, "at": AT, "outcome": "REFUSED", "message": "no", "status": "OFFLINE"}
        ],
    },
    "0005": {
        "tasks": [
            {
                "id": TASK, "project_id": "proj-default", "type": "BATCH", "name": "old batch", "status": "COMPLETED",
                "priority": 5, "spec": "{}", "progress": 1.0, "total": 1, "done": 1, "failed": 0, "canceled": 0,
                "bytes_total": 7, "bytes_done": 7, "expanded": 1, "warnings": "[]", "fence": 2, "change_seq": 2,
                "created_at": AT, "updated_at": AT, "completed_at": AT,
            }
        ],
        "task_executions": [
            {
                "id": "exec-1", "task_id": TASK, "project_id": "proj-default", "number": 1, "status": "COMPLETED",
                "progress": 1.0, "created_at": AT, "updated_at": AT, "completed_at": AT,
            }
        ],
        "task_items": [
            {
                "id": "item-1", "task_id": TASK, "ordinal": 1, "path": "/in/ü.jpg", "relative": "ü.jpg", "size": 7,
                "status": "COMPLETED", "attempts": 1, "failures": 0, "losses": 0, "outputs": '["out.jpg"]',
            }
        ],
    },
}  # fmt: skip


@cache
def dump(revision: str) -> dict[str, Any]:
    """What the newest program that knew this revision at most has left: ``names`` of runs, a ``token``, ``rows``."""
    written = max(each for each in WRITTEN if each <= revision)
    read: dict[str, Any] = json.loads((Path(__file__).parent / f"{written}.json").read_text())
    return read


def rows(revision: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of a database of this revision, by table, parents first, as SQLite holds them."""
    found = dict(dump(revision)["rows"])
    for later, tables in LATER.items():
        if later <= revision:
            found |= tables
    return found


def fill(connection: Connection, revision: str) -> None:
    """Put them in."""
    for name, given in rows(revision).items():
        if given:
            table = Table(name, MetaData(), autoload_with=connection)
            for row in given:
                connection.execute(insert(table), {key: _native(table, key, value) for key, value in row.items()})


def _native(table: Table, column: str, value: Any) -> Any:
    """A value of SQLite's as the column wants it."""
    match table.c[column].type:
        case Boolean():
            return bool(value)
        case DateTime():
            return datetime.fromisoformat(value)
        case kind if type(kind).__name__ == "JSON":
            return json.loads(value)
    return value
