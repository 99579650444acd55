"""The workloads of docs/performance.md, on whatever ``measured`` sets up."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.client import Client, client
from bench.report import line
from bench.stands import QUIET, Measured
from bench.workflows import chain, fan
from tests.live.server import Server, free_port, wait_until

START = """
mutation($input: InstanceStartInput!) { instanceStart(input: $input) {
  __typename ... on InstanceStartPayload { instance { id } } ... on UserError { code message } } }
"""
ENDED = "query($id: ID!) { instance(id: $id) { status createdAt completedAt } }"
EVENTS = "subscription($id: ID!) { instanceEvents(id: $id) { type data } }"
OPEN = "{ instances(first: 1, where: {status: {in: [PENDING, RUNNING]}}) { totalCount } }"
LAST = "{ instances(first: 1, orderBy: CHANGED_DESC) { nodes { completedAt } } }"
FAILED = "{ instances(first: 1, where: {not: {status: {eq: COMPLETED}}}) { totalCount } }"
SMALL = "query($id: ID!) { instance(id: $id) { id status createdAt completedAt } }"


async def store(server: Server, definition: str) -> str:
    """Import the definition; the workflow's id."""
    answer = await server.request("POST", "/import", content=definition.encode())
    answer.raise_for_status()
    return str(answer.json()["workflowId"])


async def run(talk: Client, workflow: str) -> float:
    """Run the workflow; its milliseconds from created to completed on the server's clock."""
    began = await talk.query(START, {"input": {"workflow": {"id": workflow}, "wait": "PT60S"}})
    id = began["instanceStart"]["instance"]["id"]
    while True:
        instance = (await talk.query(ENDED, {"id": id}))["instance"]
        if instance["completedAt"] is not None:
            assert instance["status"] == "COMPLETED", instance
            return (instant(instance["completedAt"]) - instant(instance["createdAt"])) * 1000
        await asyncio.sleep(0.1)


def instant(text: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


async def chain_of_forty(measured: Measured) -> None:
    """W1: 40 nodes in a row, each fib(10), one commit a node."""
    async with measured() as (server, talk):
        for variant, type, parameters in [("fib(10)", "bench/fib", {"n": 10}), ("noop", "core/noop", {})]:
            workflow = await store(server, chain(f"w1-{type[-4:]}", 40, type, parameters))
            await run(talk, workflow)
            values = [await run(talk, workflow) for _ in range(30)]
            own = own_ms(10) if parameters else 0.0
            line("W1", variant, values, overhead_ms_per_node=round(statistics.median(values) / 40 - own, 3))


async def heavy_chain(measured: Measured) -> None:
    """W2: 10 nodes in a row, each fib(27)."""
    async with measured() as (server, talk):
        workflow = await store(server, chain("w2", 10, "bench/fib", {"n": 27}))
        await run(talk, workflow)
        values = [await run(talk, workflow) for _ in range(5)]
        own = own_ms(27)
        line("W2", "fib(27)", values, overhead_ms_per_node=round(statistics.median(values) / 10 - own, 3), own_ms=own)


async def fan_out(measured: Measured) -> None:
    """W3: one node, N parallel no-ops, one join."""
    async with measured(MIRRORFLOW_MAX_NODES="20000") as (server, talk):
        for width, times in ((100, 10), (1_000, 7), (10_000, 3)):
            workflow = await store(server, fan(f"w3-{width}", width))
            await run(talk, workflow)
            values = [await run(talk, workflow) for _ in range(times)]
            line("W3", f"N={width}", values, ms_per_node=round(statistics.median(values) / (width + 2), 4))


async def many_at_once(measured: Measured) -> None:
    """W4: 200 instances of 5 no-ops submitted at once; from the first byte sent to the last instance completed."""
    async with measured(connections=16) as (server, talk):
        workflow = await store(server, chain("w4", 5, "core/noop"))
        for _ in range(3):
            await burst(talk, workflow)
        seconds = [await burst(talk, workflow) for _ in range(9)]
        assert (await talk.query(FAILED))["instances"]["totalCount"] == 0
        line("W4", "200×5", [s * 1000 for s in seconds])
        line("W4", "200×5 instances", [200 / s for s in seconds], "1/s")
        line("W4", "200×5 nodes", [1000 / s for s in seconds], "1/s")


async def burst(talk: Client, workflow: str) -> float:
    """Submit 200 at once; seconds until the last has completed."""
    raw = talk.encoded(START, {"input": {"workflow": {"id": workflow}}})
    began = time.time()
    for answer in await asyncio.gather(*(talk.send(raw) for _ in range(200))):
        assert answer["instanceStart"]["__typename"] == "InstanceStartPayload", answer

    async def ended() -> bool:
        return not (await talk.query(OPEN))["instances"]["totalCount"]

    await wait_until(ended, 60)
    [last] = (await talk.query(LAST))["instances"]["nodes"]
    return instant(last["completedAt"]) - began


async def one_at_a_time(measured: Measured) -> None:
    """W5: submit to body start, and to completion seen by a subscriber."""
    async with measured() as (server, talk), server.socket() as socket:
        workflow = await store(server, chain("w5", 1, "bench/now"))
        raw = talk.encoded(START, {"input": {"workflow": {"id": workflow}}})
        starts, ends = [], []
        for turn in range(40):
            began = time.time()
            id = (await talk.send(raw))["instanceStart"]["instance"]["id"]
            asked = {"query": EVENTS, "variables": {"id": id}}
            await socket.send(msgspec.json.encode({"id": str(turn), "type": "subscribe", "payload": asked}), text=True)
            body = 0.0
            while (message := msgspec.json.decode(await socket.recv()))["type"] != "complete":
                event = message["payload"]["data"]["instanceEvents"]
                if event["type"] == "node.completed":
                    body = instant(event["data"]["output"]["at"])
                seen = time.time()
            if turn >= 10:  # the first ones warm up
                starts.append((body - began) * 1000)
                ends.append((seen - began) * 1000)
        line("W5", "submit to body start", starts)
        line("W5", "submit to completion seen by a subscriber", ends)


async def start_and_idle(measured: Measured) -> None:
    """W6: start to ready over a folder that exists, memory and CPU with nothing to do."""
    with tempfile.TemporaryDirectory(prefix="mirrorflow-bench-") as folder:
        server = Server(Path(folder) / "data", env=QUIET)
        async with server:
            await server.stop()
            values = []
            for _ in range(5):
                began = time.perf_counter()
                await server.start()
                values.append((time.perf_counter() - began) * 1000)
                if len(values) < 5:
                    await server.stop()
            line("W6", "start to ready", values)
            process = psutil.Process(server.pid)
            await asyncio.sleep(1)
            before = process.cpu_times()
            await asyncio.sleep(5)
            after = process.cpu_times()
            busy = after.user + after.system - before.user - before.system
            line("W6", "idle memory (RSS)", [process.memory_info().rss / 1e6], "MB")
            line("W6", "idle CPU of one core", [busy / 5 * 100], "%")


async def small_query(measured: Measured) -> None:
    """G1: one instance asked for by id, beside a plain route with the same token check and the same SQL."""
    async with measured() as (server, talk):
        workflow = await store(server, chain("g1", 1, "core/noop"))
        id = (await talk.query(START, {"input": {"workflow": {"id": workflow}}}))["instanceStart"]["instance"]["id"]
        with plain_server(server) as port:
            medians = {}
            for variant, path, at in (("GraphQL", "/graphql", server.port), ("plain route", "/plain", port)):
                async with client(at, server.token, 1, path) as one:
                    raw = one.encoded(SMALL, {"id": id})
                    for _ in range(200):
                        await one.send(raw)
                    times = [await _answer_ms(one, raw) for _ in range(2_000)]
                line("G1", variant, times)
                medians[variant] = statistics.median(times)
        line("G1", "GraphQL / plain route", [medians["GraphQL"] / medians["plain route"]], "ratio")


async def _answer_ms(talk: Client, raw: bytes) -> float:
    began = time.perf_counter()
    await talk.send(raw)
    return (time.perf_counter() - began) * 1000


@contextmanager
def plain_server(server: Server) -> Iterator[int]:
    """The port of ``bench.plain`` over the server's database."""
    port = free_port()
    command = [sys.executable, "-m", "bench.plain", str(server.data_dir / "mirrorflow.db"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=server.env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield port
        finally:
            process.kill()


def own_ms(n: int) -> float:
    """Milliseconds that fib(n) takes by itself, the best of some tries."""
    from engine.nodes.bench import number

    best = min(_timed(number, n) for _ in range(5))
    return round(best * 1000, 3)


def _timed(work: Callable[[int], Any], n: int) -> float:
    began = time.perf_counter()
    work(n)
    return time.perf_counter() - began


Workload = Callable[[Measured], Coroutine[Any, Any, None]]

WORKLOADS: dict[str, Workload] = {
    "W1": chain_of_forty,
    "W2": heavy_chain,
    "W3": fan_out,
    "W4": many_at_once,
    "W5": one_at_a_time,
    "W6": start_and_idle,
    "G1": small_query,
}
