"""The routes around GraphQL, and what the edge adds to all of them."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from flow.errors import Conflict, Denied, Invalid, NotFound, Problem, QuotaExceeded, StorageUnavailable, WorkflowError
from graph.access import User
from mirrorflow.observability import metrics_registry
from mirrorflow.server import STATIC, Backend, Download, application, listening_socket
from tests.graph.serving import served
from tests.graph.wire import TOKEN, World, schema

PROTOCOLS = [Subprotocol("graphql-transport-ws")]
CSRF = {"x-mirrorflow-csrf": "1"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass(slots=True)
class Fake:
    """What stands behind the routes here: one artifact, an importer that remembers, checks that can be broken."""

    folder: Path
    world: World = field(default_factory=World)
    imported: list[str] = field(default_factory=list)
    refusal: WorkflowError | None = None
    broken: Exception | None = None

    async def sign_in(self, token: str) -> str | None:
        return {"one-time": TOKEN, TOKEN: TOKEN}.get(token)

    async def open_artifact(self, user: User, id: str) -> Download:
        if id != "art-1":
            raise NotFound("artifact", id)
        path = self.folder / "page.html"
        path.write_text("<script>alert(1)</script>")
        return Download(path, "text/html", "seite ü.html")

    async def import_definition(self, user: User, text: str) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.imported.append(text)
        return {"workflow": "wf-1"}

    async def check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def application(self, **options: Any) -> ASGIApp:
        backend = Backend(
            authenticate=self.world.authenticate,
            context=self.world.context,
            sign_in=self.sign_in,
            open_artifact=self.open_artifact,
            import_definition=self.import_definition,
            ready={"database": self.check},
        )
        return application(schema, backend, registry=metrics_registry(), **options)


@asynccontextmanager
async def client(fake: Fake, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(fake.application(**options), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
        yield http


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture
async def http(fake: Fake) -> AsyncIterator[httpx.AsyncClient]:
    async with client(fake) as http:
        yield http


def refused(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which is always JSON with a message."""
    error = response.json()
    assert error["message"]
    return response.status_code, error["code"]


async def test_health(http: httpx.AsyncClient, fake: Fake) -> None:
    """Live while the process answers; ready while every part is in order, else 503 and which is not."""
    assert (await http.get("/health/live")).json() == {"status": "ok"}
    assert (await http.get("/health/ready")).json() == {"status": "ok", "checks": {"database": "ok"}}
    fake.broken = StorageUnavailable("The database is locked.")
    response = await http.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "checks": {"database": "The database is locked."}}
    fake.broken = RuntimeError("the secret is 42")
    assert "secret" not in (await http.get("/health/ready")).text
    assert (await http.get("/health/live")).status_code == 200


async def test_metrics(http: httpx.AsyncClient) -> None:
    """Prometheus' text format, with GraphQL by operation; each server has its own registry."""
    await http.post("/graphql", json={"query": "{ hello }"})
    await http.post("/graphql", json={"query": "{ nothing }"})
    text = (await http.get("/metrics")).text
    assert 'mirrorflow_graphql_seconds_count{field="hello",kind="query"} 1.0' in text
    assert 'mirrorflow_graphql_errors_total{code="GRAPHQL_VALIDATION_FAILED"} 1.0' in text
    assert 'mirrorflow_http_requests_total{status="200"}' in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nowhere", (404, "NOT_FOUND")),
        ("GET", "/static/../server.py", (404, "NOT_FOUND")),
        ("GET", "/static/%2e%2e/server.py", (404, "NOT_FOUND")),
        ("POST", "/health/live", (405, "METHOD_NOT_ALLOWED")),
        ("GET", "/import", (405, "METHOD_NOT_ALLOWED")),
        ("GET", "/artifacts/art-1", (401, "UNAUTHENTICATED")),
        ("POST", "/import", (401, "UNAUTHENTICATED")),
    ],
)
async def test_errors_are_json(http: httpx.AsyncClient, method: str, path: str, expected: tuple[int, str]) -> None:
    """Wherever a request goes wrong, the answer has a code and a message."""
    assert refused(await http.request(method, path)) == expected


async def test_head_is_answered_like_get(http: httpx.AsyncClient) -> None:
    """Without a body."""
    for path in ("/", "/health/live", "/metrics"):
        response = await http.head(path)
        assert (response.status_code, response.content) == (200, b"")


async def test_every_answer_is_guarded(http: httpx.AsyncClient) -> None:
    """Security headers and a request id are on all answers, refusals included."""
    for path in ("/", "/nowhere", "/graphql?query={hello}", "/static/live.js", "/health/live"):
        headers = (await http.get(path)).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-request-id"].startswith("req-")


async def test_a_request_id_is_kept_if_it_is_harmless(http: httpx.AsyncClient) -> None:
    """A caller's id is answered with; one that could break a log line is replaced."""
    for given, kept in (("abc-1", True), ("a b", False), ("x" * 101, False), ("<b>", False)):
        answered = (await http.get("/health/live", headers={"x-request-id": given})).headers["x-request-id"]
        assert (answered == given) == kept


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),
        ("flow.example:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[", False),
    ],
)
async def test_only_known_hosts_are_answered(fake: Fake, host: str, answered: bool) -> None:
    """A page elsewhere can't reach a local server by pointing its own name at it."""
    async with client(fake, hosts=["flow.example"]) as http:
        response = await http.get("/health/live", headers={"host": host})
        assert (response.status_code == 200) == answered
        if not answered:
            assert refused(response) == (421, "HOST_REFUSED")


async def test_any_host_where_it_is_so_set(fake: Fake) -> None:
    """Behind a proxy that checks, hosts may be left open."""
    async with client(fake, hosts=None) as http:
        assert (await http.get("/health/live", headers={"host": "anything.example"})).status_code == 200


async def test_signing_a_browser_in_and_out(http: httpx.AsyncClient) -> None:
    """A token (or one-time code) becomes a cookie that scripts can't read and other sites can't send."""
    assert (await http.get("/session")).json() == {"user": None}
    response = await http.post("/session", json={"token": "one-time"}, headers=CSRF)
    assert response.status_code == 204
    cookie = response.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/"):
        assert part in cookie
    assert (await http.get("/session")).json() == {"user": "usr-1"}
    answer = await http.post("/graphql", json={"query": "{ user }"}, headers=CSRF)
    assert answer.json()["data"] == {"user": "usr-1"}
    await http.delete("/session", headers=CSRF)
    assert (await http.get("/session")).json() == {"user": None}


async def test_a_session_is_not_given_for_anything(http: httpx.AsyncClient) -> None:
    """Wrong tokens, other sites and nonsense get none."""
    assert refused(await http.post("/session", json={"token": "no"}, headers=CSRF)) == (401, "UNAUTHENTICATED")
    assert refused(await http.post("/session", json={"token": TOKEN})) == (403, "CSRF_HEADER_MISSING")
    assert refused(await http.post("/session", json=[], headers=CSRF)) == (400, "BAD_REQUEST")
    assert refused(await http.post("/session", content=b"{", headers=CSRF)) == (400, "BAD_JSON")
    assert refused(await http.post("/session", content=b" " * 5000, headers=CSRF)) == (413, "BODY_TOO_LARGE")
    evil = CSRF | {"origin": "https://evil.example"}
    assert refused(await http.post("/session", json={"token": TOKEN}, headers=evil)) == (403, "ORIGIN_REFUSED")


async def test_an_artifact_is_a_download_and_never_a_page(http: httpx.AsyncClient) -> None:
    """Whatever it holds, a browser saves it and runs nothing of it."""
    response = await http.get("/artifacts/art-1", headers=BEARER)
    assert response.text == "<script>alert(1)</script>"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert refused(await http.get("/artifacts/art-2", headers=BEARER)) == (404, "NOT_FOUND")


async def test_import(http: httpx.AsyncClient, fake: Fake) -> None:
    """The definition goes to the importer as text; what it answers comes back."""
    response = await http.post("/import", content="name: ä".encode(), headers=BEARER)
    assert response.json() == {"workflow": "wf-1"}
    assert fake.imported == ["name: ä"]
    assert refused(await http.post("/import", content=b"\xff", headers=BEARER)) == (400, "BAD_REQUEST")


async def test_an_import_has_a_limit_of_its_own(fake: Fake) -> None:
    """Larger than a GraphQL request, but not endless."""
    async with client(fake, import_bytes=2_000_000) as http:
        assert (await http.post("/import", content=b" " * 2_000_000, headers=BEARER)).status_code == 200
        response = await http.post("/import", content=b" " * 2_000_001, headers=BEARER)
        assert refused(response) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Invalid([Problem("/nodes", "NO_NODE", "There is no node.")]), 400),
        (NotFound("project", "p"), 404),
        (Conflict("Somebody was quicker."), 409),
        (Denied("workflow:write"), 403),
        (QuotaExceeded("Too many workflows."), 429),
        (StorageUnavailable("The disk is full."), 503),
    ],
)
async def test_refusals_have_their_status(
    http: httpx.AsyncClient, fake: Fake, refusal: WorkflowError, status: int
) -> None:
    """Each kind of refusal has one status; its code, message and problems are in the answer."""
    fake.refusal = refusal
    response = await http.post("/import", content=b"x", headers=BEARER)
    assert refused(response) == (status, refusal.code)
    if isinstance(refusal, Invalid):
        assert response.json()["problems"] == [{"pointer": "/nodes", "code": "NO_NODE", "message": "There is no node."}]


async def test_the_unexpected_is_masked(
    http: httpx.AsyncClient, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug answers 500 with a request id, which the log has together with the reason."""
    fake.refusal = RuntimeError("the secret is 42")  # type: ignore[assignment]
    response = await http.post("/import", content=b"x", headers=BEARER)
    assert refused(response) == (500, "INTERNAL")
    assert "secret" not in response.text
    log = capsys.readouterr().out
    assert response.json()["requestId"] in log
    assert "the secret is 42" in log


async def test_the_playground_needs_a_bundle_and_a_user(fake: Fake, tmp_path: Path) -> None:
    """Without the bundle the page says how to get it; without a user, how to sign in; GraphQL answers all the same."""
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    static = tmp_path / "static"
    static.mkdir()
    (static / "no-graphiql.html").write_text("make graphiql")
    (static / "sign-in.html").write_text("sign in")
    async with client(fake, static=static) as http:
        response = await http.get("/graphql", headers=browser)
        assert (response.status_code, response.text) == (503, "make graphiql")
        assert (await http.post("/graphql", json={"query": "{ hello }"})).json()["data"]
        (static / "graphiql").mkdir()
        (static / "graphiql" / "index.html").write_text("GraphiQL")
        response = await http.get("/graphql", headers=browser)
        assert (response.status_code, response.text) == (401, "sign in")
        http.cookies.set("mirrorflow_session", TOKEN)
        response = await http.get("/graphql", headers=browser)
        assert (response.status_code, response.text) == (200, "GraphiQL")
        assert "script-src 'self';" in response.headers["content-security-policy"]


async def test_a_sign_in_link_never_reaches_the_log(
    http: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """The access log has no query strings."""
    await http.get("/?token=very-secret")
    log = capsys.readouterr().out
    assert "request" in log
    assert "very-secret" not in log


def test_pages_hold_no_inline_script() -> None:
    """What the policy forbids would silently not run."""
    for page in STATIC.glob("*.html"):
        text = page.read_text()
        assert text.count("<script") == text.count('<script type="module" src="/static/')
        assert "style=" not in text
        assert " on" + "click" not in text
        assert "http://" not in text
        assert "https://" not in text


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


async def test_a_socket_of_another_host_is_refused(fake: Fake) -> None:
    """The Host check holds for sockets too."""
    async with served(fake.application()) as address:
        url = address.replace("http", "ws") + "/graphql"
        with pytest.raises(InvalidStatus):
            await connect("ws://evil.example/graphql", sock=connected(address), subprotocols=PROTOCOLS)
        async with connect(url, subprotocols=PROTOCOLS) as client:
            await client.send(json.dumps({"type": "connection_init", "payload": {"authorization": TOKEN}}))
            assert json.loads(await client.recv()) == {"type": "connection_ack"}


def test_a_port_in_use_is_an_oserror() -> None:
    """Whoever starts the server can say which port is taken."""
    with listening_socket("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        listening_socket("127.0.0.1", first.getsockname()[1])
