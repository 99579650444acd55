"""A ComfyUI for tests: a real HTTP and websocket server that speaks its protocol, with faults that can be switched on.

It runs small graphs of a few node classes (``CLASSES``). As a process of its own:
``python -m tests.comfyui_double [port]`` prints its address and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import json
import re
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

#: Node class → the inputs that it must have. Those that make something are in ``OUTPUTS``.
CLASSES: dict[str, tuple[str, ...]] = {
    "LoadImage": ("image",),
    "Text": ("text",),
    "Steps": ("steps", "source"),  # says its progress step by step, and hands on its source
    "Gate": ("source",),  # waits until the test opens ``gate``, or the one of its ``name``; may fail then
    "Broken": ("source",),  # raises: ``message``, ``type``
    "SaveImage": ("images",),
    "PreviewImage": ("images",),
    "SaveGif": ("images",),
    "SaveOdd": ("images",),  # its files stand under a key that nobody knows
    "ShowText": ("source",),
}
#: Class → the key of its outputs, and the folder that they are in.
OUTPUTS = {
    "SaveImage": ("images", "output"),
    "PreviewImage": ("images", "temp"),
    "SaveGif": ("gifs", "output"),
    "SaveOdd": ("a_key/that nobody knows", "output"),
    "ShowText": ("text", ""),
}
PREVIEW = b"\x00\x00\x00\x01\x00\x00\x00\x02" + b"\x89PNG not really"


class Interrupted(Exception):
    """The running prompt is to stop."""


class Raised(Exception):
    """A node of the graph failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Faults:
    """What goes wrong. Paths are without ``/api``, but for those of the jobs."""

    #: Never answered: the request is read, and then nothing.
    hangs: set[str] = field(default_factory=set)
    #: Answered without end.
    endless: set[str] = field(default_factory=set)
    #: Answered by something else entirely.
    instead: dict[str, Callable[[], Response]] = field(default_factory=dict)
    #: Done as asked, and the answer is cut off, so many times.
    lost_replies: dict[str, int] = field(default_factory=dict)
    #: "", "silent" (accepted, says nothing), "refused", "garbage", "dies" (after the first message), "lies" (all done)
    socket: str = ""
    #: What the history calls the files, instead of their names.
    names: Callable[[str], str] | None = None


HTML: Callable[[], Response] = lambda: HTMLResponse("<!DOCTYPE html><html><body>Please log in</body></html>")  # noqa: E731
REDIRECT: Callable[[], Response] = lambda: RedirectResponse("http://127.0.0.1:1/elsewhere")  # noqa: E731


@dataclass
class ComfyUI:
    """The server's whole state. ``jobs``: a newer build. ``mints``: an old one, which numbers prompts itself and whose
    interrupt stops whatever runs.
    """

    jobs: bool = False
    mints: bool = False
    faults: Faults = field(default_factory=Faults)
    url: str = ""
    inputs: dict[str, bytes] = field(default_factory=dict)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    pending: list[list[Any]] = field(default_factory=list)
    running: list[Any] | None = None
    history: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Everything that was asked, in order: ``(method, path, JSON body or None)``.
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    #: What the last request of any kind said in its headers.
    headers: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set when a Gate node waits.
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    #: Gates with a name, and the names of those that fail once they are open, with the reason.
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    failing: dict[str, str] = field(default_factory=dict)
    #: The ids of all prompts that were begun.
    begun: list[str] = field(default_factory=list)
    sockets: dict[str, WebSocket] = field(default_factory=dict)
    _number: int = 0
    _interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    _work: asyncio.Event = field(default_factory=asyncio.Event)
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    # ---- what tests look at

    def gate_of(self, name: str) -> asyncio.Event:
        """The gate of this name."""
        return self.gates.setdefault(name, asyncio.Event()) if name else self.gate

    def posted(self, path: str) -> list[Any]:
        """The bodies that were posted to this path."""
        return [body for method, asked, body in self.asked if method == "POST" and asked == path]

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until something holds of what was asked or connected."""
        while not met():
            self._stirred.clear()
            await self._stirred.wait()

    def restart(self) -> None:
        """Forget the queue and the history, as a process that was started anew has."""
        self.pending.clear()
        self.history.clear()
        self.running = None
        self._interrupt.set()

    # ---- routes

    async def upload(self, request: Request) -> Response:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        form: Any = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + await request.body())
        fields: dict[str, bytes] = {}
        name = None
        for part in form.iter_parts():
            key = part.get_param("name", header="content-disposition")
            fields[key] = part.get_payload(decode=True)
            if key == "image":
                name = part.get_filename()
        if not name:
            return PlainTextResponse("", 400)
        subfolder = fields.get("subfolder", b"").decode().strip()
        if fields.get("overwrite", b"").strip() not in (b"true", b"1"):
            stem, dot, suffix = name.rpartition(".")
            copy = 1
            while f"{subfolder}/{name}" in self.inputs:
                name, copy = f"{stem} ({copy}){dot}{suffix}", copy + 1
        self.inputs[f"{subfolder}/{name}" if subfolder else name] = fields["image"]
        return JSONResponse({"name": name, "subfolder": subfolder, "type": "input"})

    async def prompt(self, request: Request) -> Response:
        body = json.loads(await request.body())
        graph = body.get("prompt")
        if not isinstance(graph, dict):
            return _refused("no_prompt", "No prompt provided", {})
        id = str(uuid.uuid4()) if self.mints or body.get("prompt_id") is None else body["prompt_id"]
        if str(uuid.UUID(id)) != id:
            return _refused("invalid_prompt_id", "prompt_id must be a valid UUID", {})
        for key, node in graph.items():
            if node.get("class_type") not in CLASSES:
                said = f"Node '{node.get('class_type')}' not found."
                return _refused("missing_node_type", said, {}, f"Node ID '#{key}'")
        outputs = [key for key, node in graph.items() if node["class_type"] in OUTPUTS]
        if not outputs:
            return _refused("prompt_no_outputs", "Prompt has no outputs", {})
        errors: dict[str, Any] = {}
        good = [key for key in outputs if self._valid(graph, key, key, errors)]
        if not good:
            return _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", errors)
        self._number += 1
        extra = {**body.get("extra_data", {})}
        if "client_id" in body:
            extra["client_id"] = body["client_id"]
        self.pending.append([self._number, id, graph, extra, good])
        self._work.set()
        return JSONResponse({"prompt_id": id, "number": self._number, "node_errors": errors})

    def _valid(self, graph: dict[str, Any], key: str, output: str, errors: dict[str, Any]) -> bool:
        node = graph[key]
        wrong = [
            {"type": "required_input_missing", "message": "Required input is missing", "details": name}
            for name in CLASSES[node["class_type"]]
            if name not in node.get("inputs", {})
        ]
        image = node.get("inputs", {}).get("image")
        if node["class_type"] == "LoadImage" and not wrong and image not in self.inputs:
            details = f"image - Invalid image file: {image}"
            wrong.append(
                {"type": "custom_validation_failed", "message": "Custom validation failed", "details": details}
            )
        if wrong:
            about = errors.setdefault(key, {"errors": wrong, "dependent_outputs": [], "class_type": node["class_type"]})
            about["dependent_outputs"].append(output)
        before = [self._valid(graph, link[0], output, errors) for link in _links(node)]
        return not wrong and all(before)

    async def queue(self, request: Request) -> Response:
        return JSONResponse(
            {"queue_running": [self.running] if self.running else [], "queue_pending": list(self.pending)}
        )

    async def queue_post(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if body.get("clear"):
            self.pending.clear()
        self.pending[:] = [item for item in self.pending if item[1] not in body.get("delete", [])]
        return PlainTextResponse("")

    async def history_of(self, request: Request) -> Response:
        id = request.path_params["id"]
        return JSONResponse({id: self.history[id]} if id in self.history else {})

    async def interrupt(self, request: Request) -> Response:
        body = json.loads(await request.body() or b"{}")
        id = None if self.mints else body.get("prompt_id")
        if id is None or (self.running and self.running[1] == id):
            self._interrupt.set()
        return PlainTextResponse("")

    async def view(self, request: Request) -> Response:
        query = request.query_params
        key = (query.get("type", "output"), query.get("subfolder", ""), query["filename"])
        if key not in self.files:
            return PlainTextResponse("", 400 if key[2].startswith("/") or ".." in key[2] else 404)
        return Response(self.files[key], media_type="image/png")

    async def system_stats(self, request: Request) -> Response:
        system = {"os": "posix", "comfyui_version": "0.3.60", "python_version": "3.12", "ram_total": 1, "ram_free": 1}
        device = {"name": "cuda:0 Test", "type": "cuda", "index": 0, "vram_total": 8 << 30, "vram_free": 6 << 30}
        return JSONResponse({"system": system, "devices": [device]})

    async def job(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self.jobs:
            return PlainTextResponse("404: Not Found", 404)
        if id in self.history:
            entry = self.history[id]
            interrupted = any(name == "execution_interrupted" for name, _ in entry["status"]["messages"])
            error = next((data for name, data in entry["status"]["messages"] if name == "execution_error"), None)
            word = "completed" if entry["status"]["status_str"] == "success" else "failed"
            return JSONResponse(
                {
                    "id": id,
                    "status": "cancelled" if interrupted else word,
                    "execution_error": error,
                    "outputs": entry["outputs"],
                    "execution_status": entry["status"],
                    "workflow": {"prompt": entry["prompt"][2], "extra_data": entry["prompt"][3]},
                }
            )
        for word, items in (("in_progress", [self.running] if self.running else []), ("pending", self.pending)):
            for item in items:
                if item[1] == id:
                    return JSONResponse(
                        {"id": id, "status": word, "workflow": {"prompt": item[2], "extra_data": item[3]}}
                    )
        return JSONResponse({"error": "Job not found"}, 404)

    async def job_cancel(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self.jobs:
            return PlainTextResponse("404: Not Found", 404)
        before = len(self.pending)
        self.pending[:] = [item for item in self.pending if item[1] != id]
        running = bool(self.running and self.running[1] == id)
        if running:
            self._interrupt.set()
        return JSONResponse({"cancelled": running or len(self.pending) < before})

    async def ws(self, websocket: WebSocket) -> None:
        if self.faults.socket == "refused":
            await websocket.close()
            return
        await websocket.accept()
        client = websocket.query_params.get("clientId") or uuid.uuid4().hex
        if self.faults.socket == "garbage":
            for message in ("{", "[]", '{"type": 1}', '{"type": "progress", "data": {"prompt_id": 1}}', '"x"'):
                await websocket.send_text(message)
        if self.faults.socket == "lies":
            await websocket.send_json({"type": "execution_success", "data": {"prompt_id": client}})
        if self.faults.socket != "silent":
            # The same client id takes the place of an earlier socket, which hears nothing from then on.
            self.sockets[client] = websocket
            self._stirred.set()
            await websocket.send_json({"type": "status", "data": {"status": {}, "sid": client}})
        with suppress(WebSocketDisconnect):
            while self.faults.socket != "dies":
                if (await websocket.receive())["type"] == "websocket.disconnect":
                    break
        if self.sockets.get(client) is websocket:
            del self.sockets[client]

    async def _say(self, item: list[Any], type: str, **data: Any) -> None:
        client = item[3].get("client_id")
        messages = self.history_messages
        if type.startswith("execution"):
            messages.append([type, {"prompt_id": item[1], **data}])
        websocket = self.sockets.get(client)
        if websocket is not None:
            with suppress(Exception):
                await websocket.send_json({"type": type, "data": {"prompt_id": item[1], **data}})
                await websocket.send_bytes(PREVIEW)

    # ---- executing

    history_messages: list[Any] = field(default_factory=list)

    async def execute(self) -> None:
        """Run what is queued, one after the other, until cancelled."""
        while True:
            await self._work.wait()
            if not self.pending:
                self._work.clear()
                continue
            self.pending.sort(key=lambda item: item[0])
            item = self.running = self.pending.pop(0)
            self.begun.append(item[1])
            self._stirred.set()
            self._interrupt.clear()
            self.history_messages = []
            outputs: dict[str, Any] = {}
            status = "success"
            await self._say(item, "execution_start")
            await self._say(item, "execution_cached", nodes=[])
            values: dict[str, Any] = {}
            at = None
            try:
                for at in _order(item[2], item[4]):
                    await self._say(item, "executing", node=at)
                    values[at] = await self._node(item, at, item[2][at], values, outputs)
                    await self._say(item, "executed", node=at, output=outputs.get(at))
                await self._say(item, "execution_success")
            except Interrupted:
                status = "error"
                await self._say(item, "execution_interrupted", node_id=at, node_type=item[2][at]["class_type"])
            except Raised as problem:
                status = "error"
                await self._say(
                    item,
                    "execution_error",
                    node_id=at,
                    node_type=item[2][at]["class_type"],
                    exception_type=problem.kind,
                    exception_message=str(problem),
                    traceback=["  File x\n"],
                )
            if self.running is item:
                completed = status == "success"
                self.history[item[1]] = {
                    "prompt": item,
                    "outputs": outputs,
                    "status": {"status_str": status, "completed": completed, "messages": self.history_messages},
                    "meta": {},
                }
                self.running = None
            await self._say(item, "executing", node=None)

    async def _node(
        self, item: list[Any], id: str, node: dict[str, Any], values: dict[str, Any], outputs: dict[str, Any]
    ) -> Any:
        inputs = {key: values[value[0]] if _is_link(value) else value for key, value in node["inputs"].items()}
        await asyncio.sleep(0)
        if self._interrupt.is_set():
            raise Interrupted
        match node["class_type"]:
            case "LoadImage":
                return self.inputs[inputs["image"]]
            case "Text":
                return inputs["text"]
            case "Steps":
                for step in range(1, inputs["steps"] + 1):
                    await self._say(item, "progress", node=id, value=step, max=inputs["steps"])
                return inputs["source"]
            case "Gate":
                self.entered.set()
                gate = self.gate_of(inputs.get("name", ""))
                waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._interrupt)]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                if self._interrupt.is_set():
                    raise Interrupted
                if (reason := self.failing.get(inputs.get("name", ""))) is not None:
                    raise Raised("RuntimeError", reason)
                return inputs["source"]
            case "Broken":
                raise Raised(inputs.get("type", "RuntimeError"), inputs.get("message", "it broke"))
            case "ShowText":
                outputs[id] = {"text": [str(inputs["source"])]}
            case kind:
                key, folder = OUTPUTS[kind]
                content = inputs["images"] if isinstance(inputs["images"], bytes) else str(inputs["images"]).encode()
                name = f"{inputs.get('filename_prefix', 'ComfyUI')}_{len(self.files) + 1:05}_.png"
                if self.faults.names is not None:
                    name = self.faults.names(name)
                self.files[(folder, "", name)] = content
                outputs[id] = {key: [{"filename": name, "subfolder": "", "type": folder}], "animated": [False]}
        return None

    # ---- the application, with its faults

    def app(self) -> Callable[[Scope, Receive, Send], Any]:
        """The ASGI application."""
        routes: list[Any] = []
        for prefix in ("", "/api"):
            routes += [
                Route(prefix + "/upload/image", self.upload, methods=["POST"]),
                Route(prefix + "/prompt", self.prompt, methods=["POST"]),
                Route(prefix + "/queue", self.queue),
                Route(prefix + "/queue", self.queue_post, methods=["POST"]),
                Route(prefix + "/history/{id}", self.history_of),
                Route(prefix + "/interrupt", self.interrupt, methods=["POST"]),
                Route(prefix + "/view", self.view),
                Route(prefix + "/system_stats", self.system_stats),
                WebSocketRoute(prefix + "/ws", self.ws),
            ]
        routes += [
            Route("/api/jobs/{id}", self.job),
            Route("/api/jobs/{id}/cancel", self.job_cancel, methods=["POST"]),
        ]
        inner = Starlette(routes=routes)

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            path = scope["path"]
            if not path.startswith("/api/jobs"):
                path = path.removeprefix("/api")
            plain = re.sub(r"^(/history|/api/jobs)/[^/]+", r"\1", path)
            body = await Request(scope, receive).body()
            self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            said = None
            with suppress(ValueError):
                said = json.loads(body)
            self.asked.append((scope["method"], path, said))
            self._stirred.set()

            async def again() -> Any:
                return {"type": "http.request", "body": body, "more_body": False}

            if plain in self.faults.hangs:
                await receive()  # until the client hangs up
                return
            if plain in self.faults.endless:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
                    await asyncio.sleep(0)
            if plain in self.faults.instead:
                await self.faults.instead[plain]()(scope, again, send)
                return
            if self.faults.lost_replies.get(plain, 0) > 0:
                self.faults.lost_replies[plain] -= 1

                async def nowhere(message: Any) -> None:
                    return

                await inner(scope, again, nowhere)
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
                await send({"type": "http.response.body", "body": b"{", "more_body": False})
                return
            await inner(scope, again, send)

        return faulty


def _refused(type: str, message: str, node_errors: dict[str, Any], details: str = "") -> Response:
    error = {"type": type, "message": message, "details": details, "extra_info": {}}
    return JSONResponse({"error": error, "node_errors": node_errors}, 400)


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _links(node: dict[str, Any]) -> list[list[Any]]:
    return [value for value in node.get("inputs", {}).values() if _is_link(value)]


def _order(graph: dict[str, Any], outputs: list[str]) -> Iterator[str]:
    """Nodes that the outputs need, each behind its sources."""
    done: set[str] = set()

    def visit(key: str) -> Iterator[str]:
        if key not in done:
            done.add(key)
            for link in _links(graph[key]):
                yield from visit(link[0])
            yield key

    for output in outputs:
        yield from visit(output)


@asynccontextmanager
async def served(double: ComfyUI, port: int = 0) -> AsyncIterator[ComfyUI]:
    """Serve it on the loopback; ``double.url`` is its address. It is gone when the block ends."""
    # With the protocol named, since asyncio turns Nagle's delays off only then.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    double.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        double.app(), lifespan="off", log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=0
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not ``serve``: that looks ten times a second whether it shall end, and takes the signals.
    await server.startup(sockets=[listener])
    executing = asyncio.create_task(double.execute())
    try:
        yield double
    finally:
        executing.cancel()
        await asyncio.gather(executing, return_exceptions=True)
        await server.shutdown(sockets=[listener])


GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {"class_type": "Steps", "inputs": {"steps": 4, "source": ["1", 0]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out"}},
}


async def _main(port: int) -> None:
    async with served(ComfyUI(), port) as double:
        print(double.url, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
