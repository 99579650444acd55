"""The node that sends a graph to a ComfyUI and fetches what it made."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing, suppress
from mimetypes import guess_type
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from engine.artifacts import reference
from engine.comfyui import prompt as prompts
from engine.comfyui.client import ComfyUI, prompt_id
from engine.comfyui.following import follow
from engine.comfyui.prompt import Prompt
from engine.files import whole
from engine.nodes.contract import Context, NodeError, node
from engine.nodes.pictures import work_folder
from engine.nodes.storage import input_path
from engine.servers.contract import Failed, ServerAddress, ServerFailed
from engine.servers.wire import Wire
from flow import comfyanswers as answers
from flow import comfyui
from flow.comfyui import Produced
from flow.errors import Category, Failure
from flow.servers import ServerType

#: Seconds that the server has to be told that its work is not wanted any more.
CANCEL_S = 5.0
#: So many prompts of one node may have ended badly at a server.
MAX_PROMPTS = 100


@node("comfyui/prompt", title="ComfyUI prompt", icon="brush", parameters=Prompt)
async def comfyui_prompt(ctx: Context[Prompt]) -> dict[str, Any]:
    """Sends a graph in API format to a ComfyUI, follows it, and fetches every file that it made.

    A file of the input is uploaded where the graph takes one. The output has `prompt_id`, `server`, `files` (each
    with `node`, `key`, `filename`, `size`, `sha256`, and its `path` or `artifact`), `texts` by node, `outputs` by the
    names asked for, and the first file's `path` and `filename`. Sending is done once, whatever happens to this
    worker; a timeout or a cancellation stops the work there too.
    """
    asked = ctx.parameters
    server = await _server(ctx)
    comfy = ComfyUI(Wire(ctx.server_http, server))
    file = await asyncio.to_thread(_file, ctx)
    ref = None
    try:
        ref = id = await _free(comfy, ctx.idempotency_key)
        said = asked.file or (_named(ctx) or "")
        ref = await prompts.send(comfy, asked, ctx.input, file, id, said=said)
        end = await follow(comfy, server, ref, lambda share, said: _tell(ctx, share, said))
    except ServerFailed as problem:
        raise _failed(problem.failed) from None
    except asyncio.CancelledError:
        if ref is not None:
            with suppress(ServerFailed, TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await comfy.cancel(ref)
        raise
    if isinstance(end, answers.Broken):
        raise _failed(Failed(end.failure))
    try:
        return await _output(ctx, comfy, server, ref, prompts.made(end))
    except ServerFailed as problem:
        raise _failed(problem.failed) from None


async def _server(ctx: Context[Prompt]) -> ServerAddress:
    """The server by its address, or by the name that it is registered under."""
    named = ctx.parameters.server
    if named is None or "://" not in named:
        return await ctx.comfyui(named)
    return ServerAddress("", ctx.project_id, "ComfyUI", ServerType.COMFYUI, named.rstrip("/"), 1)


def _named(ctx: Context[Prompt]) -> str | None:
    try:
        return input_path(ctx.input, "file")
    except NodeError:
        return None


def _file(ctx: Context[Prompt]) -> Path | None:
    """The file to upload, within the allowed folders; None where the graph takes none."""
    asked = ctx.parameters
    try:
        wanted = prompts.takes_file(asked)
    except ServerFailed as problem:
        raise _failed(problem.failed) from None
    if not wanted and (comfyui.loader(asked.graph) is None or _named(ctx) is None):
        return None
    found = ctx.reading(asked.file or input_path(ctx.input, "file"))
    if not found.is_file():
        raise NodeError(f"{found.name!r} is not a file.", category=Category.VALIDATION, code="FILE_NOT_FOUND")
    return found


async def _free(comfy: ComfyUI, key: str) -> str:
    """The id of this node's prompt: the one that is under way or done, or else a new one.

    A prompt that failed or was interrupted is tried again under another id, since an id is never used twice.
    """
    for number in range(MAX_PROMPTS):
        id = prompt_id(f"{key}#{number}" if number else key)
        if not isinstance(await comfy.state(id), answers.Broken):
            break
    return id


def _tell(ctx: Context[Prompt], share: float | None, said: str) -> None:
    if share is None:
        ctx.progress(0, None, said)
    else:
        # All of it is only done once the files are here.
        ctx.progress(min(share, 0.99), 1, said)


def _failed(failed: Failed) -> NodeError:
    """The failure of a server or its work as one of this node. A lost server may be back for the next attempt."""
    failure: Failure = failed.failure
    # An interrupt by somebody at the server is no cancellation of this node.
    category = Category.HTTP_SERVER if failure.category is Category.CANCELED else failure.category
    retryable = failure.retryable
    if failed.server_lost:
        retryable = True
    elif failure.category is Category.CANCELED:
        retryable = False
    return NodeError(
        failure.message,
        category=category,
        code=failure.code,
        retryable=retryable,
        retry_after_seconds=failure.retry_after_seconds,
        details=failure.details,
    )


async def _output(
    ctx: Context[Prompt], comfy: ComfyUI, server: ServerAddress, ref: str, made: prompts.Made
) -> dict[str, Any]:
    files: list[dict[str, Any]] = []
    taken: set[str] = set()
    for file in made.files:
        name = _distinct(file.name, taken)
        kept = await (_artifact if ctx.parameters.keep == "artifact" else _stored)(ctx, comfy, file, name)
        files.append({"node": file.node, "key": file.key, "filename": name, **kept})
        ctx.progress(0.99 + 0.01 * len(files) / len(made.files), 1, name)
    output: dict[str, Any] = {
        "prompt_id": ref,
        "server": server.url,
        "files": files,
        "texts": {node: list(texts) for node, texts in made.texts.items()},
        "outputs": {
            name: [files[item] if isinstance(item, int) else item for item in items]
            for name, items in made.chosen.items()
        },
    }
    if files and "path" in files[0]:
        output |= {"path": files[0]["path"], "filename": files[0]["filename"]}
    return output


def _distinct(name: str, taken: set[str]) -> str:
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    number = 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}{dot}{suffix}"
    taken.add(name.casefold())
    return name


async def _stored(ctx: Context[Prompt], comfy: ComfyUI, file: Produced, name: str) -> dict[str, Any]:
    """The file in the folder, whole or not at all."""
    folder = ctx.parameters.folder or str(work_folder(ctx))
    target = await asyncio.to_thread(ctx.writing, str(Path(folder) / name))
    if await asyncio.to_thread(target.is_dir):
        raise NodeError(f"{str(target)!r} is a folder.", category=Category.VALIDATION, code="PATH_IS_FOLDER")
    with whole(target) as opened:
        size, sha256 = await _written(comfy, file, opened)
    return {"path": str(target), "size": size, "sha256": sha256, "media_type": guess_type(name)[0]}


async def _artifact(ctx: Context[Prompt], comfy: ComfyUI, file: Produced, name: str) -> dict[str, Any]:
    with TemporaryDirectory(prefix="mirrorflow-") as folder:
        part = Path(folder) / "part"
        with part.open("wb") as opened:
            await _written(comfy, file, opened)
        kind = guess_type(name)[0] or "application/octet-stream"
        return reference(await asyncio.to_thread(ctx.artifacts.put_file, part, kind))


async def _written(comfy: ComfyUI, file: Produced, opened: IO[bytes]) -> tuple[int, str]:
    """Size and SHA-256 of the file, which was fetched into ``opened``."""
    digest, size = hashlib.sha256(), 0
    async with aclosing(comfy.view(file.filename, file.subfolder, file.type)) as pieces:
        async for piece in pieces:
            size += len(piece)
            digest.update(piece)
            await asyncio.to_thread(opened.write, piece)
    return size, digest.hexdigest()
