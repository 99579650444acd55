"""Options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirrorflow.client import Client

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The data folder.", show_default=False)]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="The database.", show_default=False)]
RedisUrl = Annotated[str | None, typer.Option("--redis-url", help="The Redis of many processes.", show_default=False)]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="MIRRORFLOW_URL", help="The server; default: the one over the data folder."),
]
Token = Annotated[str | None, typer.Option("--token", help="A token for it.", show_default=False)]


def client(url: str | None, token: str | None, data_dir: Path | None) -> Client:
    """A client of the server that the options name. Raises NoServer or BadSettings."""
    from mirrorflow import settings
    from mirrorflow.client import local

    return local(settings.load(data_dir=data_dir).data_dir, url, token)
