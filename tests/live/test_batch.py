"""A batch over real pictures survives its servers and its engine: each file ends once, in its place, done once.

Two Mirrorflow servers work for a third one. One of them is killed half way, and the engine that drives the batch is
killed in the middle of it, with SIGKILL.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.live.server import TOKEN, Server, wait_until

CREATE = """
mutation ($definition: JSON!) { workflowCreate(input: {definition: {json: $definition}}) {
  ... on WorkflowCreatePayload { workflow { id } } ... on UserError { code message } } }
"""
REGISTER = """
mutation ($input: ServerRegisterInput!) { serverRegister(input: $input) {
  ... on ServerRegisterPayload { server { id } } ... on UserError { code message } } }
"""
SERVERS = "{ servers(first: 10) { nodes { id name status running } } }"
START = """
mutation ($input: BatchStartInput!) { batchStart(input: $input) {
  ... on BatchStartPayload { task { id } } ... on UserError { code message } } }
"""
TASK = "query ($id: ID!) { task(id: $id) { status message total done failed canceled bytesTotal bytesDone progress } }"
ITEMS = """
query ($id: ID!, $after: String) { task(id: $id) { items(first: 100, after: $after) {
  nodes { id relative status attempts completedAt sha256 outputs { path size } error { code message } server { name } }
  pageInfo { hasNextPage endCursor } } } }
"""


def picture_batch(name: str) -> dict[str, Any]:
    """One real node: each picture becomes a smaller JPEG."""
    return {
        "name": name,
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "input_schema": {
            "type": "object",
            "required": ["file_path"],
            "properties": {"file_path": {"type": "string", "contentMediaType": "image/*"}},
        },
        "nodes": [{"id": "small", "type": "image/preprocess", "parameters": {"max_size": "16x16"}}],
    }


def paint(folder: Path, count: int) -> dict[str, tuple[int, int, int]]:
    """So many pictures in folders of twenty, each of a colour of its own: relative output → colour."""
    from PIL import Image

    expected = {}
    for number in range(count):
        relative = Path(f"卷 {number // 20:03d}", f"{number:05d}")
        colour = (number * 37 % 256, number * 11 % 256, number // 256 * 20)
        path = folder / relative.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), colour).save(path)
        expected[str(relative.with_suffix(".jpg"))] = colour
    return expected


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The colour of every file below the output root; each is a whole picture."""
    from PIL import Image

    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with Image.open(path) as image:
                red, green, blue = image.convert("RGB").resize((1, 1)).tobytes()
                found[str(path.relative_to(folder))] = (red, green, blue)
    return found


async def items(server: Server, task: str) -> dict[str, dict[str, Any]]:
    """The whole ledger, by id."""
    found: dict[str, dict[str, Any]] = {}
    after = None
    while True:
        page = (await server.graphql(ITEMS, {"id": task, "after": after}))["task"]["items"]
        found |= {node["id"]: node for node in page["nodes"]}
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def completed(server: Server, task: str) -> dict[str, tuple[int, str]]:
    """The items that are completed now, with what must never change about them."""
    ledger = await items(server, task)
    return {id: (item["attempts"], item["completedAt"]) for id, item in ledger.items() if item["status"] == "COMPLETED"}


@pytest.mark.parametrize(
    ("pictures", "kills"), [(200, 1), pytest.param(2_000, 2, marks=pytest.mark.soak)], ids=["quick", "soak"]
)
async def test_every_file_ends_once_in_its_place_whatever_is_killed(tmp_path: Path, pictures: int, kills: int) -> None:
    """Two servers share the batch, one is killed half way, the engine is killed too: counts add up, slots are free."""
    shared = tmp_path / "shared"
    expected = await asyncio.to_thread(paint, shared / "in", pictures)
    env = {"MIRRORFLOW_ALLOWED_ROOTS": str(shared), "MIRRORFLOW_LOG_LEVEL": "warning"}
    async with AsyncExitStack() as stack:
        makers = [Server(tmp_path / name, env=env) for name in ("main", "one", "two")]
        main, one, two = await asyncio.gather(*(stack.enter_async_context(server) for server in makers))
        await joined(main, {"one": one, "two": two})
        made = await main.graphql(CREATE, {"definition": picture_batch("pictures")})
        given = {
            "workflow": {"id": made["workflowCreate"]["workflow"]["id"]},
            "targetFolders": ["in"],
            "servers": ["one", "two"],
            "outputRoot": "out",
        }
        started = await main.graphql(START, {"input": given})
        task = started["batchStart"]["task"]["id"]

        before: dict[str, tuple[int, str]] = {}
        for number in range(kills):
            await reached(main, task, pictures * (number + 0.2) / (kills + 0.5))
            before |= await completed(main, task)
            main.kill()
            if number == 0:
                one.kill()  # nobody is there to see it: the engine finds its items on a server that is gone
            await main.start()
        await wait_until(lambda: ended(main, task), 300)
        row = (await main.graphql(TASK, {"id": task}))["task"]
        ledger = await items(main, task)
        wrong = [item for item in ledger.values() if item["status"] != "COMPLETED"]
        assert (row["status"], row["total"], row["done"]) == ("COMPLETED", pictures, pictures), (row, wrong[:3])
        assert (row["failed"], row["canceled"], row["progress"], row["bytesDone"]) == (0, 0, 1.0, row["bytesTotal"])
        assert sorted(item["relative"].replace(".png", ".jpg") for item in ledger.values()) == sorted(expected)
        for id, was in before.items():
            assert (ledger[id]["attempts"], ledger[id]["completedAt"]) == was, "a finished file was done again"
        assert before
        assert {item["server"]["name"] for item in ledger.values()} == {"one", "two"}
        slots = (await main.graphql(SERVERS))["servers"]["nodes"]
        assert all(server["running"] == 0 for server in slots), slots
        for server in (main, two):
            await server.stop()
    outputs = await asyncio.to_thread(seen, shared / "out")
    assert outputs.keys() == expected.keys()
    for name, colour in outputs.items():
        assert all(abs(a - b) <= 12 for a, b in zip(colour, expected[name], strict=True)), (name, colour)


async def joined(main: Server, others: dict[str, Server]) -> None:
    """The others are servers of the main one, and ONLINE."""
    for name, server in others.items():
        given = {"name": name, "url": server.url, "type": "MIRRORFLOW", "batchSize": 6, "token": TOKEN}
        made = await main.graphql(REGISTER, {"input": given})
        assert "server" in made["serverRegister"], made

    async def online() -> bool:
        rows = (await main.graphql(SERVERS))["servers"]["nodes"]
        return all(row["status"] == "ONLINE" for row in rows if row["name"] in others)

    await wait_until(online, 20)


async def reached(server: Server, task: str, number: float) -> None:
    """Return when so many items are done."""

    async def done() -> bool:
        row = (await server.graphql(TASK, {"id": task}))["task"]
        assert row["status"] in ("PENDING", "RUNNING", "COMPLETED"), row
        return bool(row["done"] >= number)

    await wait_until(done, 240)


async def ended(server: Server, task: str) -> bool:
    """Whether the task has."""
    return (await server.graphql(TASK, {"id": task}))["task"]["status"] in ("COMPLETED", "FAILED", "CANCELED")
