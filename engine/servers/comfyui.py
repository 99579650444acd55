"""A ComfyUI as a server: work is a prompt, its id made from the work's.

It runs workflows of one ``comfyui/prompt``: graph and mappings are taken from its parameters, the server that these
name is not. A workflow of more nodes runs on a Mirrorflow, with ``comfyui/prompt`` nodes that name their server.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from mimetypes import guess_type
from typing import TYPE_CHECKING, Any

import msgspec

from engine import clock
from engine.comfyui import prompt as prompts
from engine.comfyui.client import ComfyUI, prompt_id
from engine.comfyui.following import Pace, follow
from engine.comfyui.prompt import Prompt
from engine.nodes.contract import plain_text
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
from engine.servers.wire import Wire, WireFailed
from flow import comfyanswers as answers
from flow import comfyui, expressions
from flow.errors import Category
from flow.expressions import ExpressionError
from flow.servers import CheckOutcome

if TYPE_CHECKING:
    import httpx


class Comfy:
    """The client of a server of type ``comfyui``."""

    def __init__(self, server: ServerAddress, http: httpx.AsyncClient, pace: Pace | None = None) -> None:
        self._server = server
        self._comfy = ComfyUI(Wire(http, server))
        self._pace = pace

    async def check(self) -> Checked:
        """``GET /system_stats``: its version and devices."""
        began = clock.monotonic()
        try:
            stats = await self._comfy.stats(CHECK_S)
        except WireFailed as failed:
            latency = None if failed.status is None else (clock.monotonic() - began) * 1_000
            return Checked(failed.outcome, latency, message=failed.message)
        return Checked(CheckOutcome.OK, (clock.monotonic() - began) * 1_000, _capabilities(stats))

    async def submit(self, work: Work) -> str:
        """Upload the work's file, fill the graph, queue it."""
        prompt = _prompt(work)
        said = _said(work)
        return await prompts.send(self._comfy, prompt, work.input, work.file, prompt_id(work.id), said=said)

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        """By polling, with the socket as a hint."""
        if not answers.is_prompt_id(ref):
            return lost("WORK_UNKNOWN", f"{ref!r} is no prompt.", category=Category.INTERNAL)
        try:
            end = await follow(self._comfy, self._server, ref, report, self._pace)
        except ServerFailed as problem:
            return problem.failed
        if isinstance(end, answers.Broken):
            return Failed(end.failure)
        found = prompts.made(end)
        output: dict[str, Any] = {
            "prompt_id": ref,
            "files": [{"node": file.node, "key": file.key, "filename": file.name} for file in found.files],
            "texts": {node: list(texts) for node, texts in found.texts.items()},
        }
        if found.chosen:
            output["outputs"] = {
                name: [found.files[item].name if isinstance(item, int) else item for item in items]
                for name, items in found.chosen.items()
            }
        return Done(output, tuple(_file(file) for file in found.files))

    async def cancel(self, ref: str) -> None:
        """Take it from the queue, or interrupt it by its id."""
        if answers.is_prompt_id(ref):
            await self._comfy.cancel(ref)

    async def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        """``GET /view``."""
        filename, subfolder, kind = (file.locator.get(key) for key in ("filename", "subfolder", "type"))
        if not (isinstance(filename, str) and isinstance(subfolder, str) and isinstance(kind, str)):
            said = f"{plain_text(file.name, 80)!r} is no file of the server {self._server.name!r}."
            raise ServerFailed(refused("OUTPUT_MISSING", said))
        async for piece in self._comfy.view(filename, subfolder, kind):
            yield piece

    async def close(self) -> None:
        """Nothing is held but the connections of the process."""


def _prompt(work: Work) -> Prompt:
    """What the work's only node asks for, with its templates filled in. Raises ServerFailed."""
    if (message := comfyui.misfit(work.definition)) is not None:
        raise ServerFailed(refused("COMFYUI_WORKFLOW", message))
    nodes = work.definition.nodes
    parameters = {**work.definition.parameters, **work.parameters}
    scope = expressions.scope(input=work.input, parameters=parameters)
    try:
        prompt = msgspec.convert(expressions.render(nodes[0].parameters, scope), Prompt)
    except ExpressionError as problem:
        raise ServerFailed(refused(problem.code, problem.message, category=Category.EXPRESSION)) from None
    except msgspec.ValidationError as problem:
        raise ServerFailed(refused("PARAMETERS_INVALID", f"The parameters do not fit: {problem}")) from None
    # What a batch was given beside the definition counts, wherever the mapping looks for it.
    prompt = msgspec.structs.replace(prompt, defaults={**parameters, **prompt.defaults, **work.parameters})
    if work.file is None and prompts.takes_file(prompt):
        raise ServerFailed(refused("COMFYUI_MAPPING", "The graph takes a file, and there is none.", place=comfyui.FILE))
    return prompt


def _said(work: Work) -> str:
    """How the work's input calls its file."""
    if isinstance(work.input, dict):
        for key in ("path", "image", "file_path"):
            if isinstance(work.input.get(key), str):
                return str(work.input[key])
    return ""


def _file(file: comfyui.Produced) -> OutputFile:
    locator = {
        "filename": file.filename,
        "subfolder": file.subfolder,
        "type": file.type,
        "node": file.node,
        "key": file.key,
    }
    return OutputFile(file.name, locator, guess_type(file.name)[0])


def _capabilities(stats: Any) -> dict[str, Any]:
    """What there is to know of the machine: the build, and each device with its memory in MB."""
    system = stats["system"]
    version = system.get("comfyui_version")
    given = stats.get("devices")
    devices = [
        {
            "name": comfyui.plain(device.get("name"), 200),
            "type": comfyui.plain(device.get("type"), 40),
            "vram_mb": _mb(device.get("vram_total")),
            "vram_free_mb": _mb(device.get("vram_free")),
        }
        for device in (given[:64] if isinstance(given, list) else [])
        if isinstance(device, dict)
    ]
    return {
        "version": comfyui.plain(version, 100) or None,
        "os": comfyui.plain(system.get("os"), 40),
        "devices": devices,
    }


def _mb(size: Any) -> int | None:
    return int(size) >> 20 if isinstance(size, int | float) and 0 <= size < 1e18 else None
