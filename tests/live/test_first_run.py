"""The first start, the second, and the end, as ``make run`` makes them happen."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import httpx

from tests.live.server import ROOT, Server, wait_until

RUNS = """{ instances(first: 50) { totalCount nodes { status workflow { name } output } } }"""
NOOP = "{name: idle, triggers: [{id: m, type: manual}], nodes: [{id: a, type: core/noop}]}"
START = """mutation($input: InstanceStartInput!) { instanceStart(input: $input) {
  __typename ... on InstanceStartPayload { instance { id status } } } }"""


async def test_the_first_start_shows_the_examples_at_work(tmp_path: Path) -> None:
    """``serve --examples`` installs them, runs the photo pipeline on every photo once, and prints what to paste."""
    photos = len(list((ROOT / "examples" / "photos").glob("*.jpg")))
    async with Server(tmp_path / "data", args=("--examples",)) as server:

        async def told() -> bool:
            return "paste this query" in server.output

        await wait_until(told, 60)
        assert f"{photos} of {photos} completed" in server.output
        for path in (ROOT / "examples").glob("*.yaml"):
            assert f"installed   {path.stem}" in server.output
        instances = (await server.graphql(RUNS))["instances"]
        assert instances["totalCount"] == photos
        assert {run["status"] for run in instances["nodes"]} == {"COMPLETED"}
        archived = [run["output"]["location"] for run in instances["nodes"] if run["output"].get("location")]
        assert archived
        query = server.output.split("/graphql:\n", 1)[1]
        assert (await server.graphql(query[: query.rindex("\n}") + 2]))["instances"]["nodes"]
        first = server.output
        await server.stop()
        await server.start()
        second = server.output.removeprefix(first)
        assert "installed" not in second
        assert "photos:" not in second
        assert (await server.graphql("{ instances { totalCount } }"))["instances"]["totalCount"] == photos


async def test_the_link_signs_a_browser_in_once(server: Server) -> None:
    """The token of the printed link becomes a session cookie, and works for nobody after that."""
    found = re.search(r"(http://\S+)/\?token=(\S+)", server.output)
    assert found is not None
    async with httpx.AsyncClient(base_url=found[1], headers={"X-Mirrorflow-CSRF": "1"}, trust_env=False) as browser:
        assert (await browser.get("/session")).json() == {"user": None}
        assert (await browser.post("/session", json={"token": found[2]})).status_code == 204
        assert (await browser.get("/session")).json()["user"] is not None
        answer = await browser.post("/graphql", json={"query": "{ viewer { name } }"})
        assert "errors" not in answer.json(), answer.text
    async with httpx.AsyncClient(base_url=found[1], headers={"X-Mirrorflow-CSRF": "1"}, trust_env=False) as other:
        assert (await other.post("/session", json={"token": found[2]})).status_code == 401


async def test_the_page_and_the_playground_answer(server: Server) -> None:
    """``/`` and ``/graphql`` give a browser a page, health and metrics answer programs."""
    html = {"Accept": "text/html"}
    assert (await server.request("GET", "/", headers=html, token=None)).status_code == 200
    assert "html" in (await server.request("GET", "/graphql", headers=html, token=None)).headers["content-type"]
    ready = await server.request("GET", "/health/ready", token=None)
    assert ready.json() == {"status": "ok", "checks": {"database": "ok", "disk": "ok", "engine": "ok"}}
    metrics = (await server.request("GET", "/metrics")).text
    assert "mirrorflow_commit_seconds" in metrics
    assert "mirrorflow_queue_depth" in metrics


async def test_sigterm_lets_running_nodes_finish(tmp_path: Path) -> None:
    """A node that runs when the server is told to stop completes within the grace, and the server exits with 0."""
    async with Server(tmp_path / "data") as server:
        text = "{name: busy, triggers: [{id: m, type: manual}], nodes: [{id: a, type: bench/fib, parameters: {n: 30}}]}"
        workflow = (await server.request("POST", "/import", content=text)).json()["workflowId"]
        started = await server.graphql(START, {"input": {"workflow": {"id": workflow}}})
        id = started["instanceStart"]["instance"]["id"]

        async def runs() -> bool:
            events = await server.graphql("query($id: ID!) { instance(id: $id) { lastSeq } }", {"id": id})
            return bool(events["instance"]["lastSeq"] >= 3)

        await wait_until(runs)
        assert await server.stop() == 0
        await server.start()
        again = await server.graphql(
            'query($id: ID!) { instance(id: $id) { status nodeExecution(path: "a") { attempt } } }', {"id": id}
        )
        assert again["instance"]["status"] == "COMPLETED"
        assert again["instance"]["nodeExecution"]["attempt"] == 1


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """It does not wait for the grace; what was acknowledged is there again after the next start."""
    async with Server(tmp_path / "data", env={"MIRRORFLOW_GRACE_SECONDS": "60"}) as server:
        text = "{name: busy, triggers: [{id: m, type: manual}], nodes: [{id: a, type: bench/fib, parameters: {n: 34}}]}"
        workflow = (await server.request("POST", "/import", content=text)).json()["workflowId"]
        started = await server.graphql(START, {"input": {"workflow": {"id": workflow}}})
        process = server._process
        assert process is not None
        process.send_signal(signal.SIGINT)

        async def stopping() -> bool:
            return "stopping: " in server.output

        await wait_until(stopping)
        assert await server.stop(signal.SIGINT, within=10) == 128 + signal.SIGINT
        await server.start()
        id = started["instanceStart"]["instance"]["id"]
        again = await server.graphql("query($id: ID!) { instance(id: $id) { status } }", {"id": id})
        assert again["instance"]["status"] in {"PENDING", "RUNNING", "COMPLETED"}


async def test_a_killed_server_starts_again_over_its_folder(server: Server) -> None:
    """SIGKILL leaves no lock behind, and what was stored is there."""
    await server.request("POST", "/import", content=NOOP)
    server.kill()
    await server.start()
    started = await server.graphql(START, {"input": {"workflow": {"name": "idle"}, "wait": "PT10S"}})
    assert started["instanceStart"]["instance"]["status"] == "COMPLETED"
