"""The command ``worker``."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mirrorflow.commands.options import DatabaseUrl, DataDir, RedisUrl

if TYPE_CHECKING:
    from mirrorflow.worker import Working

BEGAN = time.perf_counter()


def worker(
    labels: Annotated[
        str | None, typer.Option(help="What it offers to nodes, separated by commas: gpu,eu.", show_default=False)
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Nodes at a time on the event loop.", show_default=False)] = None,
    threads: Annotated[int | None, typer.Option(help="Nodes at a time in threads.", show_default=False)] = None,
    processes: Annotated[int | None, typer.Option(help="Nodes at a time in processes.", show_default=False)] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs that nodes may use.", show_default=False)] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    redis_url: RedisUrl = None,
    allowed_roots: Annotated[
        str | None, typer.Option(help="Folders that nodes may touch, separated by commas.", show_default=False)
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(help="Answer /health and /metrics on this port.", show_default=False)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default=False)] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.", show_default=False)] = None,
) -> None:
    """Start a worker for the servers on the same PostgreSQL and Redis."""
    gc.disable()  # as `serve` does
    from mirrorflow import settings

    given = settings.load(
        labels=labels,
        slots=slots,
        threads=threads,
        processes=processes,
        gpus=gpus,
        data_dir=data_dir,
        database_url=database_url,
        redis_url=redis_url,
        allowed_roots=allowed_roots,
        health_port=health_port,
        log_level=log_level,
        log_format=log_format,
    )
    from mirrorflow import worker as process

    def tell(started: Working) -> None:
        typer.echo(f"Mirrorflow worker  {started.engine.worker}  labels: {', '.join(given.labels) or 'none'}")
        if started.url is not None:
            typer.echo(f"health      {started.url}/health/ready")
        typer.echo(f"ready in {time.perf_counter() - BEGAN:.1f} s")

    raise typer.Exit(process.work(given, tell))
