"""Getting the files that a run made from its server into the attempt's staging."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.batch.outputs import PART, OutputRefused, Staging, described
from engine.servers.contract import OutputFile, ServerClient
from flow.batches import safe_name

#: The largest file that is fetched.
MAX_FILE = 64 << 30  # bytes
_FLUSH = 1 << 20


async def lying(files: Sequence[OutputFile], allowed: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Those of the files that lie in folders of ours, as the ledger keeps them, where they are."""
    found = []
    for file in files:
        path = file.locator.get("path")
        if isinstance(path, str) and await asyncio.to_thread(allowed, path):
            with contextlib.suppress(OSError):  # gone meanwhile: the run's own word for it is in its result
                found.append(await asyncio.to_thread(described, path))
    return found


async def fetch(staging: Staging, client: ServerClient, ref: str, files: Sequence[OutputFile]) -> list[dict[str, Any]]:
    """Fetch each file that isn't there yet; those that the run itself put under the output root stay, and are told.

    Raises ServerFailed, OutputRefused, OSError.
    """
    there = []
    for number, file in enumerate(files, 1):
        path = file.locator.get("path")
        if isinstance(path, str) and Path(path).is_relative_to(staging.out):
            continue  # the run left it in its own folder: it is placed with the others
        if isinstance(path, str) and Path(path).is_relative_to(staging.root):
            there.append(await asyncio.to_thread(described, path))
            continue
        target = staging.fetched / str(number) / safe_name(file.name)
        if not await asyncio.to_thread(target.exists):
            await _fetched(client, ref, file, target)
    return there


async def _fetched(client: ServerClient, ref: str, file: OutputFile, target: Path) -> None:
    await asyncio.to_thread(target.parent.mkdir, exist_ok=True)
    part = target.with_name(PART)
    size = 0
    with await asyncio.to_thread(part.open, "wb") as opened:
        waiting: list[bytes] = []
        held = 0
        async for piece in client.fetch(ref, file):
            size += len(piece)
            if size > MAX_FILE:
                raise OutputRefused("OUTPUT_TOO_LARGE", f"{file.name!r} has more than {MAX_FILE >> 30} GiB.")
            waiting.append(piece)
            held += len(piece)
            if held >= _FLUSH:
                await asyncio.to_thread(opened.writelines, waiting)
                waiting, held = [], 0
        await asyncio.to_thread(opened.writelines, waiting)
    await asyncio.to_thread(part.replace, target)
