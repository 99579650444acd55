"""All processes on one database keep artifacts in one folder: a mark in the folder and in the database says so.

Without this a worker with a folder of its own would commit references to files that no other process can read, and
nobody would notice until somebody asks for one.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from db.session import Database
from db.store import meta
from engine import clock
from mirrorflow.lock import StartRefused

MARK = "store-id"


async def same_artifacts(database: Database, folder: Path) -> None:
    """Return if the folder is the one that goes with the database; the first process ever marks both.

    Raises StartRefused with what to do if it is another folder, or none that can be written to.
    """
    if (told := await difference(database, folder)) is not None:
        raise StartRefused(told)


async def difference(database: Database, folder: Path, *, mark: bool = True) -> str | None:
    """What is wrong with the folder, in one line; None if nothing is. ``mark``: mark both if the database has none."""
    try:
        # In this order: the first process marks the folder before the database.
        agreed = await database.read(meta.value, meta.ARTIFACT_STORE)
        found = await asyncio.to_thread(_read, folder)
        if agreed is None and mark:
            made = found or clock.new_id("store")
            found = await asyncio.to_thread(_write, folder, made)
            agreed = await database.write(meta.agree, meta.ARTIFACT_STORE, found)
            if agreed != found == made:  # another process was faster, with another folder
                await asyncio.to_thread((folder / MARK).unlink, missing_ok=True)
    except OSError as error:
        return f"The artifact folder {folder} can't be used: {error.strerror}. Make it writable, or name another."
    if agreed is None or found == agreed:
        return None
    has = "has no mark" if found is None else "belongs to another database"
    return (
        f"The artifact folder {folder} is not the one that the other processes on this database use (it {has}). Mount "
        f"the same folder here, or name it: MIRRORFLOW_ARTIFACTS_DIR. If its files are lost for good: echo {agreed} > "
        f"{folder / MARK}"
    )


def _read(folder: Path) -> str | None:
    try:
        return (folder / MARK).read_text().strip() or None
    except FileNotFoundError:
        return None


def _write(folder: Path, mark: str) -> str:
    """Mark the folder unless it is marked; the mark it has then. The file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{MARK}.{clock.new_id('part')}"
    part.write_text(mark + "\n")
    try:
        os.link(part, folder / MARK)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        part.replace(folder / MARK)
    finally:
        part.unlink(missing_ok=True)
    return _read(folder) or mark
