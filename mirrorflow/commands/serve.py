"""The command ``serve``."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Annotated

import typer

from mirrorflow.commands.options import DatabaseUrl, DataDir, RedisUrl

if TYPE_CHECKING:
    from mirrorflow.embedded import Serving

BEGAN = time.perf_counter()


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes any free one.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    redis_url: RedisUrl = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Whether it does work itself, or leaves it to others.")
    ] = True,
    allowed_roots: Annotated[
        str | None, typer.Option(help="Folders that nodes may touch, separated by commas.", show_default=False)
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default=False)] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.", show_default=False)] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Install the examples, and the first time run the photo pipeline.")
    ] = False,
) -> None:
    """Start the server: API and pages, and a worker in the same process."""
    gc.disable()  # a sixth of the start was spent looking through what stays; on again once it is ready
    from mirrorflow import settings

    given = settings.load(
        host=host,
        port=port,
        data_dir=data_dir,
        database_url=database_url,
        redis_url=redis_url,
        allowed_roots=allowed_roots,
        log_level=log_level,
        log_format=log_format,
    )
    from mirrorflow import embedded  # the whole program: only once the settings are good

    async def tell(server: Serving) -> None:
        typer.echo(f"Mirrorflow  {server.link}  (signs you in, once, within ten minutes)")
        typer.echo(f"GraphiQL    {server.url}/graphql")
        typer.echo(f"ready in {time.perf_counter() - BEGAN:.1f} s")
        if examples:
            from mirrorflow.examples import show

            await show(server, given.allowed_roots[0])

    raise typer.Exit(embedded.serve(given, tell, works=worker))
