"""GraphQL over HTTP, as its specification has it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.graph.serving import served
from tests.graph.wire import TOKEN, World, client, view

GRAPHQL = "application/graphql-response+json"
LEGACY = "application/json"
AUDIT = Path(__file__).parents[2] / "web/graphiql/node_modules/graphql-http"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client(world) as http:
        yield http


async def ask(http: httpx.AsyncClient, query: str, accept: str = GRAPHQL, **members: Any) -> httpx.Response:
    return await http.post("/graphql", json={"query": query, **members}, headers={"accept": accept})


def code(response: httpx.Response) -> str:
    """The code of the answer's only error; an answer that is refused has no data."""
    answer = response.json()
    assert "data" not in answer
    [error] = answer["errors"]
    return str(error["extensions"]["code"])


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (GRAPHQL, GRAPHQL),
        (LEGACY, LEGACY),
        ("*/*", LEGACY),
        ("application/*", LEGACY),
        ("", LEGACY),
        (f"{LEGACY};q=0.5, {GRAPHQL}", GRAPHQL),
        (f"{GRAPHQL};charset=utf-8, {LEGACY};q=0.9", GRAPHQL),
    ],
)
async def test_the_client_chooses_the_media_type(http: httpx.AsyncClient, accept: str, media: str) -> None:
    """The media type with the greatest weight in Accept is what comes back."""
    response = await ask(http, "{ hello }", accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == media
    assert response.json()["data"] == {"hello": "Hello, world!"}


async def test_an_unknown_media_type_is_not_acceptable(http: httpx.AsyncClient) -> None:
    """A client that accepts nothing we have is told so."""
    response = await ask(http, "{ hello }", "image/png")
    assert (response.status_code, code(response)) == (406, "NOT_ACCEPTABLE")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"1", "BAD_REQUEST"),
        (b"null", "BAD_REQUEST"),
        (b'"x"', "BAD_REQUEST"),
        (b"true", "BAD_REQUEST"),
        (b"", "BAD_JSON"),
        (b"{", "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": NaN}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": Infinity}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": 1e999}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": "\xff"}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": "\\u0000"}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"\\u0000": 1}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": "\\ud800"}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": "\\udc00x"}}', "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": ' + b"[" * 1000 + b"]" * 1000 + b"}}", "BAD_JSON"),
        (b'{"query": "{ hello }", "variables": {"a": ' + b'{"a":' * 120 + b"1" + b"}" * 120 + b"}}", "BAD_JSON"),
        (b'[{"query": "{ hello }"}]', "BATCHING_REFUSED"),
        (b"{}", "BAD_REQUEST"),
        (b'{"query": 1}', "BAD_REQUEST"),
        (b'{"query": "{ hello }", "operationName": 1}', "BAD_REQUEST"),
        (b'{"query": "{ hello }", "variables": [1]}', "BAD_REQUEST"),
        (b'{"query": "{ hello }", "variables": "x"}', "BAD_REQUEST"),
        (b'{"query": "{ hello }", "extensions": 0}', "BAD_REQUEST"),
    ],
)
@pytest.mark.parametrize("accept", [GRAPHQL, LEGACY])
async def test_what_is_no_request_is_refused(http: httpx.AsyncClient, body: bytes, expected: str, accept: str) -> None:
    """A body that is not a GraphQL request gets 400 and a code, whichever media type is asked for."""
    headers = {"content-type": LEGACY, "accept": accept}
    response = await http.post("/graphql", content=body, headers=headers)
    assert (response.status_code, code(response)) == (400, expected)


async def test_an_escaped_backslash_before_u0000_is_not_a_nul(http: httpx.AsyncClient) -> None:
    """Text that merely spells \\u0000 passes."""
    body = b'{"query": "query($n: String!) { hello(name: $n) }", "variables": {"n": "\\\\u0000"}}'
    response = await http.post("/graphql", content=body, headers={"content-type": LEGACY})
    assert response.json()["data"] == {"hello": "Hello, \\u0000!"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("", "GRAPHQL_PARSE_FAILED"),
        ("{ nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("query A { hello } query B { hello }", "OPERATION_NAME_MISSING"),
        ("fragment F on Query { hello }", "GRAPHQL_VALIDATION_FAILED"),
        ("query($n: Int!) { square(n: $n) }", "BAD_USER_INPUT"),
        ("subscription { count }", "SUBSCRIPTION_NEEDS_SOCKET"),
    ],
)
async def test_a_request_error_has_no_data(http: httpx.AsyncClient, query: str, expected: str) -> None:
    """What fails before execution is answered 400 with errors only."""
    response = await ask(http, query)
    assert (response.status_code, code(response)) == (400, expected)


async def test_the_legacy_media_type_answers_200_to_a_well_formed_request(http: httpx.AsyncClient) -> None:
    """application/json promises 200 even where the document is invalid; still without data."""
    for query in ("{", "{ nothing }", "query($n: Int!) { square(n: $n) }"):
        response = await ask(http, query, LEGACY)
        assert response.status_code == 200
        assert code(response)


async def test_an_operation_is_chosen_by_name(http: httpx.AsyncClient) -> None:
    """Of several operations the named one runs; a name that fits none is an error."""
    both = "query A { hello } query B { square(n: 3) }"
    assert (await ask(http, both, operationName="B")).json()["data"] == {"square": 9}
    response = await ask(http, both, operationName="C")
    assert (response.status_code, code(response)) == (400, "OPERATION_NOT_FOUND")


async def test_get_reads_and_never_writes(http: httpx.AsyncClient, world: World) -> None:
    """A query may come in the address; a mutation is refused there and has no effect."""
    parameters = {"query": "query($n: Int!) { square(n: $n) }", "variables": '{"n": 4}'}
    assert (await http.get("/graphql", params=parameters)).json()["data"] == {"square": 16}
    response = await http.get("/graphql", params={"query": "mutation { produce }"})
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert world.produced == 0
    assert (await http.get("/graphql")).status_code == 400
    assert (await http.get("/graphql", params={"query": "{ hello }", "variables": "["})).status_code == 400
    assert (await http.put("/graphql", json={"query": "{ hello }"})).status_code == 405


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_only_json_is_read(http: httpx.AsyncClient, kind: str) -> None:
    """Bodies that a form on another site could send are not looked at."""
    response = await http.post("/graphql", content=b'{"query": "{ hello }"}', headers={"content-type": kind})
    assert (response.status_code, code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_large_body_is_refused_while_it_arrives(world: World) -> None:
    """A body over the limit is refused once the limit is passed, not when it has been read whole."""
    async with served(view(world)) as address, httpx.AsyncClient(base_url=address) as http:
        for size in (1024 * 1024 + 1, 50 * 1024 * 1024):
            response = await http.post("/graphql", content=b" " * size, headers={"content-type": LEGACY})
            assert (response.status_code, code(response)) == (413, "BODY_TOO_LARGE")
        reader, writer = await asyncio.open_connection(*address.removeprefix("http://").split(":"))
        writer.write(b"POST /graphql HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n100001\r\n" + b" " * 0x100001 + b"\r\n")
        # The body has not ended, and never will: the answer comes all the same.
        assert b"413" in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_errors_that_resolvers_raise(http: httpx.AsyncClient) -> None:
    """A refusal keeps its code and details and the rest of the data; the answer is still 200."""
    response = await ask(http, "{ hello invalid conflict }")
    assert response.status_code == 200
    answer = response.json()
    assert answer["data"] == {"hello": "Hello, world!", "invalid": None, "conflict": None}
    invalid, conflict = answer["errors"]
    assert invalid["extensions"]["code"] == "VALIDATION_FAILED"
    assert [problem["pointer"] for problem in invalid["extensions"]["problems"]] == ["/a", "/b"]
    assert conflict["extensions"] == {"code": "CONFLICT", "details": {"current": "1.0.1"}}
    assert (await ask(http, "{ required }")).json()["data"] is None


@pytest.mark.parametrize("field", ["broken", "brokenScalar"])
async def test_the_unexpected_is_masked(
    http: httpx.AsyncClient, field: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug of ours shows the client nothing but a request id, which is in the log together with the reason."""
    response = await ask(http, f"{{ {field} hello }}")
    [error] = response.json()["errors"]
    assert error["extensions"] == {"code": "INTERNAL", "requestId": "-"}
    assert "secret" not in error["message"]
    assert response.json()["data"]["hello"]
    assert "request failed" in capsys.readouterr().out + caplog.text


async def test_every_error_is_named_and_there_are_few(http: httpx.AsyncClient) -> None:
    """Each error has a code; beyond twenty there are no more."""
    response = await ask(http, "{" + " ".join(f"nothing{n}" for n in range(20)) + "}")
    assert len(response.json()["errors"]) == 20
    aliases = " ".join(f"a{n}: invalid" for n in range(15))
    both = "{" + aliases + " things(first: 10) { nodes { id } } }"
    assert all(error["extensions"]["code"] for error in (await ask(http, both)).json()["errors"])


async def test_an_operation_that_takes_too_long_is_stopped(world: World) -> None:
    """Past its time an operation is cancelled and answered TIMEOUT; a resolver that waits on purpose asks for more."""
    async with client(world, execution_seconds=0.05) as http:
        response = await ask(http, "{ hang }")
        assert (response.status_code, code(response)) == (504, "TIMEOUT")
        assert world.closed == ["hang"]
        world.started.clear()
        waiting = asyncio.create_task(ask(http, "{ hang(extend: 60) }"))
        await world.started.wait()
        asyncio.get_running_loop().call_later(0.1, world.go.set)
        assert (await waiting).json()["data"] == {"hang": "went"}


async def test_who_may_ask(world: World) -> None:
    """No token is nobody, a wrong token is refused, and only who is signed in reads the schema."""
    async with client(world) as http:
        assert (await ask(http, "{ user }")).json()["data"] == {"user": "usr-1"}
        http.headers["authorization"] = "Bearer wrong"
        response = await ask(http, "{ hello }")
        assert (response.status_code, code(response)) == (401, "UNAUTHENTICATED")
        del http.headers["authorization"]
        assert (await ask(http, "{ user }")).json()["data"] == {"user": None}
        assert code(await ask(http, "{ __schema { queryType { name } } }")) == "UNAUTHENTICATED"
        assert code(await ask(http, '{ ...F } fragment F on Query { __type(name: "X") { name } }')) == "UNAUTHENTICATED"


async def test_a_cookie_alone_may_not_write(world: World) -> None:
    """A POST signed in by cookie needs the header that another site's page can't send, and our own origin."""
    async with client(world) as http:
        del http.headers["authorization"]
        http.cookies.set("mirrorflow_session", TOKEN)
        response = await ask(http, "mutation { produce }")
        assert (response.status_code, code(response)) == (403, "CSRF_HEADER_MISSING")
        http.headers["x-mirrorflow-csrf"] = "1"
        assert (await ask(http, "mutation { produce }")).json()["data"] == {"produce": 1}
        http.headers["origin"] = "https://evil.example"
        response = await ask(http, "mutation { produce }")
        assert (response.status_code, code(response)) == (403, "ORIGIN_REFUSED")
        for friendly in ("http://test", "https://friend.example"):
            http.headers["origin"] = friendly
            assert (await ask(http, "{ hello }")).status_code == 200


async def test_contexts_are_made_per_operation(http: httpx.AsyncClient, world: World) -> None:
    """Loaders in a context never see two requests."""
    await ask(http, "{ hello }")
    await ask(http, "{ hello }")
    assert world.contexts == 2


async def test_the_audit_suite_finds_nothing(world: World) -> None:
    """Every check of the npm package graphql-http (MUST, SHOULD and MAY) holds."""
    node = shutil.which("node")
    if node is None or not AUDIT.exists():
        pytest.skip("needs Node and web/graphiql/node_modules (`make graphiql`)")
    script = """
        import { auditServer } from 'graphql-http';
        const results = await auditServer({ url: process.argv[1] + '/graphql', fetchFn: (url, init = {}) =>
            fetch(url, { ...init, headers: { ...init.headers, authorization: 'Bearer ' + process.argv[2] } }) });
        for (const { name, status, reason } of results) console.log(JSON.stringify({ name, status, reason }));
    """
    async with served(view(world)) as address:
        process = await asyncio.create_subprocess_exec(
            node, "--input-type=module", "-e", script, address, TOKEN,
            cwd=AUDIT.parents[1], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    results = [json.loads(line) for line in out.splitlines()]
    assert len(results) > 50, err.decode()
    assert [result for result in results if result["status"] != "ok"] == []
