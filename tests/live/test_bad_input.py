"""Bad input through the public interface of a real server: a clear typed refusal, nothing half written, no harm."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLInputObjectType, GraphQLNonNull, build_schema, get_named_type
from websockets.exceptions import ConnectionClosed

from tests.live.mischief import (
    CREATE,
    PROBLEMS,
    REFUSAL,
    START,
    Health,
    ask,
    counts,
    flow,
    living,
    plugin,
    run,
    send,
    step,
    stored,
    stream_refusal,
)
from tests.live.server import ROOT, Server, wait_until

PLUGIN = '''
"""Handlers that do what no handler should."""

import sys
import time

from mirrorflow import NodeError, Placement, node


@node("odd/object", title="o")
def an_object(ctx):
    """An object."""
    return {"deep": [1, object()]}


@node("odd/nan", title="o")
async def not_a_number(ctx):
    """NaN."""
    return {"x": float("nan")}


@node("odd/set", title="o")
def a_set(ctx):
    """A set."""
    return {"s": {1, 2}}


@node("odd/cycle", title="o")
def a_cycle(ctx):
    """A list that contains itself."""
    items = []
    items.append(items)
    return items


@node("odd/key", title="o")
def a_key(ctx):
    """A key that is no text."""
    return {1: 2}


@node("odd/surrogate", title="o")
def a_surrogate(ctx):
    """Half a character."""
    return "\\ud800"


@node("odd/nul", title="o")
def a_nul(ctx):
    """A NUL."""
    return ["\\0"]


@node("odd/huge", title="o")
def huge(ctx):
    """20 MB."""
    return "x" * 20_000_000


@node("odd/number", title="o")
def number(ctx):
    """A number of 20,000 digits."""
    return 10 ** 20_000


@node("odd/exit", title="o")
def leaves(ctx):
    """Ends its process, or tries to."""
    sys.exit(3)


@node("odd/exit-async", title="o")
async def leaves_async(ctx):
    """Ends its process, or tries to."""
    raise SystemExit(3)


@node("odd/interrupt-async", title="o")
async def interrupts_async(ctx):
    """As control-C would."""
    raise KeyboardInterrupt


@node("odd/exit-process", title="o", placement=Placement.PROCESS)
def leaves_process(ctx):
    """Ends its process."""
    import os
    os._exit(3)


@node("odd/object-process", title="o", placement=Placement.PROCESS)
def object_process(ctx):
    """An object out of a process."""
    return object()


@node("odd/block", title="o")
def blocks(ctx):
    """Blocks its thread."""
    time.sleep(1.0)
    return "slept"


class Unprintable(Exception):
    """Can't even be printed."""

    def __str__(self):
        raise ValueError("no")


@node("odd/unprintable", title="o")
def unprintable(ctx):
    """Raises what can't be printed."""
    raise Unprintable


@node("odd/message", title="o")
def message(ctx):
    """Raises a text that no database takes."""
    raise ValueError("\\ud800 \\0 " + "x" * 100_000)


@node("odd/wait", title="o")
def waits(ctx):
    """Wants to be tried again never, or in ages."""
    after = float(ctx.parameters["after"])
    raise NodeError("later", category="CONNECTION", retry_after_seconds=after, details={"x": float("nan"), "y": {1}})


@node("odd/words", title="o")
def words(ctx):
    """Gives an error in place of a text."""
    raise NodeError(ValueError("inner"), code=3)


@node("odd/log", title="o")
def logs(ctx):
    """Logs what no database takes."""
    ctx.log.info("\\ud800\\0" + "x" * 100_000, thing=object(), nan=float("nan"))
    ctx.progress(float("nan"), float("inf"), "\\0")
    return "logged"
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the module, with a plugin of odd handlers; its allowed root is ``files`` beside the data."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "plugin").mkdir()
    path = plugin(folder / "plugin", "odd_nodes", PLUGIN)
    (folder / "files").mkdir()
    (folder / "secret.txt").write_text("secret")
    env = {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "MIRRORFLOW_ALLOWED_ROOTS": str(folder / "files")}
    with living(folder / "data", **env) as running:
        yield running


@pytest.fixture(scope="module")
def health(server: Server) -> Health:
    """The proof that is asked for after each test."""
    return Health(server)


@pytest.fixture
def files(server: Server) -> Path:
    """The one folder that nodes may touch."""
    return server.data_dir.parent / "files"


@pytest.fixture(autouse=True)
async def unharmed(health: Health) -> AsyncIterator[None]:
    """After each test the server is as well as before."""
    yield
    await health.check()


# ---- the request itself

QUERY = b'{"query": "query ($w: JSON) { __typename }", "variables": {"w": %s}}'
NESTED = (
    b'{"query": "mutation ($i: InstanceStartInput!) { instanceStart(input: $i) { __typename } }", '
    b'"variables": {"i": {"workflow": {"name": "x"}, "input": {"a": [%s]}}}}'
)


@pytest.mark.parametrize(
    "value",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b'"\\ud800"',
        b'"\\udc00x"',
        b'"\\u0000"',
        b'{"\\u0000": 1}',
        b'"\xff"',
        b"{",
        b"",
        b"[" * 50_000,
        b"[" * 200 + b"]" * 200,
        b"01",
        b"'a'",
        b"1" + b"0" * 5_000,
        b"1e999",
    ],
    ids=lambda value: repr(value[:12]),
)
@pytest.mark.parametrize("template", [QUERY, NESTED], ids=["variable", "nested"])
async def test_what_is_no_json_is_refused(server: Server, template: bytes, value: bytes) -> None:
    """NaN, infinities, broken Unicode, NUL and the like are refused by name, alone and nested in other JSON."""
    answer = await send(server, template % (value or b"nothing"))
    assert answer.code in ("BAD_JSON", "BAD_USER_INPUT"), answer
    assert answer.status in (200, 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b'"x"',
        b"{}",
        b'{"query": 3}',
        b'{"query": "{a}", "variables": 3}',
        b"\0",
        b"\xff\xfe",
        b'{"query": ""}',
        b'{"query": "{"}',
        b'{"query": "{ nothing }"}',
        b'{"query": "{ health { status } }", "operationName": "x"}',
        b'[{"query": "{ health { status } }"}]',
        b'{"query": "query ($a: JSON!) { __typename }"}',
    ],
)
async def test_what_is_no_request_is_refused(server: Server, body: bytes) -> None:
    """A body that is no GraphQL request is refused with a code and a sentence."""
    answer = await send(server, body)
    assert answer.code
    assert answer.status in (200, 400)


@pytest.mark.parametrize(
    "literal", ["1e999", '"\\u0000"', '"\\uD800"', "{a: [1e999]}", '{a: {b: "\\u0000"}}', "$nothing"]
)
async def test_bad_literals_in_a_document_are_refused(server: Server, literal: str) -> None:
    """What JSON can't hold is refused in a GraphQL literal too."""
    document = f'mutation {{ instanceStart(input: {{workflow: {{name: "x"}}, input: {literal}}}) {{ __typename }} }}'
    answer = await ask(server, document)
    assert answer.code, answer


@pytest.mark.parametrize("path", ["/graphql", "/import"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_50_mb_is_refused(server: Server, path: str, chunked: bool) -> None:
    """50 MB are refused, told in advance or not, and the limit is named."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 1_000_000

    answer = await send(server, pieces() if chunked else b"x" * 50_000_000, path)
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")
    assert "bytes" in answer.message


async def test_a_socket_message_of_50_mb_closes_only_its_socket(server: Server) -> None:
    """A frame over the limit ends its socket with 1009."""
    async with server.socket() as socket:
        with suppress(ConnectionClosed):
            await socket.send("x" * 50_000_000)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is None or closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 4400),
        ("[]", 4400),
        ('{"type": 3}', 4400),
        ('{"type": "nothing"}', 4400),
        ('{"type": "subscribe"}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": {"query": 3}}', 4400),
        ('{"type": "x", "v": NaN}', 4400),
        ('{"type": "ping", "payload": "\\ud800"}', 4400),
        ('{"type": "connection_init"}', 4429),
    ],
)
async def test_bad_socket_messages_close_the_socket_with_a_reason(server: Server, message: str, code: int) -> None:
    """What is not of the protocol closes the socket with the protocol's code and a reason."""
    async with server.socket() as socket:
        await socket.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code
    assert closed.value.rcvd.reason


REGISTER = f"mutation ($v: ServerRegisterInput!) {{ serverRegister(input: $v) {{ {PROBLEMS} }} }}"
BATCH = f"mutation ($v: BatchStartInput!) {{ batchStart(input: $v) {{ {REFUSAL} }} }}"
WRONG = [
    ("query ($v: ID!) { instance(id: $v) { id } }", {"a": 1}),
    ("query ($v: ID!) { instance(id: $v) { id } }", 1.5),
    ("query ($v: ID!) { instance(id: $v) { id } }", True),
    ("query ($v: ID!) { instance(id: $v) { id } }", None),
    ("query ($v: Int!) { instances(first: $v) { totalCount } }", "ten"),
    ("query ($v: Int!) { instances(first: $v) { totalCount } }", 2**40),
    ("query ($v: Int!) { instances(first: $v) { totalCount } }", 1.5),
    ("query ($v: InstanceWhere!) { instances(where: $v) { totalCount } }", {"status": {"eq": "SLEEPING"}}),
    ("query ($v: InstanceWhere!) { instances(where: $v) { totalCount } }", {"nothing": 1}),
    ("query ($v: InstanceWhere!) { instances(where: $v) { totalCount } }", [1]),
    ("query ($v: InstanceWhere!) { instances(where: $v) { totalCount } }", {"createdAt": {"gte": "yesterday"}}),
    ("query ($v: InstanceWhere!) { instances(where: $v) { totalCount } }", {"createdAt": {"gte": "2026-11-21T08:00"}}),
    ("query ($v: InstanceOrder!) { instances(orderBy: $v) { totalCount } }", "SIDEWAYS"),
    ('query ($v: SemVer!) { workflowVersion(workflow: "w", version: $v) { id } }', "one"),
    ("query ($v: WorkerWhere!) { workers(where: $v) { totalCount } }", {"state": {"eq": "ASLEEP"}}),
    ("query ($v: WorkerWhere!) { workers(where: $v) { totalCount } }", {"label": {"eq": "gpu"}}),
    ("query ($v: ServerWhere!) { servers(where: $v) { totalCount } }", {"status": {"eq": "ASLEEP"}}),
    ("query ($v: ServerWhere!) { servers(where: $v) { totalCount } }", {"enabled": {"eq": "yes"}}),
    (REGISTER, {"name": "a", "url": "http://h", "type": "FTP"}),
    (REGISTER, {"name": "a", "url": ["http://h"], "type": "HTTP"}),
    (REGISTER, {"name": "a", "url": "http://h", "type": "HTTP", "batchSize": "many"}),
    (REGISTER, {"name": "a", "url": "http://h", "type": "HTTP", "batchSize": 2**40}),
    ("query ($v: [ID!]!) { nodes(ids: $v) { id } }", [None]),
    ("query ($v: [ID!]!) { nodes(ids: $v) { id } }", ["a"] * 5_000),
    ("query ($v: DefinitionInput!) { definitionValidate(definition: $v) { code } }", {}),
    ("query ($v: DefinitionInput!) { definitionValidate(definition: $v) { code } }", {"json": {}, "text": ""}),
    ("query ($v: TaskWhere!) { tasks(where: $v) { totalCount } }", {"status": {"eq": "created"}}),
    ("query ($v: TaskWhere!) { tasks(where: $v) { totalCount } }", {"createdAt": {"gte": "yesterday"}}),
    ("query ($v: TaskOrder!) { tasks(orderBy: $v) { totalCount } }", "SIDEWAYS"),
    ("query ($v: BatchInput!) { serverCheck(input: $v) { available } }", {"workflow": {"name": "a"}}),
    ("query ($v: BatchInput!) { serverCheck(input: $v) { available } }", {"workflow": {}, "targetFolders": ["a"]}),
    (BATCH, {"workflow": {"name": "a"}, "targetFolders": "a", "onItemError": "shrug"}),
    (BATCH, {"workflow": {"name": "a"}, "targetFolders": [None]}),
    (BATCH, {"workflow": {"name": "a"}, "targetFolders": ["a"], "timeout": "soon"}),
    (BATCH, {"workflow": {"name": "a"}, "targetFolders": ["a"], "itemRetries": 1.5}),
    (BATCH, {"workflow": {"name": "a"}, "targetFolders": ["a"], "servers": "a", "selectedServer": "b"}),
    (START.replace("$input:", "$v:").replace("$input)", "$v)"), {"workflow": {"id": "a", "name": "b"}}),
    (START.replace("$input:", "$v:").replace("$input)", "$v)"), {"workflow": {}}),
    (START.replace("$input:", "$v:").replace("$input)", "$v)"), {"workflow": {"id": "a"}, "wait": "soon"}),
    (START.replace("$input:", "$v:").replace("$input)", "$v)"), {"workflow": {"id": "a"}, "timeout": -5}),
    (START.replace("$input:", "$v:").replace("$input)", "$v)"), {"workflow": {"id": "a"}, "labels": [{"name": 1}]}),
]


@pytest.mark.parametrize(("query", "value"), WRONG)
async def test_wrong_types_are_named(server: Server, query: str, value: Any) -> None:
    """A value of the wrong type is refused with a code, and the message names what was expected or the place."""
    before = await counts(server)
    answer = await ask(server, query, {"v": value})
    assert answer.code in ("BAD_USER_INPUT", "BAD_PAGE", "BAD_REQUEST", "VALIDATION_FAILED"), answer
    assert len(answer.message) > 15
    assert await counts(server) == before


# ---- unknown ids

UNKNOWN = [
    "wf-0",
    "inst-0000000000000000000000000",
    "",
    "x" * 10_000,
    "node-inst.a[0]/b",
    "wfv-ü😀",
    "'; DROP TABLE instances; --",
]
QUERIES = {
    "node": "query ($id: ID!) { it: node(id: $id) { id } }",
    "nodes": "query ($id: ID!) { it: nodes(ids: [$id]) { id } }",
    "workflow": "query ($id: ID!) { it: workflow(id: $id) { id } }",
    "workflowVersion": "query ($id: ID!) { it: workflowVersion(id: $id) { id } }",
    "workflowDiff": "query ($id: ID!) { it: workflowDiff(from: $id, to: $id) { identical } }",
    "instance": "query ($id: ID!) { it: instance(id: $id) { id } }",
    "instanceDiff": "query ($id: ID!) { it: instanceDiff(a: $id, b: $id) { __typename } }",
    "worker": "query ($id: ID!) { it: worker(id: $id) { id } }",
    "server": "query ($id: ID!) { it: server(id: $id) { id } }",
    "task": "query ($id: ID!) { it: task(id: $id) { id } }",
    "taskExecution": "query ($id: ID!) { it: taskExecution(id: $id) { id } }",
    "debugEvaluate": """
        query ($id: ID!) { it: debugEvaluate(instance: $id, expression: "a") { ... on UserError { code } } }
    """,
}
IDS = {"id", "workflow", "version", "baseVersion"}
SUBSCRIPTIONS = {
    "instanceEvents": "subscription ($id: ID!) { instanceEvents(id: $id) { seq } }",
    "instanceUpdated": "subscription ($id: ID!) { instanceUpdated(id: $id) { id } }",
    "nodeExecutionUpdated": "subscription ($id: ID!) { nodeExecutionUpdated(instance: $id) { id } }",
    "nodeLogs": 'subscription ($id: ID!) { nodeLogs(instance: $id, node: "a") { seq } }',
    "taskUpdated": "subscription ($id: ID!) { taskUpdated(id: $id) { id } }",
    "serverUpdated": "subscription ($id: ID!) { serverUpdated(ids: [$id]) { id } }",
    "workerUpdated": "subscription ($id: ID!) { workerUpdated(ids: [$id]) { id } }",
}


def mutations() -> dict[str, dict[str, Any]]:
    """For each mutation that takes an id: its input with every id unknown."""
    schema = build_schema((ROOT / "schema.graphql").read_text())
    assert schema.mutation_type is not None
    found: dict[str, dict[str, Any]] = {}
    for name, field in schema.mutation_type.fields.items():
        kind = get_named_type(field.args["input"].type)
        assert isinstance(kind, GraphQLInputObjectType)
        ids = {key: "ID" for key, value in kind.fields.items() if get_named_type(value.type).name == "ID"}
        if name == "instanceStart":
            found[name] = {"workflow": {"id": "ID"}}
        elif ids:
            more = {"definition": {"json": flow("x", step("core/noop"))}} if "definition" in kind.fields else {}
            needed = {
                key: SAMPLES.get(get_named_type(value.type).name, [])
                for key, value in kind.fields.items()
                if isinstance(value.type, GraphQLNonNull) and not value.default
            }
            found[name] = needed | ids | more | ({"name": "other"} if "name" in kind.fields else {})
    return found


#: What mutations need besides ids; anything else that they need is a list.
SAMPLES: dict[str, Any] = {
    "String": "a",
    "Boolean": True,
    "Int": 1,
    "JSON": None,
    "ServerStatus": "OFFLINE",
    "TaskStatus": "RUNNING",
}


@pytest.mark.parametrize("unknown", UNKNOWN, ids=lambda text: text[:12])
@pytest.mark.parametrize("name", QUERIES)
async def test_queries_of_unknown_ids(server: Server, name: str, unknown: str) -> None:
    """An id that names nothing gives null (or NOT_FOUND where null is no answer)."""
    answer = await ask(server, QUERIES[name], {"id": unknown})
    if answer.code is None:
        assert answer.body["data"]["it"] in (None, [None], {"code": "NOT_FOUND"})
    else:
        assert answer.code == "NOT_FOUND"


async def test_mutations_of_unknown_ids(server: Server) -> None:
    """Every mutation that takes an id says NOT_FOUND, names it, and writes nothing."""
    before = await counts(server)
    table = mutations()
    assert len(table) >= 14
    for name, input in table.items():
        for unknown in UNKNOWN:
            given = json.loads(json.dumps(input).replace('"ID"', json.dumps(unknown)))
            kind = name[0].upper() + name[1:] + "Input"
            answer = await ask(server, f"mutation ($i: {kind}!) {{ {name}(input: $i) {{ {REFUSAL} }} }}", {"i": given})
            assert answer.code == "NOT_FOUND", (name, unknown, answer)
    assert await counts(server) == before


@pytest.mark.parametrize("name", SUBSCRIPTIONS)
async def test_subscriptions_to_unknown_ids(server: Server, name: str) -> None:
    """A stream of nothing ends with NOT_FOUND, on a socket that stays open for others."""
    for unknown in UNKNOWN:
        assert await stream_refusal(server, SUBSCRIPTIONS[name], {"id": unknown}) == "NOT_FOUND"


def test_every_id_is_tried() -> None:
    """Whatever query or subscription takes an id is in the tables above."""
    schema = build_schema((ROOT / "schema.graphql").read_text())
    assert schema.query_type is not None
    assert schema.subscription_type is not None

    def takes_id(field: Any) -> bool:
        return any(get_named_type(argument.type).name == "ID" for argument in field.args.values())

    assert {name for name, field in schema.query_type.fields.items() if takes_id(field)} == set(QUERIES)
    assert {name for name, field in schema.subscription_type.fields.items() if takes_id(field)} == set(SUBSCRIPTIONS)


# ---- pages and cursors

PAGES = [
    {"first": 0},
    {"first": -1},
    {"first": 101},
    {"last": 0},
    {"last": 101},
    {"first": 1, "last": 1},
    {"first": 1, "after": "junk"},
    {"first": 1, "after": ""},
    {"first": 1, "after": "AAAA"},
    {"first": 1, "after": "ü" * 5_000},
    {"last": 1, "before": "eyJhIjoxfQ=="},
    {"first": 1, "before": "x"},
    {"last": 1, "after": "x"},
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page)[:40])
@pytest.mark.parametrize("list_", ["instances", "workflows", "workers", "servers", "tasks"])
async def test_bad_pages_are_refused(server: Server, list_: str, page: dict[str, Any]) -> None:
    """Sizes out of range, both ends at once and cursors of nobody are refused by name."""
    query = (
        "query ($first: Int, $last: Int, $after: String, $before: String) "
        f"{{ {list_}(first: $first, last: $last, after: $after, before: $before) {{ nodes {{ id }} }} }}"
    )
    answer = await ask(server, query, page)
    assert answer.code in ("BAD_PAGE", "BAD_CURSOR"), answer


async def test_a_cursor_of_another_list_is_refused(server: Server) -> None:
    """A cursor of one order or list is not one of another."""
    await stored(server, flow("cursor", step("core/noop")))
    data = await server.graphql("{ workflows(first: 1) { pageInfo { endCursor } } }")
    cursor = data["workflows"]["pageInfo"]["endCursor"]
    for other in ("workflows(first: 1, orderBy: NAME_ASC, after: $c)", "instances(first: 1, after: $c)"):
        answer = await ask(server, f"query ($c: String) {{ {other} {{ nodes {{ id }} }} }}", {"c": cursor})
        assert answer.code == "BAD_CURSOR", (other, answer)


@pytest.mark.parametrize(
    "stream",
    [
        "instanceEvents(id: $id, after: -1)",
        "nodeExecutionUpdated(instance: $id, after: -1)",
        'nodeLogs(instance: $id, node: "a", after: -1)',
        "instanceChanges(after: -1)",
        "tasksUpdated(after: -1)",
        "instanceChanges(first: 0)",
        "instanceChanges(first: 501)",
        f"workerUpdated(ids: {json.dumps(['x'] * 101)})",
        f"serverUpdated(ids: {json.dumps(['x'] * 101)})",
    ],
)
async def test_bad_stream_cursors_are_refused(server: Server, stream: str) -> None:
    """A negative cursor, or a size out of range, ends the stream with a code."""
    workflow = await stored(server, flow(f"stream-{abs(hash(stream))}", step("core/noop")))
    instance = await run(server, workflow)
    variables = "($id: ID!)" if "$id" in stream else ""
    query = f"subscription {variables} {{ {stream} {{ __typename }} }}"
    assert await stream_refusal(server, query, {"id": instance["id"]}) in ("BAD_CURSOR", "BAD_PAGE")


async def test_a_cursor_beyond_the_end_completes(server: Server) -> None:
    """An ended instance has nothing behind its end."""
    workflow = await stored(server, flow("beyond", step("core/noop")))
    instance = await run(server, workflow)
    for stream in (
        "instanceEvents(id: $id, after: 1000000)",
        "nodeExecutionUpdated(instance: $id, after: 1000000)",
        'nodeLogs(instance: $id, node: "a", after: 1000000)',
    ):
        async with asyncio.timeout(5):
            seen = [
                data
                async for data in server.subscribe(
                    f"subscription ($id: ID!) {{ {stream} {{ __typename }} }}", {"id": instance["id"]}
                )
            ]
        assert seen == []


# ---- definitions


async def test_6000_nodes_are_refused(server: Server) -> None:
    """More nodes than allowed are one clear problem, by import and by mutation; nothing is stored."""
    before = await counts(server)
    definition = flow("too-many", *(step("core/noop", f"n{i}") for i in range(6_000)))
    slim = definition | {"nodes": [{"id": n["id"], "type": n["type"]} for n in definition["nodes"]]}
    created = await ask(server, CREATE, {"definition": slim})
    imported = await send(server, json.dumps(definition).encode(), "/import")
    for answer in (created, imported):
        assert answer.code == "VALIDATION_FAILED"
        assert [problem["code"] for problem in answer.problems] == ["TOO_MANY_NODES"]
        assert "5,000" in answer.problems[0]["message"] or "5000" in answer.problems[0]["message"]
    assert await counts(server) == before


async def test_ten_mistakes_are_ten_problems(server: Server) -> None:
    """A definition with ten different mistakes is told all of them at once, each with its place."""
    definition = {
        "name": "n" * 300,
        "colour": "blue",
        "triggers": [{"id": "t", "type": "telepathy"}],
        "nodes": [
            {"id": "a", "type": "core/nop"},
            {"id": "a", "type": "core/noop"},
            {"id": "b", "type": "core/noop", "timeout": "soon"},
            {"id": "c", "type": "core/noop", "join": "some"},
            {"id": "d", "type": "core/log", "parameters": {"message": "{{ nodes.nobody.output }}"}},
            {"id": "e", "type": "core/fail", "parameters": {"message": 3}},
            {"id": "f", "type": "core/noop"},
            {"id": "g", "type": "core/noop"},
        ],
        "edges": [
            {"source": "a", "target": "zz"},
            {"source": "b", "target": "b"},
            {"source": "f", "target": "g", "condition": "1 +"},
        ],
    }
    answer = await ask(server, CREATE, {"definition": definition})
    assert answer.code == "VALIDATION_FAILED"
    codes = {problem["code"] for problem in answer.problems}
    assert len(codes) >= 10, answer.problems
    assert len({problem["pointer"] for problem in answer.problems}) >= 10
    assert all(len(problem["message"]) > 10 for problem in answer.problems)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "a: [",
        "a: &x [*x]",
        "name: x\nname: y",
        "!!python/object/apply:os.system [ls]",
        "name: .nan",
        "name: x\ntriggers: []\nnodes: [{id: a, type: core/noop, parameters: {x: .inf}}]",
        '{"name": NaN}',
        '{"name": "\\ud800"}',
        'name: "\\0"',
        "&a [" + "*a," * 3,
        "a: " + "[" * 5_000,
        "&a [x,x,x,x,x,x,x,x,x]\n" * 3,
        "\x01",
        "name: x\nnodes: 3\ntriggers: x",
    ],
    ids=lambda text: repr(text[:20]),
)
async def test_documents_that_are_none(server: Server, text: str) -> None:
    """What is no definition is told so with problems that point to the place, by import and by validation."""
    before = await counts(server)
    imported = await send(server, text.encode(), "/import")
    assert imported.code in ("VALIDATION_FAILED", "BAD_REQUEST"), imported
    assert imported.status == 400
    query = "query ($text: String!) { definitionValidate(definition: {text: $text}) { code pointer message } }"
    asked = await send(server, json.dumps({"query": query, "variables": {"text": text}}).encode())
    assert asked.code is not None or asked.body["data"]["definitionValidate"], asked
    assert await counts(server) == before


async def test_a_billion_laughs(server: Server) -> None:
    """Aliases that unfold to a billion values are refused at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    answer = await send(server, "\n".join(lines).encode(), "/import")
    assert answer.code == "VALIDATION_FAILED"


async def test_import_of_bytes_that_are_no_text(server: Server) -> None:
    """Bytes that are no UTF-8 are refused."""
    answer = await send(server, b"\xff\xfe\x00", "/import")
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


async def test_a_name_of_300_characters(server: Server) -> None:
    """A name too long is a problem at /name; so is it where a workflow is duplicated, and a version labelled."""
    answer = await ask(server, CREATE, {"definition": flow("n" * 300, step("core/noop"))})
    assert answer.code == "VALIDATION_FAILED"
    assert answer.problems[0]["pointer"] == "/name"
    workflow = await stored(server, flow("to-be-copied", step("core/noop")))
    mutation = (
        f"mutation ($id: ID!, $name: String!) {{ workflowDuplicate(input: {{id: $id, name: $name}}) {{ {PROBLEMS} }} }}"
    )
    for name in ("n" * 300, "", " ", "to-be-copied"):
        copied = await ask(server, mutation, {"id": workflow, "name": name})
        assert copied.code in ("VALIDATION_FAILED", "CONFLICT"), (name, copied)


@pytest.mark.parametrize("given", [{"label": "l" * 300}, {"label": ""}, {"changeNote": "n" * 500_000}], ids=str)
async def test_labels_and_notes_of_impossible_length(server: Server, given: dict[str, str]) -> None:
    """A version's label or note that is too long is refused with its place, and no workflow is made."""
    before = await counts(server)
    mutation = f"mutation ($i: WorkflowCreateInput!) {{ workflowCreate(input: $i) {{ {PROBLEMS} }} }}"
    definition = {"json": flow("remarked", step("core/noop"))}
    answer = await ask(server, mutation, {"i": {"definition": definition} | given})
    assert answer.code == "VALIDATION_FAILED", answer
    assert await counts(server) == before


async def test_a_pattern_that_takes_for_ever(tmp_path: Path) -> None:
    """A pattern in a schema that backtracks for ever is refused, or at least holds up nobody else."""
    async with Server(tmp_path / "data") as own:
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
        made = await ask(own, CREATE, {"definition": flow("slow", step("core/noop"), input_schema=schema)})
        if made.code is not None:
            return
        workflow = made.body["data"]["workflowCreate"]["workflow"]["id"]
        given = {"workflow": {"id": workflow}, "input": {"a": "a" * 40 + "!"}}
        start = asyncio.create_task(own.post(START, {"input": given}))
        try:
            async with asyncio.timeout(4):
                for _ in range(50):  # the first of them may come before the start does
                    assert (await own.request("GET", "/health/live")).status_code == 200
        finally:
            own.kill()
            await asyncio.gather(start, return_exceptions=True)


# ---- the life of a workflow


async def test_a_name_that_is_taken(server: Server) -> None:
    """The second workflow of a name is a Conflict, and the first is as it was; so with 8 at the same time."""
    await stored(server, flow("taken", step("core/noop")))
    again = await ask(server, CREATE, {"definition": flow("taken", step("core/noop"))})
    assert again.code == "CONFLICT"
    assert "taken" in again.message
    racing = await asyncio.gather(
        *(ask(server, CREATE, {"definition": flow("raced", step("core/noop"))}) for _ in range(8))
    )
    assert sorted(answer.code or "" for answer in racing) == ["", *["CONFLICT"] * 7]


UPDATE = f"""
mutation ($id: ID!, $base: ID!, $definition: JSON!) {{
  workflowUpdate(input: {{id: $id, baseVersion: $base, definition: {{json: $definition}}}}) {{
    {REFUSAL} ... on Conflict {{ details }} ... on WorkflowUpdatePayload {{ version {{ id version }} }}
  }}
}}
"""


BAD_SERVERS = [
    ({"name": ""}, "/name"),
    ({"name": "n" * 300}, "/name"),
    ({"name": "a\nb"}, "/name"),
    ({"url": ""}, "/url"),
    ({"url": "nowhere"}, "/url"),
    ({"url": "file:///etc/passwd"}, "/url"),
    ({"url": "ftp://host"}, "/url"),
    ({"url": "javascript:alert(1)"}, "/url"),
    ({"url": "http://"}, "/url"),
    ({"url": "http://user:password@host"}, "/url"),
    ({"url": "http://host/#x"}, "/url"),
    ({"url": "http://host/?x=y"}, "/url"),
    ({"url": "http://ho st/"}, "/url"),
    ({"url": "http://host:0"}, "/url"),
    ({"url": "http://host:99999999999999999999"}, "/url"),
    ({"url": "http://[::1"}, "/url"),
    ({"url": "http://" + "h" * 100_000}, "/url"),
    ({"batchSize": 0}, "/batchSize"),
    ({"batchSize": -(2**31)}, "/batchSize"),
    ({"batchSize": 2**31 - 1}, "/batchSize"),
    ({"token": ""}, "/token"),
    ({"token": "t" * 100_000}, "/token"),
    ({"token": "a\r\nHost: evil"}, "/token"),
    ({"token": "近江"}, "/token"),
    ({"type": "LOCAL", "token": "x"}, "/token"),
]


@pytest.mark.parametrize(("given", "pointer"), BAD_SERVERS, ids=lambda value: str(value)[:40])
async def test_servers_that_can_not_be(server: Server, given: dict[str, Any], pointer: str) -> None:
    """Refused with the place, in a message of bounded length; nothing is registered."""
    registering = {"name": "bad", "url": "http://127.0.0.1:1", "type": "HTTP", "enabled": False} | given
    answer = await ask(server, REGISTER, {"v": registering})
    assert answer.code == "VALIDATION_FAILED", answer
    [problem] = answer.problems
    assert problem["pointer"] == pointer
    assert 15 < len(problem["message"]) < 300
    assert (await server.graphql("{ servers { totalCount } }"))["servers"]["totalCount"] == 1


async def test_two_updates_of_one_base_at_once(server: Server) -> None:
    """Of eight updates from the same base one is stored, the others are told which version is current."""
    made = await ask(server, CREATE, {"definition": flow("raced-update", step("core/noop"))})
    workflow = made.body["data"]["workflowCreate"]["workflow"]
    base = workflow["currentVersion"]["id"]

    def changed(n: int) -> dict[str, Any]:
        return {
            "id": workflow["id"],
            "base": base,
            "definition": flow("raced-update", step("core/noop"), description=f"d{n}"),
        }

    answers = await asyncio.gather(*(ask(server, UPDATE, changed(n)) for n in range(8)))
    assert sorted(answer.code or "" for answer in answers) == ["", *["CONFLICT"] * 7]
    stale = await ask(server, UPDATE, changed(9))
    assert stale.code == "CONFLICT"
    assert stale.body["data"]["workflowUpdate"]["details"]
    data = await server.graphql(
        "query ($id: ID!) { workflow(id: $id) { versions { totalCount } } }", {"id": workflow["id"]}
    )
    assert data["workflow"]["versions"]["totalCount"] == 2


@pytest.mark.parametrize(
    ("steps", "status"), [(["Deactivate", "Archive"], "ARCHIVED"), (["Archive"], "ARCHIVED2"), (["Delete"], "DELETED")]
)
async def test_workflows_that_do_not_run(server: Server, steps: list[str], status: str) -> None:
    """One that is archived or deleted starts nothing, by id or by name, and refuses what its state forbids."""
    name = f"ended-{status.lower()}"
    workflow = await stored(server, flow(name, step("core/noop")))
    for step_ in steps:
        await server.graphql(
            f"mutation ($id: ID!) {{ workflow{step_}(input: {{id: $id}}) {{ __typename }} }}", {"id": workflow}
        )
    before = await counts(server)
    for ref in ({"id": workflow}, {"name": name}):
        answer = await ask(server, START, {"input": {"workflow": ref}})
        assert answer.code in ("CONFLICT", "ILLEGAL_TRANSITION", "NOT_FOUND"), answer
    for step_ in ("Publish", "Show"):
        answer = await ask(
            server, f"mutation ($id: ID!) {{ workflow{step_}(input: {{id: $id}}) {{ {REFUSAL} }} }}", {"id": workflow}
        )
        assert answer.code in ("ILLEGAL_TRANSITION", "NOT_FOUND", "CONFLICT"), (step_, answer)
    assert await counts(server) == before


async def test_a_workflow_gone_for_good(server: Server) -> None:
    """After permanent deletion every operation on it says NOT_FOUND."""
    workflow = await stored(server, flow("gone", step("core/noop")))
    mutation = f"mutation ($id: ID!) {{ workflowDelete(input: {{id: $id, permanent: true}}) {{ {REFUSAL} }} }}"
    assert (await ask(server, mutation, {"id": workflow})).code is None
    for again in (mutation, f"mutation ($id: ID!) {{ workflowRestore(input: {{id: $id}}) {{ {REFUSAL} }} }}"):
        assert (await ask(server, again, {"id": workflow})).code == "NOT_FOUND"


# ---- starting and cancelling


@pytest.mark.parametrize(
    "more",
    [
        {"priority": 11},
        {"priority": 0},
        {"priority": -5},
        {"wait": "61s"},
        {"wait": "-1s"},
        {"wait": "-PT1S"},
        {"timeout": "-1s"},
        {"timeout": "0s"},
        {"queueTimeout": "-5s"},
        {"timeout": "P9999999D"},
        {"idempotencyKey": ""},
        {"idempotencyKey": "k" * 10_000},
        {"labels": [{"name": "", "value": "x"}]},
        {"labels": [{"name": "n" * 5_000, "value": "v"}]},
        {"labels": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]},
        {"labels": [{"name": f"l{i}", "value": "v"} for i in range(500)]},
        {"input": [1]},
        {"input": "text"},
        {"input": {}},
        {"input": {"n": "x"}},
    ],
    ids=lambda more: str(more)[:30],
)
async def test_bad_starts_are_refused(server: Server, more: dict[str, Any]) -> None:
    """What a start can't be asked for is refused with the place, and no instance is made."""
    name = f"start-{abs(hash(str(more)))}"
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    workflow = await stored(server, flow(name, step("core/noop"), input_schema=schema))
    before = await counts(server)
    answer = await ask(server, START, {"input": {"workflow": {"id": workflow}, "input": {"n": 1}} | more})
    assert answer.code in ("VALIDATION_FAILED", "BAD_USER_INPUT"), answer
    assert len(answer.message) > 15
    assert await counts(server) == before


async def test_an_idempotency_key_with_other_input(server: Server) -> None:
    """The same key gives the same instance, never a second one, whatever came with it, also at once."""
    workflow = await stored(server, flow("keyed", step("core/noop")))
    before = await counts(server)
    inputs = [{"input": {"workflow": {"id": workflow}, "input": {"n": n}, "idempotencyKey": "k"}} for n in range(8)]
    answers = await asyncio.gather(*(ask(server, START, each) for each in inputs))
    started = [answer.body["data"]["instanceStart"] for answer in answers if answer.code is None]
    assert all(answer.code in (None, "CONFLICT") for answer in answers), answers
    assert len({each["instance"]["id"] for each in started}) == 1
    assert sum(each["created"] for each in started) == 1
    assert (await counts(server))[1] == before[1] + 1


async def test_cancelling_what_has_ended(server: Server) -> None:
    """An ended instance stays as it ended, and the caller is told."""
    instance = await run(server, await stored(server, flow("ended", step("core/noop"))))
    mutation = f"mutation ($id: ID!) {{ instanceCancel(input: {{id: $id}}) {{ {REFUSAL} }} }}"
    answer = await ask(server, mutation, {"id": instance["id"]})
    assert answer.code == "CONFLICT", answer
    assert "COMPLETED" in answer.message
    data = await server.graphql("query ($id: ID!) { instance(id: $id) { status } }", {"id": instance["id"]})
    assert data["instance"]["status"] == "COMPLETED"


async def test_a_large_reason(server: Server) -> None:
    """Texts of a megabyte for a reason are refused: an event carries it."""
    workflow = await stored(server, flow("noted", step("odd/block")))
    mutation = f"mutation ($i: InstanceCancelInput!) {{ instanceCancel(input: $i) {{ {REFUSAL} }} }}"
    answer = await ask(server, START, {"input": {"workflow": {"id": workflow}}})
    id = answer.body["data"]["instanceStart"]["instance"]["id"]
    answer = await ask(server, mutation, {"i": {"id": id, "reason": "r" * 900_000}})
    assert answer.code == "VALIDATION_FAILED", answer


# ---- nodes: photos, paths, addresses


async def fails(server: Server, *nodes: dict[str, Any], input: Any = None, **more: Any) -> dict[str, Any]:
    """Run the nodes; the instance's error."""
    name = "fails-" + os.urandom(6).hex()
    instance = await run(server, await stored(server, flow(name, *nodes, **more)), input)
    assert instance["status"] == "FAILED", instance
    error: dict[str, Any] = instance["error"]
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("type", ["image/preprocess", "ai/image-enhance", "ai/image-analyze"])
async def test_corrupt_photos(server: Server, files: Path, type: str) -> None:
    """A photo that is none, is cut off, empty or a bomb fails its node as VALIDATION with the file's name."""
    photo = next(path for path in sorted((ROOT / "examples").rglob("*.jpg")))
    content = photo.read_bytes()
    broken = {
        "text.jpg": b"not a photo",
        "empty.jpg": b"",
        "cut.jpg": content[: len(content) // 3],
        "bomb.png": bomb(),
        "flipped.jpg": content[:200] + b"\xff\xd9" + content[200:400],
    }
    (files / "folder.jpg").mkdir(exist_ok=True)
    for name in broken:
        (files / name).write_bytes(broken[name])
    for name in [*broken, "folder.jpg"]:
        error = await fails(server, step(type), input={"image": name, "path": name})
        assert error["category"] in ("VALIDATION", "RESOURCE"), (name, error)
        assert error["code"] != "HANDLER_RAISED", (name, error)
        assert name in error["message"], (name, error)


async def test_paths_outside_the_allowed_folders(server: Server, files: Path) -> None:
    """Absolute, by `..`, by a symlink, by a NUL: nothing outside is read or written by any node."""
    outside = files.parent / "secret.txt"
    link, folder = files / "link.jpg", files / "out"
    for made, target in ((link, outside), (folder, files.parent)):
        if not made.is_symlink():
            made.symlink_to(target)
    listing = sorted(path.name for path in files.parent.iterdir())
    for path in (
        str(outside),
        "../secret.txt",
        "x/../../secret.txt",
        "link.jpg",
        "out/secret.txt",
        "/etc/passwd",
        "/proc/self/environ",
        "~/x",
        "C:\\x",
        "out/new.txt",
    ):
        for node in (
            step("image/preprocess"),
            step("ai/image-analyze"),
            step("data/csv", path=path),
            step("storage/file", path="copy.txt", source=path),
        ):
            error = await fails(server, node, input={"image": path, "path": path})
            assert error["code"] in ("PATH_NOT_ALLOWED", "FILE_NOT_FOUND"), (path, node["type"], error)
            assert "secret" not in error["message"].replace("secret.txt", "")
        if path.startswith(("/", "..", "out", "x/", "link")):
            for node in (step("storage/file", path=path, content="mine"), step("data/csv-write", path=path, rows=[])):
                error = await fails(server, node)
                assert error["code"] == "PATH_NOT_ALLOWED", (path, node["type"], error)
    assert outside.read_text() == "secret"
    assert sorted(path.name for path in files.parent.iterdir()) == listing
    assert not (files / "copy.txt").exists()


@asynccontextmanager
async def listener(kind: str) -> AsyncIterator[str]:
    """A server on a socket that never answers ("silent"), never ends ("endless"), drips, or speaks nonsense."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if kind == "silent":
                await reader.read(-1)
            await reader.readuntil(b"\r\n\r\n")
            match kind:
                case "endless":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
                    while True:
                        writer.write(b"x" * 65_536)
                        await writer.drain()
                case "headers":
                    writer.write(b"HTTP/1.1 200 OK\r\n")
                    while True:
                        writer.write(b"x: " + b"y" * 1_000 + b"\r\n")
                        await writer.drain()
                case "drips":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                    while True:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.05)
                case "nonsense":
                    writer.write(b"SSH-2.0-OpenSSH\r\n\0\0\0")
                case "cut":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort")
                case "loop":
                    writer.write(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                case "json":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\nNaN")
                case "laughs":
                    body = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><x>&b;</x>'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                    )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "answer"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("kind", "more", "codes"),
    [
        ("silent", {"timeout": "300ms"}, {"HTTP_TIMEOUT"}),
        ("drips", {"timeout": "300ms"}, {"HTTP_TIMEOUT"}),
        ("endless", {}, {"RESPONSE_TOO_LARGE", "BODY_TOO_LARGE"}),
        ("headers", {"timeout": "3s"}, {"CONNECTION_FAILED", "HTTP_TIMEOUT", "BAD_RESPONSE"}),
        ("nonsense", {}, {"CONNECTION_FAILED", "BAD_RESPONSE"}),
        ("cut", {}, {"CONNECTION_FAILED", "BAD_RESPONSE"}),
        ("loop", {"follow_redirects": True}, {"TOO_MANY_REDIRECTS"}),
    ],
)
async def test_addresses_that_hang_or_lie(server: Server, kind: str, more: dict[str, Any], codes: set[str]) -> None:
    """An address that never answers, never ends, drips, or speaks nonsense fails its node in time and with a code."""
    async with listener(kind) as url, asyncio.timeout(20):
        error = await fails(server, step("http/request", url=url, **more))
    assert error["code"] != "HANDLER_RAISED", error
    assert error["category"] not in ("CODE", "INTERNAL"), error


@pytest.mark.parametrize("kind", ["json", "laughs"])
async def test_bodies_that_are_not_what_they_say(server: Server, kind: str) -> None:
    """NaN as JSON and XML with entities are left as the text that they are: nothing is unfolded."""
    async with listener(kind) as url:
        instance = await run(server, await stored(server, flow(f"says-{kind}", step("http/request", url=url))))
    assert instance["status"] == "COMPLETED"
    assert isinstance(instance["output"]["a"]["body"], str)


async def test_a_hanging_address_is_left_at_the_timeout_and_by_a_cancel(server: Server) -> None:
    """The node's timeout ends it with NODE_TIMEOUT; a cancel ends it as CANCELED."""
    async with listener("silent") as url, asyncio.timeout(20):
        error = await fails(server, step("http/request", url=url) | {"timeout": "400ms"})
        assert error["code"] == "NODE_TIMEOUT"
        workflow = await stored(server, flow("hangs", step("http/request", url=url)))
        answer = await ask(server, START, {"input": {"workflow": {"id": workflow}}})
        id = answer.body["data"]["instanceStart"]["instance"]["id"]
        status = "query ($id: ID!) { instance(id: $id) { status progress { running } } }"

        async def runs() -> bool:
            return bool((await server.graphql(status, {"id": id}))["instance"]["progress"]["running"])

        await wait_until(runs)
        await ask(server, f"mutation ($id: ID!) {{ instanceCancel(input: {{id: $id}}) {{ {REFUSAL} }} }}", {"id": id})

        async def canceled() -> bool:
            return bool((await server.graphql(status, {"id": id}))["instance"]["status"] == "CANCELED")

        await wait_until(canceled)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "nonsense",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:1/",
        "http://\x7f/",
        "http://user:pw@127.0.0.1:1/",
    ],
)
async def test_addresses_that_are_none(server: Server, url: str) -> None:
    """An address that can't be asked fails its node with a code."""
    error = await fails(server, step("http/request", url=url))
    assert error["code"] != "HANDLER_RAISED", error
    assert "pw" not in error["message"]


# ---- handlers of a plugin


@pytest.mark.parametrize(
    ("type", "code"),
    [
        ("odd/object", "OUTPUT_NOT_JSON"),
        ("odd/nan", "OUTPUT_NOT_JSON"),
        ("odd/set", "OUTPUT_NOT_JSON"),
        ("odd/cycle", "OUTPUT_NOT_JSON"),
        ("odd/key", "OUTPUT_NOT_JSON"),
        ("odd/surrogate", "OUTPUT_NOT_JSON"),
        ("odd/nul", "OUTPUT_NOT_JSON"),
        ("odd/number", "OUTPUT_NOT_JSON"),
        ("odd/huge", "OUTPUT_TOO_LARGE"),
        ("odd/exit", "HANDLER_RAISED"),
        ("odd/exit-async", "HANDLER_RAISED"),
        ("odd/interrupt-async", "HANDLER_RAISED"),
        ("odd/object-process", "OUTPUT_NOT_JSON"),
        ("odd/exit-process", "PROCESS_DIED"),
        ("odd/unprintable", "HANDLER_RAISED"),
        ("odd/message", "HANDLER_RAISED"),
        ("odd/words", "3"),
    ],
)
async def test_handlers_that_misbehave(server: Server, type: str, code: str) -> None:
    """A handler that gives what isn't JSON, too much, or tries to end the process fails its node alone, with a code."""
    async with asyncio.timeout(20):
        error = await fails(server, step(type))
    assert error["code"] == code, error
    assert error["nodeId"] == "a"
    assert len(error["message"]) < 5_000


async def test_a_handler_that_blocks_holds_up_nobody(server: Server) -> None:
    """While a thread is blocked, requests and other runs go on."""
    slow = asyncio.create_task(run(server, await stored(server, flow("blocked", step("odd/block")))))
    quick = await stored(server, flow("beside", step("core/noop")))
    for _ in range(5):
        assert (await run(server, quick))["status"] == "COMPLETED"
    assert not slow.done()
    assert (await slow)["output"] == {"a": "slept"}


@pytest.mark.parametrize("after", ["nan", "inf", "-5", "1e300"])
async def test_a_handler_that_wants_nonsense_waits(server: Server, after: str) -> None:
    """A wait that is none is left out, one without end is cut: the run lives and can be cancelled."""
    node = step("odd/wait", after=after) | {"retry": {"max": 1, "base": "10ms"}}
    workflow = await stored(server, flow(f"waits-{after}", node))
    answer = await ask(
        server, START, {"input": {"workflow": {"id": workflow}, "wait": "1s" if after in ("nan", "-5") else None}}
    )
    id = answer.body["data"]["instanceStart"]["instance"]["id"]
    if after in ("nan", "-5"):
        assert answer.body["data"]["instanceStart"]["instance"]["status"] == "FAILED"
        return
    query = 'query ($id: ID!) { instance(id: $id) { status nodeExecution(path: "a") { status dueAt } } }'

    async def retrying() -> bool:
        return bool((await server.graphql(query, {"id": id}))["instance"]["nodeExecution"]["status"] == "RETRYING")

    await wait_until(retrying)
    await ask(server, f"mutation ($id: ID!) {{ instanceCancel(input: {{id: $id}}) {{ {REFUSAL} }} }}", {"id": id})

    async def canceled() -> bool:
        return bool((await server.graphql(query, {"id": id}))["instance"]["status"] == "CANCELED")

    await wait_until(canceled)


async def test_a_handler_that_logs_nonsense(server: Server) -> None:
    """What can't be stored of a log line is made storable; the run completes."""
    instance = await run(server, await stored(server, flow("odd-log", step("odd/log"))))
    assert instance["status"] == "COMPLETED"
    shown = "logs { message fields } progress { done total message }"
    query = f'query ($id: ID!) {{ instance(id: $id) {{ nodeExecution(path: "a") {{ {shown} }} }} }}'
    answer = await ask(server, query, {"id": instance["id"]})
    assert answer.code is None
    assert answer.body["data"]["instance"]["nodeExecution"]["logs"]
