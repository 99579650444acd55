"""The protocol of ComfyUI, spoken with a real server on the loopback, well behaved and not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.comfyui import client as protocol
from engine.comfyui.client import ComfyUI, prompt_id
from engine.comfyui.following import Pace, follow
from engine.outbound import Outbound
from engine.servers.contract import ServerAddress, ServerFailed
from engine.servers.wire import Wire
from flow import comfyanswers as answers
from flow import comfyui
from flow.errors import Category
from flow.servers import ServerType
from tests import comfyui_double as double
from tests.comfyui_double import GRAPH

ID = prompt_id("item-1")
PACE = Pace(first=0.01, slowest=0.05, unknown=0.2)
#: A graph that needs no file.
TEXT: dict[str, Any] = {
    "1": {"class_type": "Text", "inputs": {"text": "hello"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
WAITING: dict[str, Any] = {
    "1": {"class_type": "Text", "inputs": {"text": "hello"}},
    "2": {"class_type": "Gate", "inputs": {"source": ["1", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not answer is given up at once."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.0, 0.0))


class Bench:
    """One server and a client of it."""

    def __init__(self, server: double.ComfyUI, outbound: Outbound, token: str | None = None) -> None:
        self.server = server
        self.outbound = outbound
        self.address = ServerAddress("srv-1", "proj-1", "gpu", ServerType.COMFYUI, server.url, 2, token)
        self.comfy = self.client()
        self.said: list[tuple[float | None, str]] = []

    def client(self) -> ComfyUI:
        """Another client, as a process that was started anew has."""
        return ComfyUI(Wire(self.outbound.server_client, self.address))

    async def follow(self, id: str = ID, pace: Pace = PACE) -> Any:
        return await follow(self.comfy, self.address, id, lambda share, said: self.said.append((share, said)), pace)


@pytest.fixture(params=[False, True], ids=["older", "jobs"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    outbound = Outbound()
    async with double.served(double.ComfyUI(jobs=request.param)) as server:
        yield Bench(server, outbound)
        await outbound.close()


async def failed(doing: Awaitable[Any]) -> Any:
    """The failure of something that must fail."""
    with pytest.raises(ServerFailed) as caught:
        await doing
    return caught.value.failed


async def content(bench: Bench, file: comfyui.Produced, **more: Any) -> bytes:
    parts = [part async for part in bench.comfy.view(file.filename, file.subfolder, file.type, **more)]
    return b"".join(parts)


def test_a_prompt_id_is_a_canonical_uuid_of_the_work() -> None:
    """The same work has the same id in every process, in the only spelling that newer builds take."""
    assert prompt_id("item-1") == ID != prompt_id("item-2")
    assert str(uuid.UUID(ID)) == ID


async def test_a_file_is_uploaded_worked_on_and_fetched(bench: Bench, tmp_path: Path) -> None:
    """The whole way: the returned name goes into the graph, the progress is told, the bytes come back."""
    source = tmp_path / "深 圳.PNG"
    source.write_bytes(b"\x89PNG\r\n--boundary" + bytes(range(256)) * 10_000)
    name = await bench.comfy.upload(source, protocol.upload_name(ID, source))
    assert name == f"mirrorflow/{ID}.png"
    graph = comfyui.filled(GRAPH, {"1.inputs.image": name})
    assert await bench.comfy.submit(graph, ID, {}) == ID
    end = await bench.follow()
    assert isinstance(end, answers.Succeeded)
    [file] = comfyui.produced(end.outputs).files
    assert (file.node, file.key, file.type) == ("9", "images", "output")
    assert await content(bench, file) == source.read_bytes()
    sent = bench.server.posted("/prompt")
    assert [(body["prompt_id"], body["client_id"]) for body in sent] == [(ID, ID)]


async def test_uploading_again_makes_no_second_file(bench: Bench, tmp_path: Path) -> None:
    """After a crash the file is put over itself."""
    source = tmp_path / "a.png"
    source.write_bytes(b"x" * 10)
    for _ in range(2):
        await bench.comfy.upload(source, "a.png")
    assert list(bench.server.inputs) == ["mirrorflow/a.png"]


async def test_a_file_that_cannot_be_read_is_the_works_fault(bench: Bench, tmp_path: Path) -> None:
    """Not the server's: another one would not help."""
    found = await failed(bench.comfy.upload(tmp_path / "gone.png", "a.png"))
    assert (found.failure.code, found.server_lost) == ("FILE_UNREADABLE", False)


async def test_progress_is_told_on_the_way(bench: Bench) -> None:
    """By the socket: shares that grow, and the node that is at work; a binary preview disturbs nobody."""
    await bench.comfy.submit(WAITING, ID, {})
    following = asyncio.create_task(bench.follow())
    await bench.server.entered.wait()
    await bench.server.until(lambda: ID in bench.server.sockets)
    bench.server.gate.set()
    await following
    shares = [share for share, _ in bench.said if share is not None]
    assert shares == sorted(shares)
    assert any(said == "node 9" for _, said in bench.said)


@pytest.mark.parametrize("fault", ["silent", "refused", "garbage", "dies", "lies"])
async def test_the_socket_does_not_matter(bench: Bench, fault: str) -> None:
    """Silent, refused, broken or lying: polling finds the end, and not before it is there."""
    bench.server.faults.socket = fault
    await bench.comfy.submit(WAITING, ID, {})
    following = asyncio.create_task(bench.follow())
    await bench.server.entered.wait()
    asked = len(bench.server.asked)
    await bench.server.until(lambda: len(bench.server.asked) >= asked + 3)
    assert not following.done()
    bench.server.gate.set()
    assert isinstance(await following, answers.Succeeded)


async def test_two_followers_of_one_prompt_both_see_its_end(bench: Bench) -> None:
    """The second takes the first one's socket away, as the protocol has it."""
    await bench.comfy.submit(WAITING, ID, {})
    followers = [asyncio.create_task(bench.follow()) for _ in range(2)]
    await bench.server.entered.wait()
    bench.server.gate.set()
    assert all(isinstance(end, answers.Succeeded) for end in await asyncio.gather(*followers))


# ---- the same work is never a second one ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pending", "running", "ended"])
async def test_submitting_again_sends_nothing_twice(bench: Bench, where: str) -> None:
    """Wherever the prompt is by then; also by a process that was started anew."""
    if where == "pending":
        await bench.comfy.submit(WAITING, prompt_id("other"), {})
        await bench.server.entered.wait()
    await bench.comfy.submit(WAITING, ID, {})
    if where == "running":
        await bench.server.entered.wait()
    if where == "ended":
        bench.server.gate.set()
        await bench.follow()
    assert await bench.client().submit(WAITING, ID, {}) == ID
    assert len([body for body in bench.server.posted("/prompt") if body["prompt_id"] == ID]) == 1


async def test_a_lost_answer_to_a_prompt_is_no_failure(bench: Bench) -> None:
    """The prompt was queued: it is looked for before anything is said."""
    bench.server.faults.lost_replies["/prompt"] = 1
    assert await bench.comfy.submit(TEXT, ID, {}) == ID
    assert isinstance(await bench.follow(), answers.Succeeded)
    assert len(bench.server.posted("/prompt")) == 1


async def test_the_oldest_builds_number_prompts_themselves() -> None:
    """Their number is the reference; a prompt of ours that waits there is found by its client id."""
    outbound = Outbound()
    async with double.served(double.ComfyUI(mints=True)) as server:
        bench = Bench(server, outbound)
        ref = await bench.comfy.submit(WAITING, ID, {})
        assert ref != ID
        await server.entered.wait()
        assert await bench.client().submit(WAITING, ID, {}) == ref
        server.gate.set()
        assert isinstance(await bench.follow(ref), answers.Succeeded)
        await outbound.close()


async def test_a_note_comes_back_with_the_outputs(bench: Bench) -> None:
    """So that who follows it in another process knows what was asked for."""
    await bench.comfy.submit(TEXT, ID, {"outputs": {"a": "9"}})
    end = await bench.follow()
    assert end.note == {"outputs": {"a": "9"}}


# ---- what the server refuses, and how prompts fail -------------------------------------------------------------


async def test_a_graph_that_is_refused_says_why(bench: Bench) -> None:
    """HTTP 400 with the server's words and the nodes at fault; the work is at fault, not the server."""
    found = await failed(bench.comfy.submit(GRAPH, ID, {}))
    assert (found.failure.code, found.failure.category) == ("COMFYUI_REJECTED", Category.VALIDATION)
    assert "Invalid image file: example.png" in found.failure.message
    assert list(found.failure.details["node_errors"]) == ["1"]
    assert not found.server_lost


async def test_node_errors_in_a_200_are_a_failure(bench: Bench) -> None:
    """The server dropped an output that is not valid and queued the rest: that is cancelled, unless it is wanted."""
    graph = {**WAITING, "3": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}
    graph["10"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}}
    found = await failed(bench.comfy.submit(graph, ID, {}))
    assert (found.failure.code, list(found.failure.details["node_errors"])) == ("COMFYUI_NODE_ERRORS", ["3"])
    assert not bench.server.pending
    assert isinstance(await bench.follow(), answers.Broken) if bench.server.history else True
    other = prompt_id("other")
    bench.server.gate.set()
    await bench.comfy.submit(graph, other, {}, partly=True)
    assert isinstance(await bench.follow(other), answers.Succeeded)


@pytest.mark.parametrize(
    ("kind", "code", "category"),
    [
        ("RuntimeError", "COMFYUI_FAILED", Category.CODE),
        ("torch.OutOfMemoryError", "COMFYUI_OUT_OF_MEMORY", Category.RESOURCE),
    ],
)
async def test_an_execution_error_is_told_with_its_node(bench: Bench, kind: str, code: str, category: Category) -> None:
    """Node, class, exception; want of memory is a matter of resources."""
    graph: dict[str, Any] = {
        "1": {"class_type": "Broken", "inputs": {"source": 1, "type": kind, "message": "no \0 good"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    await bench.comfy.submit(graph, ID, {})
    end = await bench.follow()
    assert (end.failure.code, end.failure.category) == (code, category)
    assert end.failure.message == "ComfyUI failed at node 1 (Broken): no � good"
    assert end.failure.details["exception_type"] == kind


# ---- stopping -------------------------------------------------------------------------------------------------


async def test_a_running_prompt_is_interrupted_by_its_id(bench: Bench) -> None:
    """And is told apart from one that failed."""
    await bench.comfy.submit(WAITING, ID, {})
    await bench.server.entered.wait()
    await bench.comfy.cancel(ID)
    end = await bench.follow()
    assert (end.failure.code, end.failure.category) == ("COMFYUI_INTERRUPTED", Category.CANCELED)


async def test_a_waiting_prompt_is_taken_from_the_queue(bench: Bench) -> None:
    """What runs goes on."""
    other = prompt_id("other")
    await bench.comfy.submit(WAITING, other, {})
    await bench.server.entered.wait()
    await bench.comfy.submit(WAITING, ID, {})
    await bench.comfy.cancel(ID)
    assert not bench.server.pending
    bench.server.gate.set()
    assert isinstance(await bench.follow(other), answers.Succeeded)


async def test_nothing_is_ever_interrupted_without_an_id(bench: Bench) -> None:
    """Not even where an older build would stop whatever runs: work that has ended or is unknown is left alone."""
    other = prompt_id("other")
    await bench.comfy.submit(TEXT, ID, {})
    await bench.follow()
    await bench.comfy.submit(WAITING, other, {})
    await bench.server.entered.wait()
    await bench.comfy.cancel(ID)
    await bench.comfy.cancel(prompt_id("nobody's"))
    assert bench.server.posted("/interrupt") == []
    await bench.comfy.cancel(other)
    assert all(body == {"prompt_id": other} for body in bench.server.posted("/interrupt"))


# ---- a server that is gone, or lies ---------------------------------------------------------------------------


async def test_a_server_that_restarts_has_lost_the_prompt(bench: Bench) -> None:
    """Neither queue nor history knows it: the work may go to another server."""
    await bench.comfy.submit(WAITING, ID, {})
    await bench.server.entered.wait()
    bench.server.restart()
    found = await failed(bench.follow())
    assert (found.failure.code, found.server_lost) == ("COMFYUI_PROMPT_LOST", True)


async def test_a_server_that_is_away_for_a_moment_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request or two are no reason to do the work elsewhere."""
    monkeypatch.setattr("engine.servers.wire.RETRIES_S", (0.01,) * 1_000)
    path = "/api/jobs" if bench.server.jobs else "/queue"
    await bench.comfy.submit(WAITING, ID, {})
    await bench.server.entered.wait()
    bench.server.faults.instead[path] = double.HTML
    following = asyncio.create_task(bench.follow())
    asked = len(bench.server.asked)
    await bench.server.until(lambda: len(bench.server.asked) >= asked + 3)
    bench.server.faults.instead.clear()
    bench.server.gate.set()
    assert isinstance(await following, answers.Succeeded)


@pytest.mark.parametrize("answer", [double.HTML, double.REDIRECT], ids=["html", "redirect"])
async def test_a_server_that_answers_something_else_is_lost(
    bench: Bench, answer: Callable[[], Any], tmp_path: Path
) -> None:
    """A page to log in, a redirect: told as such, and never followed."""
    source = tmp_path / "a.png"
    source.write_bytes(b"x")
    paths = ("/prompt", "/queue", "/history", "/upload/image", "/view", "/api/jobs")
    bench.server.faults.instead |= dict.fromkeys(paths, answer)
    for doing in (
        bench.comfy.submit(TEXT, ID, {}),
        bench.comfy.upload(source, "a.png"),
        bench.comfy.cancel(ID),
        bench.follow(),
        content(bench, comfyui.Produced("9", "images", "a.png", "", "output", "a.png")),
    ):
        found = await failed(doing)
        assert (found.failure.code, found.server_lost) == ("SERVER_ANSWER_INVALID", True)


async def test_a_dead_server_is_lost() -> None:
    """Nobody listens there any more."""
    outbound = Outbound()
    async with double.served(double.ComfyUI()) as server:
        bench = Bench(server, outbound)
    for doing in (bench.comfy.submit(TEXT, ID, {}), bench.follow(), bench.comfy.cancel(ID)):
        found = await failed(doing)
        assert (found.failure.code, found.server_lost) == ("SERVER_UNREACHABLE", True)
    await outbound.close()


async def test_bodies_without_end_are_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing, an answer, a file: each is bounded."""
    monkeypatch.setattr(protocol, "MAX_LISTING", 1 << 20)
    bench.server.faults.endless |= {"/queue", "/history", "/view", "/api/jobs"}
    found = await failed(bench.comfy.state(ID))
    assert (found.failure.code, found.server_lost) == ("SERVER_ANSWER_INVALID", True)
    file = comfyui.Produced("9", "images", "a.png", "", "output", "a.png")
    found = await failed(content(bench, file, limit=1 << 20))
    assert (found.failure.code, found.server_lost) == ("FILE_TOO_LARGE", False)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\system.ini", "system.ini"),
        ("a\0b.png", "a�b.png"),
        ("line\nbreak.png", "line_break.png"),
        ("…/照" * 300 + ".png", "照.png"),
        ("照" * 300 + ".png", "照" * 40 + ".png"),
        ("..", "file"),
    ],
)
async def test_hostile_filenames_are_only_shown(bench: Bench, name: str, shown: str) -> None:
    """What the server calls a file never becomes a path: it is shown as a plain name, and asked for as it was given."""
    bench.server.faults.names = lambda real: name
    await bench.comfy.submit(TEXT, ID, {})
    end = await bench.follow()
    [file] = comfyui.produced(end.outputs).files
    assert file.name == shown
    if "\0" in name:
        assert (await failed(content(bench, file))).failure.code == "COMFYUI_FILE_GONE"
    else:
        assert await content(bench, file) == b"hello"


async def test_outputs_under_unknown_keys_and_texts_are_found(bench: Bench) -> None:
    """Images, gifs, a key that nobody knows, and text; a flag among them is no file."""
    graph: dict[str, Any] = {"1": {"class_type": "Text", "inputs": {"text": "hello"}}}
    for id, kind in enumerate(("SaveImage", "SaveGif", "SaveOdd", "PreviewImage"), 2):
        graph[str(id)] = {"class_type": kind, "inputs": {"images": ["1", 0]}}
    graph["8"] = {"class_type": "ShowText", "inputs": {"source": ["1", 0]}}
    await bench.comfy.submit(graph, ID, {})
    found = comfyui.produced((await bench.follow()).outputs)
    assert [(file.node, file.key, file.type) for file in found.files] == [
        ("2", "images", "output"),
        ("3", "gifs", "output"),
        ("4", "a_key/that nobody knows", "output"),
        ("5", "images", "temp"),
    ]
    assert found.texts == {"8": ("hello",)}
