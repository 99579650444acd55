"""Any program that executes work over HTTP: ``POST {url}/execute``, ``GET {url}/execute/{id}``, ``GET {url}/health``.

The protocol is in ``docs/servers.md``. The id that we give is the reference: the program must take the same id twice as
the same work. It may answer the POST with the result (200), whenever it has it, or with 202 and then be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from engine import clock
from engine.lru import LRU
from engine.nodes.contract import plain_text
from engine.output import MAX_OUTPUT
from engine.servers.contract import (
    CHECK_S,
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
from engine.servers.wire import SAID, Answer, Patience, Wire, WireFailed
from flow.documents import export
from flow.errors import Category, Failure
from flow.servers import CheckOutcome

if TYPE_CHECKING:
    import httpx

#: A program that answers the POST with the result may take so long for it; submitting waits a moment only.
POST_S = 24 * 3_600.0
SUBMIT_S = 5.0
#: Seconds between two questions about one piece of work: first, and at most.
POLL_FIRST_S, POLL_MOST_S = 0.1, 3.0
#: Results that came with the answer to the POST and that nobody has followed yet.
KEPT = 1_000
MAX_FILES = 10_000

_BUSY = frozenset({"busy"})
_WELL = frozenset({"ok", "healthy", "up", "online", "ready", "pass", "available", "idle"})
_WAITING = frozenset({"pending", "queued", "running", "accepted", "created", "started"})
_DONE = frozenset({"completed", "succeeded", "success", "done"})
_FAILED = frozenset({"failed", "error"})
_CANCELED = frozenset({"canceled", "cancelled"})
_STATUSES = _WAITING | _DONE | _FAILED | _CANCELED

Ended = Done | Failed


class Http:
    """The client of a server of type ``http``."""

    def __init__(self, server: ServerAddress, http: httpx.AsyncClient) -> None:
        self._wire = Wire(http, server)
        #: POSTs whose answer is still to come, by reference; a result that has come stays until it is followed.
        self._posts: dict[str, asyncio.Task[Ended | None]] = {}
        self._results: LRU[str, Ended] = LRU(KEPT)

    async def check(self) -> Checked:
        """200 with a JSON object; its ``status``, if it has one, is ok or busy."""
        began = clock.monotonic()
        try:
            answer = await self._wire.ask("GET", "/health", seconds=CHECK_S)
            if answer.status != 200:
                raise answer.wrong(f"answered {answer.status} when asked for its health")
            found = answer.object()
            status = found.get("status", "ok")
            if not isinstance(status, str) or status.lower() not in _WELL | _BUSY:
                raise answer.wrong(f"says that it is {plain_text(str(status), 80)!r}")
        except WireFailed as failed:
            latency = None if failed.status is None else (clock.monotonic() - began) * 1_000
            return Checked(failed.outcome, latency, message=failed.message)
        outcome = CheckOutcome.BUSY if status.lower() in _BUSY else CheckOutcome.OK
        capabilities = found.get("capabilities")
        return Checked(
            outcome,
            (clock.monotonic() - began) * 1_000,
            capabilities if isinstance(capabilities, dict) else {key: found[key] for key in list(found)[:50]},
        )

    async def submit(self, work: Work) -> str:
        """POST it. An answer that takes its time is waited for beside."""
        if work.id in self._results:
            return work.id
        post = self._posts.get(work.id)
        if post is None:
            post = asyncio.create_task(self._post(work), name=f"post {work.id}")
            self._posts[work.id] = post
            post.add_done_callback(lambda done: self._posted(work.id, done))
        done, _ = await asyncio.wait({post}, timeout=SUBMIT_S)
        if done:
            post.result()
        return work.id

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        """The answer to the POST if it is the result, or else what the server says when it is asked."""
        post = self._posts.get(ref)
        try:
            if post is not None:
                await asyncio.wait({post})  # who stops following does not take back the POST
                if not post.cancelled() and (ended := post.result()) is not None:
                    return self._results.pop(ref, ended)
        except ServerFailed as error:
            return error.failed
        if (known := self._results.pop(ref, None)) is not None:
            return known
        return await self._poll(ref, report)

    async def cancel(self, ref: str) -> None:
        """DELETE it."""
        if (post := self._posts.pop(ref, None)) is not None:
            # Nobody will say what became of it: its follower is told so.
            said = f"The request to {self._wire.name} was given up before it was answered."
            self._results[ref] = refused("CANCELED", said, category=Category.CANCELED)
            post.cancel()
        try:
            answer = await self._wire.ask("DELETE", _path(ref))
        except WireFailed as failed:
            raise ServerFailed(failed.failed) from None
        if answer.status in (405, 501):
            said = f"{self._wire.name} can't cancel: it does not take DELETE on /execute/{{id}}."
            raise ServerFailed(refused("CANCEL_UNSUPPORTED", said, category=Category.HTTP_CLIENT))
        if answer.status >= 400 and answer.status not in (404, 409, 410):
            raise ServerFailed(answer.work_failed())

    async def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        """GET its path on the same server, never another one."""
        path = _own_path(file.locator.get("path"))
        if path is None:
            said = f"{self._wire.name} does not say on itself where {plain_text(file.name, 80)!r} can be fetched."
            raise ServerFailed(refused("OUTPUT_MISSING", said))
        try:
            async for piece in self._wire.download(path):
                yield piece
        except WireFailed as failed:
            if failed.status == 404:
                raise ServerFailed(refused("OUTPUT_MISSING", failed.message)) from None
            raise ServerFailed(failed.failed) from None

    async def close(self) -> None:
        """Let go of the POSTs that are not answered yet."""
        posts = list(self._posts.values())
        for post in posts:
            post.cancel()
        await asyncio.gather(*posts, return_exceptions=True)

    async def _post(self, work: Work) -> Ended | None:
        """The result, or None if it is to be asked for. Raises ServerFailed."""
        body = {
            "id": work.id,
            "workflow": {
                "id": work.workflow_id,
                "version": work.version_id,
                "name": work.definition.name,
                "definition": export(work.definition),
            },
            "input": work.input,
            "parameters": dict(work.parameters),
            "file": str(work.file) if work.file is not None else None,
            "priority": work.priority,
            "timeout": work.timeout.total_seconds() if work.timeout is not None else None,
            "callback": dict(work.callback) if work.callback is not None else None,
        }
        seconds = work.timeout.total_seconds() if work.timeout is not None else POST_S
        headers = {"Idempotency-Key": work.id}
        try:
            answer = await self._wire.ask(
                "POST", "/execute", body=body, seconds=max(1.0, seconds), limit=MAX_OUTPUT, headers=headers
            )
            if answer.status >= 400:
                raise ServerFailed(answer.work_failed())
            if answer.status == 202:
                return None
            if answer.status != 200:
                raise answer.wrong(f"answered {answer.status} to POST /execute, where 200 or 202 is due")
            value = answer.json()
            if isinstance(value, dict) and str(value.get("status", "")).lower() in _STATUSES:
                return self._ended(answer, value)
            return Done(value)
        except WireFailed as failed:
            raise ServerFailed(failed.failed) from None

    def _posted(self, ref: str, post: asyncio.Task[Ended | None]) -> None:
        if self._posts.get(ref) is post:
            del self._posts[ref]
        if not post.cancelled() and post.exception() is None and (ended := post.result()) is not None:
            self._results[ref] = ended

    async def _poll(self, ref: str, report: Report) -> Done | Failed:
        wait, patience = POLL_FIRST_S, Patience()
        while True:
            try:
                answer = await self._wire.ask("GET", _path(ref), limit=MAX_OUTPUT)
                if answer.status in (404, 405, 410, 501):
                    # It forgot, or never could be asked: only submitting again tells what became of the work.
                    said = f"{self._wire.name} does not know the work {ref} (any more)."
                    return lost("WORK_UNKNOWN", said, category=Category.HTTP_CLIENT, status_code=answer.status)
                if answer.status != 200:
                    raise answer.wrong(f"answered {answer.status} when asked for {ref}")
                value = answer.object()
                if (ended := self._ended(answer, value)) is not None:
                    return ended
                patience.heard()
                pause = wait
                wait = min(wait * 1.5, POLL_MOST_S)
                report(_fraction(value.get("progress")), plain_text(str(value.get("message") or ""), SAID))
            except WireFailed as failed:
                retry = patience.wait()
                if retry is None:
                    return failed.failed
                pause = retry
            await asyncio.sleep(pause)

    def _ended(self, answer: Answer, value: dict[str, Any]) -> Ended | None:
        """What the server says became of the work; None if it goes on. Raises WireFailed for nonsense."""
        status = str(value.get("status", "")).lower()
        if status in _WAITING:
            return None
        if status in _DONE:
            output = value["result"] if "result" in value else value.get("output")
            return Done(output, self._files(value.get("files")))
        if status in _CANCELED:
            return refused("CANCELED", f"{self._wire.name} says that it was cancelled.", category=Category.CANCELED)
        if status in _FAILED:
            return Failed(_failure(self._wire.name, value.get("error") or value.get("error_message")))
        raise answer.wrong(f"says that the work is {plain_text(status, 80)!r}, which is no status")

    def _files(self, given: Any) -> tuple[OutputFile, ...]:
        found = []
        for each in given[:MAX_FILES] if isinstance(given, list) else ():
            if not isinstance(each, dict):
                continue
            name, kind, size = each.get("name"), each.get("media_type"), each.get("size")
            found.append(
                OutputFile(
                    plain_text(name, 1_000) if isinstance(name, str) else "output",
                    {"path": _own_path(each.get("url"))},
                    plain_text(kind, 255) if isinstance(kind, str) else None,
                    size if isinstance(size, int) and size >= 0 else None,
                )
            )
        return tuple(found)


def _path(ref: str) -> str:
    return f"/execute/{quote(ref, safe='')}"


def _own_path(url: Any) -> str | None:
    """The path of a file on the server itself; None for an address elsewhere."""
    if not isinstance(url, str) or not url.startswith("/") or url.startswith("//") or "\\" in url:
        return None
    if any(character.isspace() or not character.isprintable() for character in url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def _fraction(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return min(1.0, max(0.0, float(value)))


def _failure(server: str, error: Any) -> Failure:
    code, message, retryable, details = "WORK_FAILED", "", None, {}
    if isinstance(error, str):
        message = error
    elif isinstance(error, dict):
        code = error["code"] if isinstance(error.get("code"), str) else code
        message = error["message"] if isinstance(error.get("message"), str) else ""
        retryable = error["retryable"] if isinstance(error.get("retryable"), bool) else None
        details = {"error": error}
    said = plain_text(message, 4_000) or f"{server} says that the work failed, and not why."
    return Failure(plain_text(code, 64), Category.CODE, said, retryable=retryable, details=details)
