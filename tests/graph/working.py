"""What tests of tasks share: files to work over, workflows that take them, and how to wait for a task's end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from engine.access import LOCAL
from engine.engine import Engine
from tests.engine.conftest import document
from tests.graph.conftest import Asker

#: Takes any file and gives its name; fails for one called ``bad.txt``.
NAMES = document(
    [
        {"id": "look", "type": "core/noop"},
        {"id": "stop", "type": "core/fail", "parameters": {"message": "as asked"}},
        {"id": "tell", "type": "core/transform", "parameters": {"output": {"name": "{{ filename }}"}}},
    ],
    [
        {"source": "look", "target": "stop", "condition": "filename == 'bad.txt'"},
        {"source": "look", "target": "tell", "condition": "filename != 'bad.txt'"},
    ],
    name="names",
)


def files(engine: Engine, *names: str) -> Path:
    """The folder ``pictures`` in the first allowed root, with these files."""
    folder = engine.runner.surroundings.files.roots[0] / "pictures"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the content of {name}")
    return folder


async def workflow(engine: Engine, definition: dict[str, Any]) -> str:
    """The workflow of this definition, made if there is none of its name."""
    known = await engine.workflows.named(LOCAL, definition["name"])
    return known.id if known else (await engine.workflows.create(LOCAL, definition)).workflow_id


async def finished(ask: Asker, id: str, seconds: float = 30.0) -> dict[str, Any]:
    """The task when it has ended, by its subscription."""
    fields = "status message total done failed canceled progress error { code message } result"
    last: dict[str, Any] = {}
    async with asyncio.timeout(seconds):
        async for data in ask.stream(f"subscription ($id: ID!) {{ taskUpdated(id: $id) {{ {fields} }} }}", id=id):
            last = data["taskUpdated"]
    return last
