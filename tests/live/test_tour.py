"""The tour of examples in the distributed mode: stored through one API process, started through another, run by three
workers.
"""

from __future__ import annotations

import asyncio
import json
from glob import glob
from typing import Any

import pytest

from tests.live.cluster import Cluster
from tests.live.mischief import flow, step
from tests.live.server import ROOT

EXAMPLES = ROOT / "examples"
PHOTOS = sorted(photo.name for photo in (EXAMPLES / "photos").glob("*.jpg"))
SMALL = {"id": "A-0001", "customer": "A", "lines": [{"article": "Cloth", "quantity": 1, "price": 18}]}


async def test_the_examples_on_two_api_processes_and_three_workers(cluster: Cluster) -> None:
    """Every example gives what its comment says, and workers alone had a hand in it."""
    first, second = cluster.apis
    stored: dict[str, str] = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        answer = await first.request("POST", "/import", content=await asyncio.to_thread(path.read_text))
        assert answer.status_code == 200, answer.text
        stored[path.stem] = answer.json()["workflowId"]
    order = json.loads((EXAMPLES / "data" / "order.json").read_text())
    inputs: list[tuple[str, Any]] = [
        *(("nas-photo-processing", {"file_path": f"photos/{name}"}) for name in PHOTOS),
        ("order-intake", order),
        ("order-intake", {"order": SMALL}),
        ("order-intake", {"order": {"id": "B-1", "lines": []}}),
        ("planets", {}),
        ("poem", {}),
    ]
    ids = [
        await cluster.start(stored[name], input, key=f"tour-{n}", through=second)
        for n, (name, input) in enumerate(inputs)
    ]
    ended = [await cluster.ended(id) for id in ids]
    assert [run["status"] for run in ended] == ["COMPLETED"] * len(inputs), ended
    outputs = [run["output"] for run in ended]
    photos = dict(zip(PHOTOS, outputs, strict=False))
    assert {name for name, output in photos.items() if output["location"]} == set(PHOTOS) - {"cat-out-of-focus.jpg"}
    archived = {output["location"] for output in photos.values() if output["location"]}
    assert archived <= set(glob(f"{cluster.folder}/files/**", recursive=True))
    large, small, wrong, planets, poem = outputs[len(PHOTOS) :]
    assert (large["handled_by"], small["handled_by"]) == ("a person", "the machine")
    assert "does not fit the schema" in wrong["refused"]
    assert planets["rocky"] == ["Mercury", "Venus", "Earth", "Mars"]
    assert poem["longest"] == "Hold Infinity in the palm of your hand"
    workers = await cluster.sql(
        "SELECT DISTINCT worker FROM node_executions WHERE instance_id = ANY(:ids) AND worker IS NOT NULL", ids=ids
    )
    assert {cluster.process(worker) for (worker,) in workers} <= set(cluster.workers)  # no API process works


@pytest.mark.parametrize("labels", ["gpu", "eu"])
async def test_a_node_goes_where_its_labels_are(cluster: Cluster, labels: str) -> None:
    """A node that asks for a label runs on the worker that has it, and its run goes on where it was."""
    there = step("bench/fib", "there", n=10) | {"runs_on": [labels]}
    id = await cluster.run(flow(f"labels-{labels}", step("core/noop"), there))
    assert (await cluster.ended(id))["output"] == {"there": {"n": 10, "value": 55}}
    [(worker,)] = await cluster.sql(
        "SELECT worker FROM node_executions WHERE instance_id = :id AND path = 'there'", id=id
    )
    assert cluster.process(worker) is next(member for member in cluster.workers if labels in member.args)
