"""Another Mirrorflow as a server: by its GraphQL, as any client would.

The workflow is looked for there by name, and in it the very version: one with an equal definition. Where the other has
none, it is imported if the token may write workflows (as a new workflow whose triggers are off, or as a version beside
the current one, which stays current), and else the work fails with WORKFLOW_MISSING.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from engine import clock
from engine.access import Permission
from engine.files import Files, PathRefused
from engine.lru import LRU
from engine.nodes.contract import plain_text
from engine.output import MAX_OUTPUT
from engine.servers.contract import (
    CHECK_S,
    MAX_ANSWER,
    Checked,
    Done,
    Failed,
    OutputFile,
    Report,
    ServerAddress,
    ServerFailed,
    Work,
    lost,
    refused,
)
from engine.servers.outputs import ended
from engine.servers.wire import REQUEST_S, SAID, Patience, Wire, WireFailed
from flow.definition import Definition
from flow.documents import export
from flow.durations import iso
from flow.errors import Category, Failure
from flow.servers import CheckOutcome
from flow.states import InstanceStatus

if TYPE_CHECKING:
    import httpx

#: Seconds between two looks at an instance: first, at most, and while its events are heard.
LOOK_FIRST_S, LOOK_MOST_S, LOOK_HEARD_S = 0.2, 5.0, 15.0
#: Versions of one workflow among which an equal one is looked for, a page at a time.
VERSIONS_SEEN, VERSIONS_PAGE = 40, 10
_CHUNK = 1 << 20


WORKFLOW = """
query($name: String!) { workflow(name: $name) { id status currentVersion { id definition } } }
"""
VERSIONS = """
query($name: String!, $first: Int!, $after: String) { workflow(name: $name) {
  versions(first: $first, after: $after) { nodes { id definition } pageInfo { hasNextPage endCursor } } } }
"""
_REFUSAL = "... on ValidationFailed { problems { code pointer message } } ... on UserError { code message }"
IMPORT = f"""
mutation($input: WorkflowImportInput!) {{ workflowImport(input: $input) {{
  __typename ... on WorkflowImportPayload {{ workflow {{ id }} version {{ id }} }} {_REFUSAL} }} }}
"""
DEACTIVATE = """
mutation($input: WorkflowDeactivateInput!) { workflowDeactivate(input: $input) {
  __typename ... on UserError { code message } } }
"""
BESIDE = f"""
mutation($input: WorkflowVersionCreateInput!) {{ workflowVersionCreate(input: $input) {{
  __typename ... on WorkflowVersionCreatePayload {{ version {{ id }} }} {_REFUSAL} }} }}
"""
START = f"""
mutation($input: InstanceStartInput!) {{ instanceStart(input: $input) {{
  __typename ... on InstanceStartPayload {{ instance {{ id }} }} {_REFUSAL} }} }}
"""
CANCEL = f"""
mutation($input: InstanceCancelInput!) {{ instanceCancel(input: $input) {{
  __typename ... on InstanceCancelPayload {{ instance {{ id }} }} {_REFUSAL} }} }}
"""
INSTANCE = """
query($id: ID!) { instance(id: $id) { status lastSeq progress { fraction } } }
"""
RESULT = """
query($id: ID!) { instance(id: $id) {
  status output outputArtifact { id size } error { code category message nodeId attempt retryable details } } }
"""
EVENTS = """
subscription($id: ID!, $after: Int!) { instanceEvents(id: $id, after: $after) { seq type } }
"""


class Mirrorflow:
    """The client of a server of type ``mirrorflow``. ``files`` are the folders that both may share."""

    def __init__(self, server: ServerAddress, http: httpx.AsyncClient, files: Files) -> None:
        self._server = server
        self._wire = Wire(http, server)
        self._files = files
        #: Our version's id → the equal version's there.
        self._versions: LRU[str, str] = LRU(1_000)
        self._finding: dict[str, asyncio.Lock] = {}

    async def check(self) -> Checked:
        """Its own word; with a token also that the token is good there."""
        began = clock.monotonic()
        try:
            data = await self._ask("{ health { status } viewer { permissions } }", {}, seconds=CHECK_S)
            match data.get("health"):
                case {"status": "OK"}:
                    pass
                case {"status": str(status)}:
                    raise self._wrong(f"says that it is {plain_text(status, 80)}")
                case _:
                    raise self._wrong("does not answer as a Mirrorflow does")
            viewer = data.get("viewer")
            if viewer is None:
                raise self._wrong("does not know the token" if self._server.token else "needs a `token`")
        except WireFailed as failed:
            latency = None if failed.status is None else (clock.monotonic() - began) * 1_000
            return Checked(failed.outcome, latency, message=failed.message)
        except ServerFailed as error:
            return Checked(CheckOutcome.WRONG_ANSWER, (clock.monotonic() - began) * 1_000, message=str(error))
        permissions = viewer.get("permissions") if isinstance(viewer, dict) else None
        known = {"permissions": permissions} if isinstance(permissions, list) else {}
        if known and Permission.INSTANCE_RUN not in known["permissions"]:
            message = f"{self._wire.name} knows the token, which may not start runs there: it needs the scope operator."
            return Checked(CheckOutcome.WRONG_ANSWER, (clock.monotonic() - began) * 1_000, known, message=message)
        return Checked(CheckOutcome.OK, (clock.monotonic() - began) * 1_000, known)

    async def submit(self, work: Work) -> str:
        """Start an instance of the equal version there, with the work's id as its idempotency key."""
        given: dict[str, Any] = {
            "workflow": {"version": await self._version(work)},
            "input": work.input,
            "priority": work.priority,
            "idempotencyKey": work.id,
        }
        if work.timeout is not None:
            given["timeout"] = iso(work.timeout)
        if work.parameters:
            given["parameters"] = dict(work.parameters)
        known = work.version_id in self._versions
        try:
            payload = await self._mutate(START, given)
        except ServerFailed as error:
            if not known or error.failed.failure.code not in ("NOT_FOUND", "CONFLICT"):
                raise
            # Its database was replaced, or the workflow deleted, since the version was found there: look again.
            self._versions.pop(work.version_id, None)
            payload = await self._mutate(START, given | {"workflow": {"version": await self._version(work)}})
        try:
            return str(payload["instance"]["id"])
        except (KeyError, TypeError):
            raise ServerFailed(self._wrong("does not answer as a Mirrorflow does").failed) from None

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        """Looks at the instance; its events, while they are heard, say when."""
        changed = asyncio.Event()
        hearing: asyncio.Task[None] | None = None
        wait, patience = LOOK_FIRST_S, Patience()
        try:
            while True:
                try:
                    found = (await self._ask(INSTANCE, {"id": ref})).get("instance")
                    if not isinstance(found, dict):
                        said = f"{self._wire.name} does not know the instance {plain_text(ref, 80)} (any more)."
                        return lost("WORK_UNKNOWN", said, category=Category.HTTP_CLIENT)
                    if InstanceStatus(found["status"]).terminal:
                        return await self._result(ref)
                    patience.heard()
                    report(_fraction(found), "")
                    if hearing is None or hearing.done():
                        hearing = asyncio.create_task(self._hear(ref, int(found["lastSeq"]), changed))
                    pause = wait if hearing.done() else LOOK_HEARD_S
                except (WireFailed, ServerFailed, KeyError, TypeError, ValueError) as error:
                    retry = patience.wait()
                    if retry is None:
                        return self._lost(error)
                    pause = retry
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await changed.wait()
                if changed.is_set():
                    changed.clear()
                    # what comes within this moment is one look
                    await asyncio.sleep(LOOK_FIRST_S / 4)
                    wait = LOOK_FIRST_S
                else:
                    wait = min(wait * 1.5, LOOK_MOST_S)
        finally:
            if hearing is not None:
                hearing.cancel()
                await asyncio.gather(hearing, return_exceptions=True)

    async def cancel(self, ref: str) -> None:
        """Ask the instance there to stop."""
        try:
            await self._mutate(CANCEL, {"id": ref, "reason": "Its task does not want it any more."})
        except ServerFailed as error:
            if error.failed.failure.code not in ("NOT_FOUND", "CONFLICT", "ILLEGAL_TRANSITION"):
                raise

    async def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        """An artifact by its route. A file by its path, where that is in a folder that we share with the server."""
        if "artifact" in file.locator:
            try:
                async for piece in self._wire.download(f"/artifacts/{quote(str(file.locator['artifact']), safe='')}"):
                    yield piece
            except WireFailed as failed:
                if failed.status in (403, 404):
                    raise ServerFailed(refused("OUTPUT_MISSING", failed.message)) from None
                raise ServerFailed(failed.failed) from None
            return
        try:
            path = await asyncio.to_thread(self._files.reading, str(file.locator.get("path", "")))
            opened = await asyncio.to_thread(path.open, "rb")
        except (PathRefused, OSError) as error:
            said = (
                f"{plain_text(file.name, 80)!r} lies at the server {self._server.name!r} and not in a folder that this "
                f"one shares with it ({error}). Share a folder and name it in ALLOWED_ROOTS of both."
            )
            raise ServerFailed(refused("OUTPUT_MISSING", said)) from None
        try:
            while piece := await asyncio.to_thread(opened.read, _CHUNK):
                yield piece
        finally:
            opened.close()

    async def close(self) -> None:
        """Nothing is held."""

    # The version there

    async def _version(self, work: Work) -> str:
        lock = self._finding.setdefault(work.version_id, asyncio.Lock())
        async with lock:  # or a batch that begins would import its workflow many times
            known = self._versions.get(work.version_id)
            if known is None:
                known = await self._found(work.definition) or await self._brought(work.definition)
                self._versions[work.version_id] = known
        self._finding.pop(work.version_id, None)
        return known

    async def _found(self, definition: Definition) -> str | None:
        """The version there that is equal to ours."""
        wanted = _plain(export(definition))
        try:
            workflow = (await self._ask(WORKFLOW, {"name": definition.name}, limit=MAX_OUTPUT)).get("workflow")
            if workflow is None:
                return None
            current = workflow["currentVersion"]
            if current is not None and current["definition"] == wanted:
                return str(current["id"])
            after, seen = None, 0
            while seen < VERSIONS_SEEN:
                asked = {"name": definition.name, "first": VERSIONS_PAGE, "after": after}
                page = (await self._ask(VERSIONS, asked, limit=4 * MAX_OUTPUT))["workflow"]["versions"]
                for version in page["nodes"]:
                    if version["definition"] == wanted:
                        return str(version["id"])
                if not page["pageInfo"]["hasNextPage"]:
                    return None
                after, seen = page["pageInfo"]["endCursor"], seen + VERSIONS_PAGE
            return None
        except WireFailed as failed:
            raise ServerFailed(failed.failed) from None
        except (KeyError, TypeError):
            raise ServerFailed(self._wrong("does not answer as a Mirrorflow does").failed) from None

    async def _brought(self, definition: Definition) -> str:
        """Import our version there. Raises ServerFailed: WORKFLOW_MISSING if it may not be."""
        document = {"json": export(definition)}
        note = "Imported by another Mirrorflow, to run there"
        try:
            try:
                payload = await self._mutate(IMPORT, {"definition": document, "changeNote": note})
                if any(trigger.type not in ("manual", "api") for trigger in definition.triggers):
                    # what starts by itself here must not start there too
                    await self._mutate(DEACTIVATE, {"id": payload["workflow"]["id"]})
            except ServerFailed as error:
                if error.failed.failure.code != "CONFLICT":
                    raise
                workflow = (await self._ask(WORKFLOW, {"name": definition.name}, limit=MAX_OUTPUT))["workflow"]
                given = {"workflow": workflow["id"], "definition": document, "changeNote": note}
                payload = await self._mutate(BESIDE, given)
            return str(payload["version"]["id"])
        except WireFailed as failed:
            raise ServerFailed(failed.failed) from None
        except (KeyError, TypeError):
            raise ServerFailed(self._wrong("does not answer as a Mirrorflow does").failed) from None
        except ServerFailed as error:
            failure = error.failed.failure
            if error.failed.server_lost:
                raise
            said = (
                f"{self._wire.name} has no equal version of the workflow {definition.name!r}, and it can't be imported "
                f"there: {failure.message} Import it there (`mirrorflow export`, `mirrorflow import --url`), or give "
                "the server a token that may write workflows."
            )
            raise ServerFailed(refused("WORKFLOW_MISSING", said, reason=failure.code)) from None

    # The wire

    async def _ask(
        self, document: str, variables: Mapping[str, Any], *, seconds: float = REQUEST_S, limit: int = MAX_ANSWER
    ) -> dict[str, Any]:
        """The ``data`` of an operation. Raises WireFailed, or ServerFailed for errors that it answers."""
        body = {"query": document, "variables": dict(variables)}
        answer = await self._wire.ask("POST", "/graphql", body=body, seconds=seconds, limit=limit)
        if answer.status in (429, 503):
            raise ServerFailed(answer.work_failed())
        value = answer.object()
        errors = value.get("errors")
        if errors:
            raise ServerFailed(self._errors(errors))
        data = value.get("data")
        if not isinstance(data, dict):
            raise answer.wrong(f"answered {answer.status} and does not speak GraphQL")
        return data

    async def _mutate(self, document: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The payload of a mutation. Raises ServerFailed."""
        try:
            data = await self._ask(document, {"input": dict(given)})
        except WireFailed as failed:
            raise ServerFailed(failed.failed) from None
        payload = next(iter(data.values()), None)
        if not isinstance(payload, dict) or "__typename" not in payload:
            raise ServerFailed(self._wrong("does not answer as a Mirrorflow does").failed)
        if str(payload["__typename"]).endswith("Payload"):
            return payload
        code, said = str(payload.get("code") or "REFUSED"), plain_text(str(payload.get("message") or ""), SAID)
        category = Category.RATE_LIMIT if code in ("QUOTA_EXCEEDED", "CONCURRENCY_LIMIT") else Category.VALIDATION
        message = f"{self._wire.name} refuses: {said}"
        raise ServerFailed(refused(plain_text(code, 64), message, category=category))

    def _errors(self, errors: Any) -> Failed:
        """What top-level errors mean: the token's fault, the work's, or the server's."""
        first = errors[0] if isinstance(errors, list) and isinstance(errors[0], dict) else {}
        extensions = first.get("extensions")
        code = plain_text(str(extensions.get("code") if isinstance(extensions, dict) else "") or "ERROR", 64)
        message = f"{self._wire.name} answers {code}: {plain_text(str(first.get('message') or ''), SAID)}"
        if code in ("BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED"):
            return refused("WORK_REFUSED", message, category=Category.HTTP_CLIENT, answered=code)
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return lost("SERVER_REFUSES_TOKEN", message, category=Category.HTTP_CLIENT, answered=code)
        return lost("SERVER_ANSWER_INVALID", message, category=Category.HTTP_SERVER, answered=code)

    def _lost(self, error: Exception) -> Failed:
        """The server can't be heard of any more, for the last reason of several."""
        match error:
            case WireFailed():
                return error.failed
            case ServerFailed():
                return replace(error.failed, server_lost=True)
            case _:
                return self._wrong("does not answer as a Mirrorflow does").failed

    def _wrong(self, what: str) -> WireFailed:
        return WireFailed(CheckOutcome.WRONG_ANSWER, f"{self._wire.name} {what}.", status=200)

    async def _result(self, ref: str) -> Done | Failed:
        found = (await self._ask(RESULT, {"id": ref}, limit=MAX_OUTPUT))["instance"]
        output, artifact = found["output"], found["outputArtifact"]
        if artifact is not None:
            content = bytearray()
            async for piece in self._wire.download(f"/artifacts/{quote(str(artifact['id']), safe='')}"):
                content += piece
                if len(content) > MAX_OUTPUT:
                    raise self._wrong("sends an output that is larger than any")
            try:
                output = msgspec.json.decode(content)
            except msgspec.MsgspecError:
                raise self._wrong("sends an output that is no JSON") from None
        return ended(found["status"], output, _failure(found["error"]))

    async def _hear(self, ref: str, after: int, changed: asyncio.Event) -> None:
        """Set ``changed`` at every event; ends when the stream does, however it does."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException
        from websockets.typing import Subprotocol

        token = self._server.token
        hello = {"type": "connection_init", "payload": {"Authorization": f"Bearer {token}"} if token else {}}
        asked = {"query": EVENTS, "variables": {"id": ref, "after": after}}
        try:
            async with connect(
                f"ws{self._server.url.removeprefix('http')}/graphql",
                subprotocols=[Subprotocol("graphql-transport-ws")],
                compression=None,
                max_size=MAX_ANSWER,
                proxy=None,
                open_timeout=REQUEST_S,
            ) as socket:
                await socket.send(_text(hello))
                async for raw in socket:
                    match msgspec.json.decode(raw):
                        case {"type": "connection_ack"}:
                            await socket.send(_text({"id": "1", "type": "subscribe", "payload": asked}))
                        case {"type": "next"}:
                            changed.set()
                        case {"type": "ping"}:
                            await socket.send(_text({"type": "pong"}))
                        case _:
                            return
        except (WebSocketException, OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            return  # looking goes on without it
        finally:
            changed.set()


def _text(message: Any) -> str:
    return msgspec.json.encode(message).decode()


def _plain(document: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(document))


def _fraction(instance: Mapping[str, Any]) -> float | None:
    progress = instance.get("progress")
    value = progress.get("fraction") if isinstance(progress, dict) else None
    return min(1.0, max(0.0, float(value))) if isinstance(value, int | float) else None


def _failure(error: Any) -> dict[str, Any] | None:
    """The failure as ``flow.errors`` has it, without what could be anything."""
    if not isinstance(error, dict):
        return None
    known = {name: error.get(name) for name in ("code", "category", "message", "attempt", "retryable")}
    known |= {"node_id": error.get("nodeId"), "details": error.get("details") or {}}
    try:
        msgspec.convert(known, Failure)
    except msgspec.ValidationError:
        return {"code": "INSTANCE_FAILED", "category": "INTERNAL", "message": plain_text(str(error), SAID)}
    return known
