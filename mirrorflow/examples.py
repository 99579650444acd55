"""``serve --examples``: the examples installed once, and the photo pipeline run once on each sample photo."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from engine.access import LOCAL
from flow.errors import WorkflowError
from flow.events import Trigger
from flow.states import WorkflowStatus
from mirrorflow import live

if TYPE_CHECKING:
    from engine.engine import Engine
    from mirrorflow.embedded import Serving

FOLDER = Path(__file__).parents[1] / "examples"
PHOTO_PIPELINE = "nas-photo-processing"
QUERY = """
{
  instances(first: 1, orderBy: CREATED_ASC) {
    nodes { status input output nodeExecutions { nodes { nodeId status duration } } }
  }
}
"""


async def show(server: Serving, files: Path) -> None:
    """Install what is missing below ``files``, run what has never run, and tell about it on stdout."""
    if not FOLDER.is_dir():
        typer.echo("The examples are not part of this installation; they are in the source repository.")
        return
    await asyncio.to_thread(_copy, files)
    for path in sorted(FOLDER.glob("*.yaml")):
        await _install(server.engine, path)
    runs = await _start(server.engine, [path.name for path in sorted((files / "photos").glob("*.jpg"))])
    if not runs:
        return
    typer.echo(f"\nThe example {PHOTO_PIPELINE} on {len(runs)} photos:")
    if sys.stdout.isatty():
        await live.drawn(runs, lambda run: _events(server.engine, run.id), sys.stdout)
    else:
        await asyncio.gather(*(live.told(run, _events(server.engine, run.id), None) for run in runs))
        for run in runs:
            typer.echo(f"  {run.title}  {run.whole.status}")
    done = sum(run.whole.status == "COMPLETED" for run in runs)
    typer.echo(f"{done} of {len(runs)} completed; the archived photos are in {files / 'archive'}")
    typer.echo(f"\nOpen {server.link} and paste this query into {server.url}/graphql:\n{QUERY}")


def _copy(files: Path) -> None:
    """The sample photos and tables, where nodes may read them; what is there already stays as it is."""
    for folder in ("photos", "data"):
        for source in (FOLDER / folder).iterdir():
            target = files / folder / source.name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


async def _install(engine: Engine, path: Path) -> None:
    """Store the example unless a workflow of its name was ever stored: whoever changed or deleted it keeps that."""
    text = await asyncio.to_thread(path.read_text, encoding="utf-8")
    if await engine.workflows.named(LOCAL, path.stem) is None:
        try:
            await engine.workflows.import_(LOCAL, text, change_note="Installed as an example")
        except WorkflowError as error:
            typer.echo(f"The example {path.name} can't be installed: {error.message}", err=True)
            return
        typer.echo(f"installed   {path.stem}")


async def _start(engine: Engine, photos: list[str]) -> list[live.Run]:
    """Start the pipeline on each photo that it has never run on; a key for each makes that once for ever."""
    workflow = await engine.workflows.named(LOCAL, PHOTO_PIPELINE)
    if workflow is None or not WorkflowStatus(workflow.status).runnable:
        return []
    runs = []
    for photo in photos:
        started = await engine.instances.start(
            LOCAL,
            workflow_id=workflow.id,
            input={"file_path": f"photos/{photo}"},
            trigger=Trigger(type="manual", id="by-hand"),
            idempotency_key=f"example-photo:{photo}",
        )
        if started.created:
            run = live.Run(started.instance_id, photo)
            pinned = await engine.workflows.version(workflow.current_version_id or "")
            run.expect(node.id for node in pinned.definition.nodes)
            runs.append(run)
    return runs


async def _events(engine: Engine, id: str) -> AsyncGenerator[live.Event, None]:
    async for recorded in engine.streams.events(LOCAL, id):
        data: Any = msgspec.to_builtins(recorded.event)
        yield {"seq": recorded.seq, "at": recorded.at.isoformat(), "type": recorded.type, "data": data}
