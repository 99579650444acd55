"""Commands about the installation itself: database, tokens, settings, schema, and what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mirrorflow.commands.options import DatabaseUrl, DataDir

if TYPE_CHECKING:
    from engine.access import Access

T = TypeVar("T")

db = typer.Typer(help="The database's tables.", no_args_is_help=True)
token = typer.Typer(help="Bearer tokens: made here by whoever owns the data folder.", no_args_is_help=True)


@db.command()
def upgrade(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database up to date; `serve` does it by itself."""
    from db import migrate
    from mirrorflow import settings

    given = settings.load(data_dir=data_dir, database_url=database_url)
    given.data_dir.mkdir(0o700, parents=True, exist_ok=True)
    applied = migrate.upgrade(given.database)
    typer.echo(f"applied {', '.join(applied)}" if applied else f"up to date ({migrate.head()})")


@db.command()
def current(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print the database's revision."""
    from db import migrate
    from mirrorflow import settings

    found = migrate.current(settings.load(data_dir=data_dir, database_url=database_url).database)
    typer.echo(found or "empty")


@token.command()
def create(
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="A role (viewer, operator, editor, admin) or a permission; may be repeated."),
    ] = None,
    expires_days: Annotated[
        int | None, typer.Option(min=1, help="After how many days it ends; default: never.")
    ] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token and print it: it is shown this once."""
    from engine.access import LOCAL

    expires_in = timedelta(days=expires_days) if expires_days else None
    made = _with_access(
        data_dir, database_url, lambda access: access.token_create(LOCAL, name, scope or ["editor"], expires_in)
    )
    typer.echo(f"{made.id} is shown this once:", err=True)
    typer.echo(made.text)


@token.command("list")
def list_(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List the tokens, without their secrets."""
    from engine.access import LOCAL

    for row in _with_access(data_dir, database_url, lambda access: access.token_list(LOCAL)):
        ends = "revoked" if row.revoked_at else f"until {row.expires_at:%Y-%m-%d}" if row.expires_at else "no end"
        used = f"used {row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never used"
        typer.echo(f"{row.id}  {','.join(row.scopes)}  {ends}  {used}  {row.name}")


@token.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The token's id, as `token list` shows it.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End a token; a running server believes it for 15 seconds more."""
    from engine.access import LOCAL

    _with_access(data_dir, database_url, lambda access: access.token_revoke(LOCAL, id))
    typer.echo(f"{id} is revoked")


def config(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print the effective settings and where each comes from; secrets are masked."""
    from rich.console import Console
    from rich.table import Table

    from mirrorflow import settings

    flags = {"data_dir": data_dir, "database_url": database_url}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("setting", "value", "source"):
        table.add_column(title, no_wrap=title != "value", overflow="fold")
    rows = settings.effective(settings.load(**flags), flags)
    console = Console()
    if console.is_terminal:
        for row in rows:
            table.add_row(row.name, row.value, row.source, style=None if row.source != "default" else "dim")
        console.print(table)
    else:
        for row in rows:
            typer.echo(f"{row.name}={row.value}  # {row.source}")
    for name in settings.unknown():
        typer.echo(f"{name} is no setting", err=True)


def schema(
    check: Annotated[Path | None, typer.Option(help="Say whether this file is the schema; exit 1 if not.")] = None,
    definition: Annotated[bool, typer.Option(help="The JSON Schema of workflow definitions instead.")] = False,
) -> None:
    """Print the GraphQL schema (SDL)."""
    if definition:
        from engine.nodes.registry import Registry
        from flow.schemas import definition_schema

        typer.echo(json.dumps(definition_schema(Registry.load().type_infos()), indent=2, ensure_ascii=False))
        return
    from graph.schema import sdl

    text = sdl()
    if check is None:
        typer.echo(text, nl=False)
    elif not check.exists() or check.read_text() != text:
        typer.echo(f"{check} is not the schema of this program: run `make schema` and commit.", err=True)
        raise typer.Exit(1)


def doctor(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Check database, clock, folders, port, extras and GraphiQL, and say what to do."""
    from mirrorflow import checkup, settings

    given = settings.load(data_dir=data_dir, database_url=database_url)
    findings = checkup.findings(given)
    for finding in findings:
        typer.echo(f"{finding.level.value:<5} {finding.part:<12} {finding.message}")
    if any(finding.level is checkup.Level.WRONG for finding in findings):
        raise typer.Exit(1)


def _with_access(data_dir: Path | None, database_url: str | None, work: Callable[[Access], Awaitable[T]]) -> T:
    """Do something with the tokens in the database, whether or not a server runs over it."""
    from db import migrate
    from db.session import connect
    from engine.access import Access
    from mirrorflow import settings

    given = settings.load(data_dir=data_dir, database_url=database_url)
    given.data_dir.mkdir(0o700, parents=True, exist_ok=True)
    migrate.upgrade(given.database)

    async def done() -> T:
        database = connect(given.database, synchronous=given.sqlite_synchronous)
        try:
            access = Access(database)
            await access.ensure_defaults()
            return await work(access)
        finally:
            await database.close()

    return asyncio.run(done())
