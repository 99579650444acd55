"""``http/request`` against a real server on the loopback, well behaved and not."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from engine import clock
from engine.calls import Call, Done, LogLine
from tests.engine.nodes_bench import Bench, bench

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]] | bytes


@dataclass
class Server:
    """Answers each path with what it was told, byte for byte, and remembers the requests."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (
                    int(v)
                    for n, _, v in (line.partition(":") for line in head.split("\r\n"))
                    if n.lower() == "content-length"
                ),
                0,
            )
            self.requests.append(head + (await reader.readexactly(length)).decode())
            answer = self.answers[head.split(" ")[1].partition("?")[0]]
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(writer)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()


def answer(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()
    for task in made.serving:
        task.cancel()
    await asyncio.gather(*made.serving)
    await listening.wait_closed()


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


async def test_a_request_carries_what_it_was_told(nodes: Bench, server: Server) -> None:
    """Method, query, headers, JSON body, and the idempotency key of the node."""
    server.answers["/a"] = answer(
        b'{"ok": true}', "201 Created", Content_Type="application/json; charset=utf-8", X_One="1"
    )
    output = await nodes.done(
        "http/request",
        url=server.url + "/a?x=1",
        method="POST",
        query={"y": [2, 3], "no": None},
        headers={"X-Number": 7},
        body={"name": "größe"},
    )
    assert output["status_code"] == 201
    assert output["body"] == {"ok": True}
    assert output["headers"]["x-one"] == "1"
    assert output["url"] == server.url + "/a?x=1&y=2&y=3"
    (request,) = server.requests
    assert request.startswith("POST /a?x=1&y=2&y=3 HTTP/1.1\r\n")
    assert request.endswith('{"name":"größe"}')
    lowered = request.lower()
    for line in ("x-number: 7", "content-type: application/json", "idempotency-key: inst-1/a"):
        assert f"\r\n{line}\r\n" in lowered


@pytest.mark.parametrize(
    ("body", "form", "sent", "media_type"),
    [
        ("plain", None, "plain", "text/plain; charset=utf-8"),
        ({"a": "1 2", "b": 3}, "form", "a=1+2&b=3", "application/x-www-form-urlencoded"),
        ("plain", "json", '"plain"', "application/json"),
    ],
)
async def test_bodies_are_written_as_asked(
    nodes: Bench, server: Server, body: object, form: str | None, sent: str, media_type: str
) -> None:
    """Text, form or JSON, with the content type to match."""
    server.answers["/"] = answer()
    output = await nodes.done("http/request", url=server.url + "/", method="PUT", body=body, body_format=form)
    assert output["body"] is None
    assert server.requests[0].endswith("\r\n\r\n" + sent)
    assert f"content-type: {media_type}" in server.requests[0].lower()


@pytest.mark.parametrize(
    ("media_type", "content", "body"),
    [
        ("application/vnd.api+json", b'{"a": [1]}', {"a": [1]}),
        ("application/xml", b"<a x='1'><b>2</b><b>3</b></a>", {"a": {"@x": "1", "b": ["2", "3"]}}),
        ("text/plain; charset=latin-1", "größe".encode("latin-1"), "größe"),
        ("text/plain; charset=nonsense", b"x", "x"),
        ("", b"just text", "just text"),
    ],
)
async def test_bodies_are_read_by_their_type(
    nodes: Bench, server: Server, media_type: str, content: bytes, body: object
) -> None:
    """JSON and XML become values, text becomes text."""
    server.answers["/"] = answer(content, Content_Type=media_type)
    assert (await nodes.done("http/request", url=server.url + "/"))["body"] == body


@pytest.mark.parametrize(
    ("media_type", "content"),
    [
        ("application/json", b'{"a": NaN}'),
        ("application/json", b"<html>"),
        ("text/xml", b"<a>"),
        ("text/xml", b'<!DOCTYPE a [<!ENTITY b "cccc">]><a>&b;</a>'),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_given_as_text(
    nodes: Bench, server: Server, media_type: str, content: bytes
) -> None:
    """With a warning in the log; entities of XML are never expanded."""
    server.answers["/"] = answer(content, Content_Type=media_type)
    assert (await nodes.done("http/request", url=server.url + "/"))["body"] == content.decode()
    assert [said.level for said in nodes.said if isinstance(said, LogLine)] == ["warning"]


async def test_a_binary_body_becomes_an_artifact(nodes: Bench, server: Server) -> None:
    """The output names it, the outcome tells the journal, and the store has it."""
    server.answers["/"] = answer(b"\x89PNG\0", Content_Type="image/png")
    outcome = await nodes.run("http/request", url=server.url + "/")
    assert isinstance(outcome, Done)
    assert outcome.output["body"]["media_type"] == "image/png"
    assert [artifact.id for artifact in outcome.artifacts] == [outcome.output["body"]["artifact"]]
    assert nodes.runner.surroundings.artifacts.read_bytes(outcome.output["body"]) == b"\x89PNG\0"


@pytest.mark.parametrize(
    ("status", "code", "category", "wait"),
    [
        ("404 Not Found", "HTTP_404", "HTTP_CLIENT", None),
        ("500 Oh", "HTTP_500", "HTTP_SERVER", None),
        ("503 Later", "HTTP_503", "HTTP_SERVER", 7.0),
        ("429 Slow", "HTTP_429", "RATE_LIMIT", 7.0),
    ],
)
async def test_a_status_that_is_not_expected_fails(
    nodes: Bench, server: Server, status: str, code: str, category: str, wait: float | None
) -> None:
    """By class, with the body's beginning, and with the wait that the server asks for where it may ask."""
    server.answers["/"] = answer(b"why not", status, Retry_After="7")
    found, kind, broke = await nodes.broke("http/request", url=server.url + "/")
    assert (found, kind, broke.failure.retry_after_seconds) == (code, category, wait)
    assert broke.failure.details == {"status_code": int(status[:3]), "body": "why not"}


async def test_retry_after_may_be_a_date(nodes: Bench, server: Server) -> None:
    """A date in the future is a wait until then; one in the past none."""
    for ahead, least, most in ((60, 55, 60), (-60, 0, 0)):
        date = format_datetime(clock.now() + timedelta(seconds=ahead), usegmt=False)
        server.answers["/"] = answer(b"", "503 Later", Retry_After=date)
        _, _, broke = await nodes.broke("http/request", url=server.url + "/")
        assert broke.failure.retry_after_seconds is not None
        assert least <= broke.failure.retry_after_seconds <= most


async def test_the_expected_statuses_are_the_callers(nodes: Bench, server: Server) -> None:
    """A 404 may be fine, and a 200 may not."""
    server.answers["/"] = answer(b"", "404 Not Found")
    assert (await nodes.done("http/request", url=server.url + "/", expected_status=[404]))["status_code"] == 404
    server.answers["/"] = answer()
    assert (await nodes.broke("http/request", url=server.url + "/", expected_status=[404]))[0] == "HTTP_200"


async def test_output_mapping_picks_from_the_answer(nodes: Bench, server: Server) -> None:
    """Target paths are filled by expressions on the whole answer."""
    server.answers["/"] = answer(b'{"items": [{"id": 5}]}', Content_Type="application/json")
    picked = {"first.id": "$.body.items[0].id", "code": "$.status_code"}
    output = await nodes.done("http/request", url=server.url + "/", output_mapping=picked)
    assert output == {"first": {"id": 5}, "code": 200}


async def test_redirects_are_followed_only_if_asked(nodes: Bench, server: Server) -> None:
    """And never without end, nor to anything but http."""
    server.answers |= {
        "/a": answer(b"", "302 Found", Location="/b"),
        "/b": answer(b"there", Content_Type="text/plain"),
        "/round": answer(b"", "302 Found", Location="/round"),
        "/file": answer(b"", "302 Found", Location="file:///etc/passwd"),
    }
    assert (await nodes.done("http/request", url=server.url + "/a"))["status_code"] == 302
    assert (await nodes.done("http/request", url=server.url + "/a", follow_redirects=True))["body"] == "there"
    for path, code in (("/round", "TOO_MANY_REDIRECTS"), ("/file", "BAD_REQUEST")):
        assert (await nodes.broke("http/request", url=server.url + path, follow_redirects=True))[0] == code


async def test_a_server_that_never_answers_is_given_up(nodes: Bench, server: Server) -> None:
    """By the node's own ``timeout`` parameter, or else by the attempt's."""

    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    server.answers["/"] = silent
    url = server.url + "/"
    assert (await nodes.broke("http/request", url=url, timeout=0.1))[:2] == ("NODE_TIMEOUT", "TIMEOUT")
    outcome = await nodes.runner.run(_with_timeout(url), nodes.said.append)
    assert not isinstance(outcome, Done)
    assert (outcome.failure.code, outcome.failure.category.value) == ("HTTP_TIMEOUT", "TIMEOUT")


def _with_timeout(url: str) -> Call:
    return Call(
        "http/request", "i", "p", "a", "a", 1, {"url": url, "timeout": "100ms"}, None, "k", timedelta(seconds=30)
    )


@pytest.mark.parametrize("packed", [False, True])
async def test_an_endless_body_is_cut_off(nodes: Bench, server: Server, packed: bool) -> None:
    """10 MiB are read at most, counted after decompression; the rest is never waited for."""
    many = gzip.compress(b"\0" * 40_000_000)

    async def endless(writer: asyncio.StreamWriter) -> None:
        encoding = b"Content-Encoding: gzip\r\n" if packed else b""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + encoding + b"\r\n")
        while True:
            writer.write(many if packed else b"x" * 100_000)
            await writer.drain()

    server.answers["/"] = endless
    assert (await nodes.broke("http/request", url=server.url + "/"))[:2] == ("BODY_TOO_LARGE", "RESOURCE")


@pytest.mark.parametrize(
    ("url", "code", "category"),
    [
        ("http://127.0.0.1:1/", "HTTP_CONNECTION", "CONNECTION"),
        ("ftp://127.0.0.1/", "BAD_REQUEST", "VALIDATION"),
        ("file:///etc/passwd", "BAD_REQUEST", "VALIDATION"),
        ("no url", "BAD_REQUEST", "VALIDATION"),
        ("http://[::1", "BAD_REQUEST", "VALIDATION"),
    ],
)
async def test_a_url_that_leads_nowhere_is_told(nodes: Bench, url: str, code: str, category: str) -> None:
    """What can't be reached is CONNECTION and tried again; what is no http URL is VALIDATION and isn't."""
    assert (await nodes.broke("http/request", url=url))[:2] == (code, category)


async def test_a_broken_answer_is_a_connection_error(nodes: Bench, server: Server) -> None:
    """No HTTP, half an answer, or a header that breaks the line."""
    server.answers |= {"/junk": b"junk\r\n\r\n", "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"}
    for path in server.answers:
        assert (await nodes.broke("http/request", url=server.url + path))[1] == "CONNECTION"
    assert (await nodes.broke("http/request", url=server.url, headers={"X": "a\r\nY: b"}))[0] == "BAD_REQUEST"


async def test_nothing_is_remembered_between_requests(nodes: Bench, server: Server) -> None:
    """A cookie that one node is given is not sent by another; a password in a URL is not told."""
    server.answers["/"] = answer(b"", Set_Cookie="session=secret; Path=/")
    output = await nodes.done("http/request", url=server.url.replace("//", "//me:hush@") + "/")
    assert "hush" not in output["url"]
    await nodes.done("http/request", url=server.url + "/")
    assert "secret" not in server.requests[1]
