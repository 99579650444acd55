"""Whoever watches sees the same: from the start, late, again and again, slowly, or two hundred at once."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.live.mischief import flow, living, memory_mb, plugin, run, step, stored
from tests.live.server import ROOT, Server, wait_until

FAN = 1_000
LINES = 900
TALKATIVE = '''
"""A handler that says much."""

from mirrorflow import node


@node("test/talk", title="Talk")
def talk(ctx):
    """Logs a thousand lines of a hundred characters."""
    for number in range(ctx.parameters["lines"]):
        ctx.log.info("x" * 100, number=number)
    return "said"
'''

EVENTS = "subscription ($id: ID!, $after: Int!) { instanceEvents(id: $id, after: $after) { seq type data } }"
LEAN = "subscription ($id: ID!, $after: Int!) { instanceEvents(id: $id, after: $after) { seq } }"
LOGS = """
subscription ($id: ID!, $after: Int!) {
  nodeLogs(instance: $id, node: "talk", after: $after) { seq message fields }
}
"""
NODES = """
subscription ($id: ID!, $after: Int!) {
  nodeExecutionUpdated(instance: $id, after: $after) { path status lastSeq }
}
"""
UPDATED = "subscription ($id: ID!) { instanceUpdated(id: $id) { lastSeq status } }"
CHANGES = """
subscription ($after: BigInt, $where: InstanceWhere) {
  instanceChanges(after: $after, where: $where, first: 500) {
    changeSeq snapshot added { id status } updated { id status } removed
  }
}
"""
START = """
mutation ($id: ID!) {
  instanceStart(input: {workflow: {id: $id}}) { ... on InstanceStartPayload { instance { id } } }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the module, with the talkative handler."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "plugin").mkdir()
    path = plugin(folder / "plugin", "talk_nodes", TALKATIVE)
    with living(folder / "data", PYTHONPATH=f"{path}{os.pathsep}{ROOT}") as running:
        yield running


@asynccontextmanager
async def gate() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address that answers only once the event is set: a workflow behind it begins when the test says so."""
    opened = asyncio.Event()
    answering: set[asyncio.Task[Any]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await opened.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        try:
            yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", opened
        finally:
            opened.set()
            await asyncio.gather(*answering)


def gated(name: str, url: str, fan: int, lines: int = 0) -> dict[str, Any]:
    """A gate, then so many nodes beside each other and one that talks."""
    nodes = [step("http/request", "gate", url=url), step("test/talk", "talk", lines=lines)]
    nodes += [{"id": f"n{i}", "type": "core/noop"} for i in range(fan)]
    edges = [{"source": "gate", "target": node["id"]} for node in nodes[1:]]
    return flow(name, *nodes) | {"edges": edges, "output_mapping": {"said": "$.nodes.talk"}}


async def begun(server: Server, definition: dict[str, Any]) -> str:
    """The id of a new run."""
    workflow = await stored(server, definition)
    data = await server.graphql(START, {"id": workflow})
    return str(data["instanceStart"]["instance"]["id"])


async def all_of(server: Server, query: str, id: str, after: int = 0) -> list[dict[str, Any]]:
    """Everything that one subscription gives until it completes."""
    variables = {"id": id} | ({"after": after} if "$after" in query else {})
    return [next(iter(data.values())) async for data in server.subscribe(query, variables)]


async def piece_by_piece(server: Server, query: str, id: str, cursor: str, size: int) -> list[dict[str, Any]]:
    """Everything, by one who loses the connection after every ``size`` messages and resumes after the last."""
    seen: list[dict[str, Any]] = []
    while True:
        after, count = (seen[-1][cursor] if seen else 0), 0
        async with aclosing(server.subscribe(query, {"id": id, "after": after})) as stream:
            async for data in stream:
                seen.append(next(iter(data.values())))
                count += 1
                if count == size:
                    break
            else:
                return seen


async def slowly(server: Server, id: str, resume: asyncio.Event) -> list[int]:
    """The ``seq`` of every event, by one who reads ten and then, until ``resume``, hardly any, behind a small buffer.

    Not none at all: the server lets such a one go after ten seconds.
    """
    seen: list[int] = []
    async with narrow(server) as socket:
        payload = {"query": EVENTS, "variables": {"id": id, "after": 0}}
        await socket.send(msgspec.json.encode({"id": "1", "type": "subscribe", "payload": payload}), text=True)
        async for text in socket:
            message = msgspec.json.decode(text)
            match message["type"]:
                case "next":
                    seen.append(message["payload"]["data"]["instanceEvents"]["seq"])
                    if len(seen) >= 10:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(0.1):
                                await resume.wait()
                case "complete":
                    return seen
    raise AssertionError("the stream ended without a word")


@asynccontextmanager
async def narrow(server: Server) -> AsyncIterator[Any]:
    """A socket with a small receive buffer, behind which little fits unread."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 8_192)
    await asyncio.to_thread(raw.connect, ("127.0.0.1", server.port))
    raw.setblocking(False)
    async with connect(
        f"ws://127.0.0.1:{server.port}/graphql",
        sock=raw,
        subprotocols=[Subprotocol("graphql-transport-ws")],
        compression=None,
        max_queue=1,
        ping_interval=None,
        close_timeout=1,
        proxy=None,
    ) as socket:
        init = {"type": "connection_init", "payload": {"Authorization": f"Bearer {server.token}"}}
        await socket.send(msgspec.json.encode(init), text=True)
        assert msgspec.json.decode(await socket.recv())["type"] == "connection_ack"
        yield socket


async def ended(server: Server, id: str) -> dict[str, Any]:
    """The run once it is over."""

    async def over() -> dict[str, Any]:
        data = await server.graphql("query ($id: ID!) { instance(id: $id) { status lastSeq completedAt } }", {"id": id})
        found: dict[str, Any] = data["instance"]
        return found if found["completedAt"] else {}

    return await wait_until(over, within=30)


# ---- sockets that must go: they take the server half a minute, meanwhile the other tests run


async def never_reads(server: Server) -> dict[str, Any]:
    """Subscribe to much, read nothing; how long the server took to free the socket, and what it cost in memory."""
    id = await begun(server, flow("unread", step("test/talk", "talk", lines=LINES)))
    await ended(server, id)
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    await asyncio.to_thread(raw.connect, ("127.0.0.1", server.port))
    with raw:
        raw.settimeout(5)
        raw.sendall(
            b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        )
        assert b"101" in raw.recv(4_096)
        before = memory_mb(server.pid)
        port = raw.getsockname()[1]
        raw.sendall(frame({"type": "connection_init", "payload": {"Authorization": f"Bearer {server.token}"}}))
        for n in range(40):  # 40 streams of 900 events: some ten megabytes that nobody reads
            payload = {"query": EVENTS, "variables": {"id": id, "after": 0}}
            raw.sendall(frame({"id": str(n), "type": "subscribe", "payload": payload}))
        began, highest = time.monotonic(), 0.0
        while held(server.port, port) and time.monotonic() - began < 60:
            highest = max(highest, memory_mb(server.pid))
            await asyncio.sleep(0.2)
        return {"seconds": time.monotonic() - began, "before": before, "highest": highest}


def frame(message: dict[str, Any]) -> bytes:
    """A masked text frame (with a mask of zeros)."""
    text = msgspec.json.encode(message)
    return b"\x81" + bytes([0xFE]) + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text


def held(server_port: int, client_port: int) -> bool:
    """Whether the server's end of this connection is still established."""
    local, remote = f":{server_port:04X}", f":{client_port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return any(row[1].endswith(local) and row[2].endswith(remote) and row[3] == "01" for row in rows)


async def command(server: Server, *arguments: str) -> str:
    """What ``mirrorflow …`` printed, run beside the server over the same data folder."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirrorflow", *arguments),
        env=server.env,
        cwd=server.data_dir,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, arguments
    return out.decode()


async def revoked(server: Server) -> tuple[int, str, float]:
    """Connect with a token of its own, have it revoked; the close code, its reason, and the seconds until then."""
    made = await command(server, "token", "create", "doomed")
    token = next(word for word in made.split() if word.startswith("mfk_"))
    listed = await command(server, "token", "list")
    id = next(line.split()[0] for line in listed.splitlines() if "doomed" in line)
    async with server.socket(token=token) as socket:
        await command(server, "token", "revoke", id)
        began = time.monotonic()
        with suppress(ConnectionClosed):
            async with asyncio.timeout(60):
                while True:
                    await socket.recv()
        return socket.close_code or 0, socket.close_reason or "", time.monotonic() - began


@pytest.fixture(scope="module", autouse=True)
def meanwhile(server: Server) -> Iterator[tuple[Future[dict[str, Any]], Future[tuple[int, str, float]]]]:
    """The two slow scenes, each in a thread with a loop of its own; their tests come last."""
    with ThreadPoolExecutor(2) as threads:
        yield threads.submit(asyncio.run, never_reads(server)), threads.submit(asyncio.run, revoked(server))


# ---- the tests


async def test_all_see_the_same_sequence(server: Server) -> None:
    """Early, late, with forty lost connections, slow and narrow: each sees 1..n once, with the same content."""
    async with gate() as (url, opened), asyncio.timeout(60):
        id = await begun(server, gated("same", url, FAN, LINES))
        resume = asyncio.Event()
        early = asyncio.create_task(all_of(server, EVENTS, id))
        again = asyncio.create_task(piece_by_piece(server, EVENTS, id, "seq", 100))
        slow = asyncio.create_task(slowly(server, id, resume))
        opened.set()
        n = (await ended(server, id))["lastSeq"]
        resume.set()
        late = await all_of(server, EVENTS, id)
        middle = await all_of(server, EVENTS, id, after=n // 2)
        first = await early
        assert n > 2 * FAN + LINES
        assert [event["seq"] for event in first] == list(range(1, n + 1))
        assert first == late == await again
        assert middle == first[n // 2 :]
        assert await slow == list(range(1, n + 1))


async def test_200_subscribers_to_one_run(server: Server) -> None:
    """Two hundred on their own sockets see every event once."""
    async with gate() as (url, opened), asyncio.timeout(60):
        id = await begun(server, gated("many", url, 40))
        ready = asyncio.Semaphore(0)

        async def watch() -> list[int]:
            seen: list[int] = []
            async with aclosing(server.subscribe(LEAN, {"id": id, "after": 0})) as stream:
                async for data in stream:
                    if not seen:
                        ready.release()
                    seen.append(data["instanceEvents"]["seq"])
            return seen

        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(watch()) for _ in range(200)]
            for _ in watching:
                await ready.acquire()
            opened.set()
        seen = [task.result() for task in watching]
        n = (await ended(server, id))["lastSeq"]
        assert {tuple(each) for each in seen} == {tuple(range(1, n + 1))}


async def test_logs_resume_by_cursor(server: Server) -> None:
    """Each line once and in order, from the start, late, and with lost connections."""
    async with gate() as (url, opened), asyncio.timeout(60):
        id = await begun(server, gated("logs", url, 0, LINES))
        watching = [
            asyncio.create_task(all_of(server, LOGS, id)),
            asyncio.create_task(piece_by_piece(server, LOGS, id, "seq", 70)),
        ]
        opened.set()
        seen = await asyncio.gather(*watching)
        seen.append(await all_of(server, LOGS, id))
        for lines in seen:
            assert [line["fields"]["number"] for line in lines] == list(range(LINES))


async def test_nodes_resume_by_cursor(server: Server) -> None:
    """Every node is seen as it ended, none twice in the same state, however often the connection is lost."""
    async with gate() as (url, opened), asyncio.timeout(60):
        id = await begun(server, gated("nodes", url, 600))
        watching = [
            asyncio.create_task(all_of(server, NODES, id)),
            asyncio.create_task(piece_by_piece(server, NODES, id, "lastSeq", 60)),
        ]
        opened.set()
        seen = await asyncio.gather(*watching)
        seen.append(await all_of(server, NODES, id))
        for rows in seen:
            last = {row["path"]: row["status"] for row in rows}
            assert len(last) == 602
            assert set(last.values()) == {"COMPLETED"}
            states = [(row["path"], row["lastSeq"]) for row in rows]
            assert len(set(states)) == len(states)
            order = [row["lastSeq"] for row in rows]
            assert order == sorted(order)


async def test_a_run_as_it_changes(server: Server) -> None:
    """The run now, then grown, then ended, and the stream completes; of an ended one, once."""
    async with gate() as (url, opened), asyncio.timeout(60):
        id = await begun(server, gated("updated", url, 50))
        early = asyncio.create_task(all_of(server, UPDATED, id))
        opened.set()
        rows = await early
        seqs = [row["lastSeq"] for row in rows]
        assert seqs == sorted(set(seqs))
        assert rows[-1]["status"] == "COMPLETED"
        assert await all_of(server, UPDATED, id) == [rows[-1]]


async def test_the_list_of_runs_resumes_by_cursor(server: Server) -> None:
    """A list folded from changes, with a lost connection after each batch, is the list itself."""
    workflow = await stored(server, flow("listed", step("core/noop"), step("core/noop", "b")))
    where = {"workflow": {"eq": workflow}}
    folded: dict[str, str] = {}

    async def fold() -> None:
        cursor: int | None = None
        while not (len(folded) == 60 and set(folded.values()) == {"COMPLETED"}):
            async with aclosing(server.subscribe(CHANGES, {"after": cursor, "where": where})) as stream:
                batch = (await anext(stream))["instanceChanges"]
            assert batch["snapshot"] is (cursor is None)
            assert cursor is None or batch["changeSeq"] > cursor
            cursor = batch["changeSeq"]
            for row in [*batch["added"], *batch["updated"]]:
                folded[row["id"]] = row["status"]
            for id in batch["removed"]:
                folded.pop(id, None)

    async with asyncio.timeout(60):
        folding = asyncio.create_task(fold())
        runs = []
        for _ in range(6):
            runs += await asyncio.gather(*(run(server, workflow) for _ in range(10)))
        await folding
    assert folded == {instance["id"]: "COMPLETED" for instance in runs}


async def test_a_socket_serves_many_streams_and_forgets_those_that_leave(server: Server) -> None:
    """Subscriptions that are completed by the client leave no trace in the figures."""

    async def open_streams() -> float:
        text = (await server.request("GET", "/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("mirrorflow_subscriptions{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if "instanceUpdated" in line)

    async with gate() as (url, _), server.socket() as socket:
        id = await begun(server, gated("left", url, 0))
        for n in range(100):
            payload = {"query": UPDATED, "variables": {"id": id}}
            await socket.send(msgspec.json.encode({"id": str(n), "type": "subscribe", "payload": payload}), text=True)
        heard: set[str] = set()
        while len(heard) < 100:
            message = msgspec.json.decode(await socket.recv())
            if message["type"] == "next":
                heard.add(message["id"])
        assert await open_streams() == 100
        for n in range(100):
            await socket.send(msgspec.json.encode({"id": str(n), "type": "complete"}), text=True)

        async def none() -> bool:
            return await open_streams() == 0

        await wait_until(none)


async def test_one_that_never_reads_is_let_go(
    server: Server, meanwhile: tuple[Future[dict[str, Any]], Future[tuple[int, str, float]]]
) -> None:
    """Its socket is freed within 30 seconds, and it cost the server no memory to speak of."""
    figures = await asyncio.wrap_future(meanwhile[0])
    print(f"\n{figures}")  # noqa: T201
    assert figures["seconds"] < 45
    assert figures["highest"] < 400, figures


async def test_a_revoked_token_closes_its_socket(
    meanwhile: tuple[Future[dict[str, Any]], Future[tuple[int, str, float]]],
) -> None:
    """The socket is closed with 4403 within 30 seconds."""
    code, reason, seconds = await asyncio.wrap_future(meanwhile[1])
    assert code == 4403
    assert "token" in reason
    assert seconds < 30


async def test_nothing_was_broken(server: Server) -> None:
    """After all that the log has no stack, and the server is ready."""
    assert (await server.request("GET", "/health/ready")).status_code == 200
    assert "Traceback" not in server.output, server.output[-5000:]
