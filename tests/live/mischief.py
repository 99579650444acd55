"""What the tests of bad input and faults share: any answer read, plugins, and the proof of good health."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.live.server import QueryFailed, Server

REFUSAL = """
__typename
... on UserError { code message path }
"""
PROBLEMS = REFUSAL + "... on ValidationFailed { problems { code pointer message } }"
CREATE = f"""
mutation ($definition: JSON!) {{
  workflowCreate(input: {{definition: {{json: $definition}}}}) {{
    {PROBLEMS} ... on WorkflowCreatePayload {{ workflow {{ id currentVersion {{ id }} }} }}
  }}
}}
"""
START = f"""
mutation ($input: InstanceStartInput!) {{
  instanceStart(input: $input) {{
    {PROBLEMS}
    ... on InstanceStartPayload {{ created instance {{ id status output error {{ code category message nodeId }} }} }}
  }}
}}
"""
COUNTS = """{
  workflows(where: {status: {in: [DRAFT, ACTIVE, INACTIVE, HIDDEN, ARCHIVED, DELETED]}}) { totalCount }
  instances { totalCount }
}"""


class Said(NamedTuple):
    """One answer: its HTTP status, the first code and message of a refusal (None if it was none), and the whole."""

    status: int
    code: str | None
    message: str
    body: Any

    @property
    def problems(self) -> list[dict[str, str]]:
        """The problems of a ValidationFailed, in a result or at the top."""
        return next(iter(_find(self.body, "problems")), [])


def _find(value: Any, key: str) -> Iterator[Any]:
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for item in value.values():
            yield from _find(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _find(item, key)


def said(status: int, text: str) -> Said:
    """The answer read, after checking what must hold for every one: no 500, no stack, no masked error."""
    assert status not in (500, 502), f"{status}: {text[:2000]}"
    assert "Traceback" not in text, text[:2000]
    assert 'File \\"' not in text, text[:2000]
    body = json.loads(text)
    if isinstance(body, dict) and body.get("errors"):
        for error in body["errors"]:
            assert error["extensions"]["code"] not in ("INTERNAL", "INTERNAL_SERVER_ERROR"), body
            assert error["message"], body
        return Said(status, body["errors"][0]["extensions"]["code"], body["errors"][0]["message"], body)
    if isinstance(body, dict) and "data" not in body and "code" in body:
        return Said(status, body["code"], body["message"], body)
    for field in ((body.get("data") or {}) if isinstance(body, dict) else {}).values():
        if isinstance(field, dict) and "code" in field and "message" in field:
            return Said(status, field["code"], field["message"], body)
    return Said(status, None, "", body)


async def ask(server: Server, query: str, variables: Mapping[str, Any] | None = None) -> Said:
    """POST a document; what the server said to it."""
    answer = await server.post(query, variables)
    return said(answer.status_code, answer.text)


async def send(server: Server, body: Any, path: str = "/graphql", **headers: str) -> Said:
    """POST raw bytes (or an async iterator of them); what the server said to it."""
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = await server.request("POST", path, content=body, headers=given)
    return said(answer.status_code, answer.text)


def flow(name: str, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A definition whose nodes run one after the other."""
    edges = [{"source": a["id"], "target": b["id"]} for a, b in pairwise(nodes)]
    return {
        "name": name,
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": list(nodes),
        "edges": edges,
    } | more


def step(type: str, id: str = "a", **parameters: Any) -> dict[str, Any]:
    """A node that is tried once."""
    return {"id": id, "type": type, "parameters": parameters, "retry": {"max": 0}}


async def stored(server: Server, definition: dict[str, Any]) -> str:
    """The id of a new workflow."""
    answer = await ask(server, CREATE, {"definition": definition})
    assert answer.code is None, answer
    return str(answer.body["data"]["workflowCreate"]["workflow"]["id"])


async def run(server: Server, workflow: str, input: Any = None, **more: Any) -> dict[str, Any]:
    """Start an instance and wait for its end; the instance."""
    answer = await ask(server, START, {"input": {"workflow": {"id": workflow}, "input": input, "wait": "30s"} | more})
    assert answer.code is None, answer
    instance: dict[str, Any] = answer.body["data"]["instanceStart"]["instance"]
    return instance


async def counts(server: Server) -> tuple[int, int]:
    """How many workflows and instances are stored."""
    data = await server.graphql(COUNTS)
    return data["workflows"]["totalCount"], data["instances"]["totalCount"]


class Health:
    """Proves that a server is as well as before: ready, an ordinary run completes, no stack in its log."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._workflow: str | None = None
        self._read = 0

    async def check(self) -> None:
        """Raises AssertionError unless all is well."""
        ready = await self.server.request("GET", "/health/ready")
        assert ready.status_code == 200, ready.text
        if self._workflow is None:
            definition = flow("ordinary", step("core/transform", output={"is": "{{ n }}"}), step("core/noop", "b"))
            self._workflow = await stored(self.server, definition)
        instance = await run(self.server, self._workflow, {"n": 7})
        assert instance["status"] == "COMPLETED", instance
        assert instance["output"] == {"b": {"is": 7}}, instance
        self.quiet()

    def quiet(self) -> None:
        """The log has no stack since the last look."""
        text = self.server.output
        new, self._read = text[self._read :], len(text)
        assert "Traceback" not in new, new[-6000:]


def plugin(folder: Path, module: str, code: str) -> str:
    """A package as pip would install it, with its entry point; what to put before PYTHONPATH."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mirrorflow.nodes]\n{module} = {module}\n")
    return str(folder)


@contextmanager
def living(folder: Path, **env: str) -> Iterator[Server]:
    """A server for all tests of a module; it belongs to no event loop."""
    server = Server(folder, env=env)
    asyncio.run(server.start())
    try:
        yield server
    finally:
        server.kill()
        asyncio.run(server._http.aclose())


def memory_mb(pid: int) -> float:
    """The resident memory of a process, now."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def stream_refusal(server: Server, query: str, variables: Mapping[str, Any] | None = None) -> str | None:
    """The code with which a subscription was refused; None if it gave something or completed."""
    try:
        async with aclosing(server.subscribe(query, variables)) as stream:
            async for _ in stream:
                return None
    except QueryFailed as failed:
        return str(failed.errors[0]["extensions"]["code"])
    return None
