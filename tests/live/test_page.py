"""The live page in a real browser: what a user sees there, and what the buttons do."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.live.server import Server

CREATE = """mutation ($definition: JSON!) { workflowCreate(input: {definition: {json: $definition}}) {
  ... on WorkflowCreatePayload { workflow { id } } ... on UserError { code message } } }"""
START = """mutation ($workflow: String!) { instanceStart(input: {workflow: {name: $workflow}}) {
  ... on InstanceStartPayload { instance { id } } ... on UserError { code message } } }"""
BATCH = """mutation ($folder: String!) { batchStart(input: {workflow: {name: "greets"}, targetFolders: [$folder]}) {
  ... on BatchStartPayload { task { id } } ... on UserError { code message } } }"""


def definition(name: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    """These nodes, one after the other."""
    edges = [{"source": a["id"], "target": b["id"]} for a, b in itertools.pairwise(nodes)]
    return {"name": name, "triggers": [{"id": "by-hand", "type": "manual"}], "nodes": list(nodes), "edges": edges}


GREETS = definition("greets", {"id": "hello", "type": "core/transform", "parameters": {"output": "hello"}})
ASKS = definition(
    "asks",
    {"id": "may-i", "type": "core/approval", "parameters": {"title": "Go on?"}},
    {"id": "nap", "type": "core/delay", "parameters": {"duration": "1h"}},
)


@pytest.fixture
async def page(server: Server) -> AsyncIterator[Page]:
    """The page of a new server, signed in by its link; fails on whatever the browser's console calls an error."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    link = re.search(r"(http://\S+/\?token=\S+)", server.output)
    assert link is not None
    errors: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(link[1])
        await expect(page.locator("#connection")).to_have_text("live")
        yield page
        await browser.close()
    assert errors == []


async def test_a_run_is_seen_and_controlled(server: Server, page: Page) -> None:
    """It appears when it is started elsewhere, waits for an answer that a button gives, and is cancelled by another."""
    await expect(page.locator("#empty")).to_contain_text("Nothing has run yet")
    await server.graphql(CREATE, {"definition": ASKS})
    await server.graphql(START, {"workflow": "asks"})
    row = page.locator("#runs > li")
    await expect(row.locator(".status")).to_have_text("RUNNING")
    await expect(row.locator(".nodes")).to_contain_text("Go on?")
    await row.get_by_role("button", name="Approve").click()
    await expect(row.locator("[data-status=WAITING]")).to_contain_text("nap")
    await row.get_by_role("button", name="Cancel").click()
    await expect(row.locator(".status")).to_have_text("CANCELED")
    await expect(page.locator("#filters")).to_contain_text("Canceled 1")


async def test_a_batch_and_its_server_are_seen(server: Server, page: Page) -> None:
    """The server with its state and slots, the task with its counts, and the runs that it makes."""
    folder = server.data_dir / "files" / "照片"
    folder.mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").write_text("x")
    await server.graphql(CREATE, {"definition": GREETS})
    await server.graphql(BATCH, {"folder": str(folder)})
    task = page.locator("#tasks > li")
    await expect(task.locator(".status")).to_have_text("COMPLETED")
    await expect(task.locator(".counts")).to_contain_text("5 of 5")
    await expect(page.locator("#servers")).to_contain_text("local")
    await expect(page.locator("#runs > li[data-status=COMPLETED]")).to_have_count(5)


async def test_what_waits_is_not_pushed_off_the_page(server: Server, page: Page) -> None:
    """However many runs come and end after it, also for those who come later."""
    for made in (ASKS, GREETS):
        await server.graphql(CREATE, {"definition": made})
    await server.graphql(START, {"workflow": "asks"})
    for _ in range(110):
        await server.graphql(START, {"workflow": "greets"})
    await expect(page.locator("#filters")).to_contain_text("Completed 99")
    await expect(page.locator("#filters")).to_contain_text("Running 1")
    await page.get_by_role("button", name="Running").click()
    await expect(page.locator("#runs > li:visible")).to_have_count(1)
    await page.reload()
    await expect(page.locator("#filters")).to_contain_text("Running 1")


async def test_the_page_comes_back_with_its_server(server: Server, page: Page) -> None:
    """While the server is away it says so; afterwards it shows what is there now, without a reload."""
    await server.graphql(CREATE, {"definition": GREETS})
    server.kill()
    await expect(page.locator("#connection")).to_have_text("reconnecting")
    await server.start()
    await server.graphql(START, {"workflow": "greets"})
    await expect(page.locator("#connection")).to_have_text("live", timeout=30_000)
    await expect(page.locator("#runs > li")).to_have_attribute("data-status", "COMPLETED")


async def test_a_stranger_is_asked_for_a_token(server: Server, page: Page, tmp_path: Path) -> None:
    """Signed out, it shows nothing but the way in; a token is one."""
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in to see your runs")).to_be_visible()
    await page.get_by_label("Token").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#refused")).not_to_be_empty()
    await page.get_by_label("Token").fill(server.token)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#connection")).to_have_text("live")
