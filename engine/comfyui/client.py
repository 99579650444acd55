"""The routes of one ComfyUI: upload, prompt, where a prompt is, cancel, view.

Builds differ: newer ones answer for single prompts under ``/api/jobs``, older ones only by their queue and history, and
the oldest number prompts themselves. All of them are spoken to here, and nothing above knows the difference.
"""

from __future__ import annotations

import asyncio
import mimetypes
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from weakref import WeakValueDictionary

import msgspec

from engine import clock
from engine.servers.contract import Failed, ServerFailed, refused
from engine.servers.wire import Answer, Wire, WireFailed
from flow import comfyanswers as answers
from flow import comfyui
from flow.comfyanswers import State
from flow.errors import Category, Failure
from flow.servers import CheckOutcome

MAX_LISTING = 64 << 20  # bytes: a queue holds the graphs of all that waits
MAX_FILE = 4 << 30  # bytes
DOWNLOAD_S = 3_600.0
UPLOAD_S = 3_600.0
_CHUNK = 1 << 20
_PATIENCE = (429, 503)  # takes nothing now
_OFF_LOOP = 256 << 10  # bytes of JSON from which on it is parsed in a thread
#: Where uploaded files lie in the server's input folder.
SUBFOLDER = "mirrorflow"
#: By prompt, while it is submitted: whoever submits it at the same time finds it there.
_SUBMITTING: WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str, str], asyncio.Lock] = WeakValueDictionary()
_NAMESPACE = uuid.UUID("6f1cf1f6-5c3b-5f0e-9d53-0a6f6d8e2b11")


def prompt_id(work_id: str) -> str:
    """The id that this work has at every ComfyUI: a lowercase canonical UUID, always the same."""
    return str(uuid.uuid5(_NAMESPACE, work_id))


class ComfyUI:
    """One ComfyUI, by its routes. Methods raise ServerFailed."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        #: Whether it answers under ``/api/jobs``; None until it was asked.
        self._jobs: bool | None = None

    # ---- what goes in

    async def upload(self, file: Path, name: str) -> str:
        """Store a file in the server's input folder, over one of that name; how graphs call it."""
        try:
            opened = await asyncio.to_thread(file.open, "rb")
        except OSError as problem:
            raise _unreadable(file, problem) from None
        try:
            size = (await asyncio.to_thread(os.fstat, opened.fileno())).st_size
            boundary = uuid.uuid4().hex
            head = _form(boundary, {"type": "input", "subfolder": SUBFOLDER, "overwrite": "true"}, name)
            tail = f"\r\n--{boundary}--\r\n".encode()
            answer = await self._ask(
                "POST",
                "/upload/image",
                content=_body(head, opened, size, tail),
                headers={
                    "Content-Type": f"multipart/form-data; boundary={boundary}",
                    "Content-Length": str(len(head) + size + len(tail)),
                },
                seconds=UPLOAD_S,
            )
        except OSError as problem:
            raise _unreadable(file, problem) from None
        finally:
            await asyncio.to_thread(opened.close)
        if answer.status != 200:
            raise ServerFailed(answer.work_failed())
        stored = _stored_as(await self._decoded(answer))
        if stored is None:
            self._wrong(answer, "did not say where it put the file")
        return stored

    async def submit(self, graph: Mapping[str, Any], id: str, note: Mapping[str, Any], *, partly: bool = False) -> str:
        """Queue the graph as prompt ``id``; the id that the server gave it. If it is there already, nothing is sent.

        ``note`` comes back with the outputs. Unless ``partly``, a graph of which the server drops an invalid output is
        cancelled again and refused, as one that it refuses itself is.
        """
        # ComfyUI queues an id twice. Across processes it is the caller's to submit work in one at a time.
        lock = _SUBMITTING.setdefault((asyncio.get_running_loop(), self._wire.name, id), asyncio.Lock())
        async with lock:
            return await self.find(id) or await self._submit(graph, id, note, partly)

    async def _submit(self, graph: Mapping[str, Any], id: str, note: Mapping[str, Any], partly: bool) -> str:
        try:
            answer = await self._wire.ask(
                "POST",
                "/prompt",
                body={"prompt": graph, "prompt_id": id, "client_id": id, "extra_data": {answers.NOTE: dict(note)}},
            )
        except WireFailed as problem:
            # The answer is lost, and maybe only the answer.
            try:
                found = await self.find(id)
            except ServerFailed:
                found = None
            if found is None:
                raise ServerFailed(problem.failed) from None
            return found
        if answer.status != 200:
            body = await self._decoded(answer) if answer.status == 400 else None
            failure = answers.rejected(answer.status, body)
            raise ServerFailed(answer.work_failed() if failure is None else _as_told(failure))
        said = answers.accepted(await self._decoded(answer))
        if said is None:
            self._wrong(answer, "did not say which prompt it queued")
        if said.invalid and not partly:
            await self.cancel(said.prompt_id)
            raise ServerFailed(_as_told(answers.partly_invalid(said.invalid)))
        return said.prompt_id

    # ---- where it is

    async def find(self, id: str) -> str | None:
        """The id under which the server knows the prompt that was sent as ``id``, None if it doesn't."""
        if not isinstance(await self.state(id), answers.Unknown):
            return id
        return None if self._jobs else answers.queued_for(id, await self._queue())

    async def state(self, id: str) -> State:
        """Where the prompt is."""
        if self._jobs is not False:
            found = await self._job(id)
            if found is not None:
                return found
        # The queue first: what ends in between is in the history then.
        waiting = answers.in_queue(id, await self._queue())
        if not isinstance(waiting, answers.Unknown):
            return waiting
        answer = await self._ask("GET", f"/history/{id}", limit=MAX_LISTING)
        found = answers.in_history(id, await self._decoded(answer)) if answer.status == 200 else None
        if found is None:
            self._wrong(answer, f"answered {answer.status}, and not as a history does")
        return found

    async def _job(self, id: str) -> State | None:
        """What the newer route says; None where there is no such route."""
        answer = await self._ask("GET", f"/api/jobs/{id}", limit=MAX_LISTING)
        try:
            body = await self._decoded(answer)
        except ServerFailed:
            body = None
        found = answers.in_jobs(id, body) if answer.status == 200 else None
        if found is None and answer.status == 404 and isinstance(body, dict) and "error" in body:
            found = answers.Unknown()
        if found is not None:
            self._jobs = True
        elif self._jobs:
            self._wrong(answer, "did not answer as for a job")
        elif answer.status < 500:
            self._jobs = False
        return found

    async def _queue(self) -> Any:
        answer = await self._ask("GET", "/queue", limit=MAX_LISTING)
        body = await self._decoded(answer) if answer.status == 200 else None
        if not answers.is_queue(body):
            self._wrong(answer, f"answered {answer.status}, and not as a queue does")
        return body

    async def stats(self, seconds: float) -> Mapping[str, Any]:
        """``GET /system_stats``. Raises WireFailed, not ServerFailed."""
        answer = await self._wire.ask("GET", "/system_stats", seconds=seconds)
        body = answer.object() if answer.status == 200 else {}
        if not isinstance(body.get("system"), dict):
            raise answer.wrong(f"answered {answer.status} and not as a ComfyUI does")
        return body

    # ---- the end

    async def cancel(self, id: str) -> None:
        """Take the prompt from the queue, or interrupt it; nothing else that runs there is touched."""
        for _ in range(3):
            state = await self.state(id)
            if not isinstance(state, answers.Pending | answers.Running):
                return
            if self._jobs and (await self._ask("POST", f"/api/jobs/{id}/cancel")).status == 200:
                return
            if isinstance(state, answers.Running):
                # Older builds interrupt whatever runs: only sent when the queue has just said that it is ours.
                await self._tell("/interrupt", {"prompt_id": id})
                return
            # It may begin to run before it is taken out: then it is interrupted in the next round.
            await self._tell("/queue", {"delete": [id]})

    async def view(
        self, filename: str, subfolder: str, type: str, *, limit: int = MAX_FILE
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a file that a prompt made."""
        params = {"filename": filename, "subfolder": subfolder, "type": type}
        until = clock.monotonic() + DOWNLOAD_S
        size = 0
        try:
            async for part in self._wire.download("/view", params=params):
                if not size and _is_page(part) and not filename.lower().endswith((".html", ".htm")):
                    said = f"{self._wire.name} sent a web page where a file is due."
                    raise WireFailed(CheckOutcome.WRONG_ANSWER, said)
                size += len(part)
                if size > limit:
                    said = f"The file {comfyui.display_name(filename)!r} is larger than {limit:,} bytes."
                    raise ServerFailed(refused("FILE_TOO_LARGE", said, category=Category.RESOURCE, limit=limit))
                if clock.monotonic() > until:
                    said = f"{self._wire.name} did not send a file within {DOWNLOAD_S:g} s."
                    raise WireFailed(CheckOutcome.TIMEOUT, said)
                yield part
        except WireFailed as problem:
            if problem.status in (400, 403, 404):
                said = f"{self._wire.name} has no file {comfyui.display_name(filename)!r} to give."
                raise ServerFailed(refused("COMFYUI_FILE_GONE", said, category=Category.HTTP_CLIENT)) from None
            raise ServerFailed(problem.failed) from None

    # ---- how it is spoken to

    async def _ask(self, method: str, path: str, **request: Any) -> Answer:
        try:
            answer = await self._wire.ask(method, path, **request)
        except WireFailed as problem:
            raise ServerFailed(problem.failed) from None
        if answer.status in _PATIENCE:
            raise ServerFailed(answer.work_failed())
        return answer

    async def _tell(self, path: str, body: Any) -> None:
        answer = await self._ask("POST", path, body=body)
        if answer.status >= 400:
            raise ServerFailed(answer.work_failed())

    async def _decoded(self, answer: Answer) -> Any:
        large = len(answer.content) > _OFF_LOOP
        try:
            return await asyncio.to_thread(_json, answer.content) if large else _json(answer.content)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            kind = answer.headers.get("content-type", "").partition(";")[0].strip()[:80]
            self._wrong(answer, f"answered {answer.status} with {kind or 'something'} that is not JSON")

    def _wrong(self, answer: Answer, what: str) -> NoReturn:
        raise ServerFailed(answer.wrong(what).failed) from None


def _as_told(failure: Failure) -> Failed:
    """The work is at fault, in these words."""
    return Failed(failure)


def _json(content: bytes) -> Any:
    return msgspec.json.decode(content)


def _is_page(part: bytes) -> bool:
    return part[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _unreadable(file: Path, problem: OSError) -> ServerFailed:
    said = f"The file {comfyui.plain(file.name, 200)!r} can't be read: {problem.strerror or type(problem).__name__}."
    return ServerFailed(refused("FILE_UNREADABLE", said))


def upload_name(id: str, file: Path) -> str:
    """What an uploaded file is called at the server: its prompt's id, and a suffix by which its kind is known there."""
    suffix = file.suffix.lower()
    return id + (suffix if suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 8 else "")


def _form(boundary: str, fields: Mapping[str, str], name: str) -> bytes:
    """A multipart form up to the bytes of its file. ``name`` has no character that must be escaped."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    )
    return "".join(parts).encode()


async def _body(head: bytes, file: BinaryIO, size: int, tail: bytes) -> AsyncIterator[bytes]:
    """The form, of exactly the length that was announced, whatever happens to the file meanwhile."""
    yield head
    while size and (part := await asyncio.to_thread(file.read, min(size, _CHUNK))):
        size -= len(part)
        yield part
    if size:
        raise OSError("it became shorter while it was read")
    yield tail


def _stored_as(body: Any) -> str | None:
    """How a graph names what was uploaded."""
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= 1_000 or "\0" in name:
        return None
    subfolder, kind = body.get("subfolder"), body.get("type")
    path = f"{subfolder}/{name}" if isinstance(subfolder, str) and subfolder else name
    return path if kind in (None, "input") else f"{path} [{comfyui.plain(kind, 20)}]"
