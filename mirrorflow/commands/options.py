"""Options that many commands share, and how their values are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def values(option: str, pairs: Sequence[str], file: Path | None) -> dict[str, Any]:
    """The object in ``file`` with the ``KEY=VALUE`` of ``option`` put over it; a value is JSON, or else text.

    Raises ClientError.
    """
    from mirrorflow.client import ClientError

    given: dict[str, Any] = {}
    if file is not None:
        try:
            given = json.loads(text_of(str(file)))
        except ValueError as error:
            raise ClientError(f"{file} is not JSON: {error}", exit_code=2) from None
        if not isinstance(given, dict):
            raise ClientError(f"{file} must hold a JSON object.", exit_code=2)
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ClientError(f"{option} {pair}: write it as KEY=VALUE.", exit_code=2)
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given


def text_of(file: str) -> str:
    """The text of a file; of standard input for ``-``. Raises ClientError if it can't be read."""
    from mirrorflow.client import ClientError

    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ClientError(f"There is no file {file}.", exit_code=2) from None
    except OSError as error:
        raise ClientError(f"{file} can't be read: {error.strerror or error}.", exit_code=2) from None
    except UnicodeDecodeError:
        raise ClientError(f"{file} is not text in UTF-8.", exit_code=2) from None
