"""Servers as clients see them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from db.store import servers as store
from engine.access import LOCAL, ROLES
from flow.servers import Load
from tests.engine.servers.double import doubled
from tests.graph.conftest import Asker

REGISTER = """
mutation($input: ServerRegisterInput!) { serverRegister(input: $input) {
  __typename
  ... on ServerRegisterPayload { server { id name url type enabled batchSize status hasToken } changeSeq }
  ... on ValidationFailed { problems { pointer code } }
  ... on UserError { code message path } } }
"""
UPDATE = """
mutation($input: ServerUpdateInput!) { serverUpdate(input: $input) {
  __typename
  ... on ServerUpdatePayload { changed server { name url enabled batchSize status hasToken } }
  ... on ValidationFailed { problems { pointer code } }
  ... on UserError { code message } } }
"""
DELETE = """
mutation($input: ServerDeleteInput!) { serverDelete(input: $input) {
  __typename ... on ServerDeletePayload { id } ... on Conflict { details } ... on UserError { code message } } }
"""
STATUS = """
mutation($input: ServerStatusSetInput!) { serverStatusSet(input: $input) {
  __typename ... on ServerStatusSetPayload { changed server { status } } ... on UserError { code message } } }
"""
CHECK = """
mutation($input: ServerCheckHealthInput!) { serverCheckHealth(input: $input) {
  __typename
  ... on ServerCheckHealthPayload { healthy check { outcome message status } server { status failures lastError } }
  ... on UserError { code message } } }
"""
UPDATED = "subscription($ids: [ID!]) { serverUpdated(ids: $ids) { id name status lastCheck } }"


async def registered(ask: Asker, name: str = "one", **given: Any) -> str:
    """The id of a server that is not checked by itself."""
    settings = {"name": name, "url": "http://127.0.0.1:1", "type": "HTTP", "enabled": False} | given
    return str((await ask(REGISTER, input=settings))["serverRegister"]["server"]["id"])


async def test_register_and_read(ask: Asker) -> None:
    """What was registered is found by id, by name, by ``node`` and in the list; the token is never shown."""
    given = {"name": "近江", "url": "https://gpu.example:8188/comfy/", "type": "COMFYUI", "batchSize": 2}
    made = (await ask(REGISTER, input=given | {"token": "secret", "enabled": False}))["serverRegister"]
    assert made["server"] == {
        "id": made["server"]["id"],
        "name": "近江",
        "url": "https://gpu.example:8188/comfy",
        "type": "COMFYUI",
        "enabled": False,
        "batchSize": 2,
        "status": "OFFLINE",
        "hasToken": True,
    }
    id = made["server"]["id"]
    assert id.startswith("srv-")
    found = await ask(
        "query($id: ID!, $name: String!) { a: server(id: $id) { id } b: server(name: $name) { id }"
        ' c: node(id: $id) { id __typename } d: server(id: "srv-none") { id } }',
        id=id,
        name="近江",
    )
    assert (found["a"]["id"], found["b"]["id"], found["c"], found["d"]) == (
        id,
        id,
        {"id": id, "__typename": "Server"},
        None,
    )
    assert await ask.code("{ server { id } }") == "BAD_INPUT"


async def test_refusals_of_a_registration(ask: Asker) -> None:
    """Every problem at once with its pointer; a name that is taken is a Conflict."""
    bad = {"name": "", "url": "file:///etc/passwd", "type": "HTTP", "batchSize": 0, "token": "a\nb"}
    refusal = (await ask(REGISTER, input=bad))["serverRegister"]
    assert refusal["__typename"] == "ValidationFailed"
    assert [problem["pointer"] for problem in refusal["problems"]] == ["/name", "/url", "/batchSize", "/token"]
    refusal = (await ask(REGISTER, input={"name": "local", "url": "http://x", "type": "HTTP"}))["serverRegister"]
    assert (refusal["__typename"], refusal["path"]) == ("Conflict", ["input", "name"])


async def test_update(ask: Asker) -> None:
    """What is given changes, the rest stays; null is refused where it means nothing."""
    id = await registered(ask)
    answer = (await ask(UPDATE, input={"id": id, "batchSize": 7, "token": "t"}))["serverUpdate"]
    assert answer["changed"]
    assert (answer["server"]["batchSize"], answer["server"]["hasToken"], answer["server"]["name"]) == (7, True, "one")
    assert (await ask(UPDATE, input={"id": id, "batchSize": 7}))["serverUpdate"]["changed"] is False
    assert (await ask(UPDATE, input={"id": id, "token": None}))["serverUpdate"]["server"]["hasToken"] is False
    for field in ("name", "url", "enabled", "batchSize"):
        refusal = (await ask(UPDATE, input={"id": id, field: None}))["serverUpdate"]
        assert [problem["pointer"] for problem in refusal["problems"]] == [f"/{field}"]
    assert (await ask(UPDATE, input={"id": "srv-none", "batchSize": 1}))["serverUpdate"]["code"] == "NOT_FOUND"


async def test_check_on_demand_and_its_history(ask: Asker) -> None:
    """The answer says what came of it; the history has it, the newest first, by pages."""
    async with doubled() as double:
        id = await registered(ask, url=double.url)
        answer = (await ask(CHECK, input={"id": id}))["serverCheckHealth"]
        assert answer["healthy"]
        assert answer["server"]["status"] == "ONLINE"
        double.fault = "html"
        answer = (await ask(CHECK, input={"id": id}))["serverCheckHealth"]
        assert not answer["healthy"]
        assert (answer["check"]["outcome"], answer["server"]["failures"]) == ("WRONG_ANSWER", 1)
        assert answer["check"]["message"] == answer["server"]["lastError"]
    pages = """query($id: ID!, $after: String) { server(id: $id) { checks(first: 1, after: $after) {
      nodes { outcome } totalCount pageInfo { hasNextPage endCursor } } } }"""
    first = (await ask(pages, id=id))["server"]["checks"]
    assert (first["nodes"], first["totalCount"]) == ([{"outcome": "WRONG_ANSWER"}], 2)
    second = (await ask(pages, id=id, after=first["pageInfo"]["endCursor"]))["server"]["checks"]
    assert (second["nodes"], second["pageInfo"]["hasNextPage"]) == ([{"outcome": "OK"}], False)


async def test_lists_cost_no_statement_per_server(ask: Asker) -> None:
    """A page with what each works on and its checks takes as many statements for ten servers as for one."""
    document = "{ servers(first: 20) { nodes { running freeSlots currentTaskId checks { nodes { at } } } } }"
    for number in range(9):
        await registered(ask, f"s{number}")
    with ask.statements() as statements:
        found = (await ask(document))["servers"]["nodes"]
    assert len(found) == 10
    selects = [each for each in statements if "SELECT" in each and "due_at" not in each]
    assert len(selects) == 4, selects


async def test_filters_and_orders(ask: Asker) -> None:
    """By status, type and being enabled; by name backwards."""
    await registered(ask, "b", type="COMFYUI")
    await registered(ask, "a")
    document = """query($where: ServerWhere, $by: ServerOrder!) {
      servers(where: $where, orderBy: $by) { nodes { name } } }"""

    async def names(by: str = "NAME_ASC", **where: Any) -> list[str]:
        return [each["name"] for each in (await ask(document, where=where, by=by))["servers"]["nodes"]]

    assert await names() == ["a", "b", "local"]
    assert await names("NAME_DESC") == ["local", "b", "a"]
    assert await names("CREATED_ASC") == ["local", "b", "a"]
    assert await names(enabled={"eq": False}) == ["a", "b"]
    assert await names(type={"in": ["COMFYUI", "LOCAL"]}) == ["b", "local"]
    assert await names(status={"eq": "ONLINE"}) == ["local"]
    assert await names(url={"contains": "LOCALHOST"}) == ["local"]


async def test_what_is_available(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enabled, ONLINE, with a free place; a full one says which task holds it."""
    available = "{ serversAvailable { name freeSlots } }"
    [local] = (await ask(available))["serversAvailable"]
    assert local["name"] == "local"
    monkeypatch.setattr(store, "loads", lambda conn, ids: {id: Load(local["freeSlots"], "task-1") for id in ids})
    assert (await ask(available))["serversAvailable"] == []
    found = (await ask('{ server(name: "local") { running freeSlots currentTaskId } }'))["server"]
    assert found == {"running": local["freeSlots"], "freeSlots": 0, "currentTaskId": "task-1"}
    id = (await ask('{ server(name: "local") { id } }'))["server"]["id"]
    refusal = (await ask(DELETE, input={"id": id}))["serverDelete"]
    assert (refusal["__typename"], refusal["details"]["task"]) == ("Conflict", "task-1")
    assert (await ask(DELETE, input={"id": id, "force": True}))["serverDelete"] == {
        "__typename": "ServerDeletePayload",
        "id": id,
    }


async def test_status_by_hand(ask: Asker) -> None:
    """MAINTENANCE and back; ERROR is refused."""
    id = await registered(ask)
    for status, changed in (("MAINTENANCE", True), ("MAINTENANCE", False), ("ONLINE", True)):
        answer = (await ask(STATUS, input={"id": id, "status": status}))["serverStatusSet"]
        assert (answer["changed"], answer["server"]["status"]) == (changed, status)
    refusal = (await ask(STATUS, input={"id": id, "status": "ERROR"}))["serverStatusSet"]
    assert refusal["__typename"] == "ValidationFailed"


async def test_what_roles_may(ask: Asker) -> None:
    """Viewers look, operators check, administrators change."""
    id = await registered(ask)
    viewer = ask.as_(replace(LOCAL, permissions=ROLES["viewer"]))
    operator = ask.as_(replace(LOCAL, permissions=ROLES["operator"]))
    shown = (await viewer("query($id: ID!) { server(id: $id) { viewerCanEdit viewerCanCheck } }", id=id))["server"]
    assert shown == {"viewerCanEdit": False, "viewerCanCheck": False}
    assert (await viewer(CHECK, input={"id": id}))["serverCheckHealth"]["code"] == "PERMISSION_DENIED"
    assert (await operator(CHECK, input={"id": id}))["serverCheckHealth"]["healthy"] is False
    for document, name, given in (
        (REGISTER, "serverRegister", {"name": "x", "url": "http://x", "type": "HTTP"}),
        (UPDATE, "serverUpdate", {"id": id, "enabled": True}),
        (DELETE, "serverDelete", {"id": id}),
        (STATUS, "serverStatusSet", {"id": id, "status": "BUSY"}),
    ):
        assert (await operator(document, input=given))[name]["code"] == "PERMISSION_DENIED"
    nobody = ask.as_(replace(LOCAL, permissions=frozenset()))
    assert await nobody.code("{ servers { totalCount } }") == "PERMISSION_DENIED"
    assert await nobody.refusal(UPDATED) == "PERMISSION_DENIED"


async def test_another_projects_servers_are_not_there(ask: Asker) -> None:
    """Not by id, not by name, not by any mutation."""
    id = await registered(ask)
    await registered(ask, "other")
    stranger = ask.as_(replace(LOCAL, project_id="proj-other"))
    found = await stranger('query($id: ID!) { a: server(id: $id) { id } b: server(name: "one") { id } }', id=id)
    assert found == {"a": None, "b": None}
    assert (await stranger("{ servers { totalCount } }"))["servers"]["totalCount"] == 0
    assert (await stranger(CHECK, input={"id": id}))["serverCheckHealth"]["code"] == "NOT_FOUND"
    assert await stranger.refusal(UPDATED, ids=[id]) == "NOT_FOUND"


async def test_changes_are_told(ask: Asker) -> None:
    """Each server now, then the one that was checked or changed, and no other."""
    async with doubled() as double:
        id = await registered(ask, url=double.url)
        other = await registered(ask, "other")
        stream = ask.stream(UPDATED, ids=[id, other])
        async with asyncio.timeout(20):
            first = [(await anext(stream))["serverUpdated"]["name"] for _ in range(2)]
            assert first == ["one", "other"]
            await ask(CHECK, input={"id": id})
            told = (await anext(stream))["serverUpdated"]
            assert (told["id"], told["status"]) == (id, "ONLINE")
            await ask(UPDATE, input={"id": other, "name": "renamed"})
            assert (await anext(stream))["serverUpdated"]["name"] == "renamed"
        await stream.aclose()
    assert await ask.refusal(UPDATED, ids=["srv-none"]) == "NOT_FOUND"
    assert await ask.refusal(UPDATED, ids=["srv"] * 101) == "BAD_PAGE"
