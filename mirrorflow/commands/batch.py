"""Commands about batches: start one over the files of folders, see what it would do, ask whether it could start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client, values
from mirrorflow.commands.tasks import printable, size, watched

if TYPE_CHECKING:
    from mirrorflow.client import Client

START = """
mutation($input: BatchStartInput!) { batchStart(input: $input) {
  __typename
  ... on BatchStartPayload {
    task { id name }
    plan { files bytes more servers { name } first { relative size refusal } warnings { reason count } } }
  ... on ValidationFailed { problems { code pointer message } }
  ... on UserError { code message } } }
"""
CHECK = """
query($input: BatchInput!) { serverCheck(input: $input) { available serverName batchSize message reason } }
"""

batch = typer.Typer(
    help="Run a workflow over the files of folders, on one or several servers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class OnError(StrEnum):
    """What to do when a file fails."""

    CONTINUE = "continue"
    STOP = "stop"


Workflow = Annotated[str, typer.Option("--workflow", "-W", metavar="NAME", help="The workflow that takes each file.")]
Folders = Annotated[
    list[str],
    typer.Option(
        "--folder",
        "-f",
        metavar="FOLDER",
        help="A folder that the server can read: absolute, or below its first allowed root. Repeat it.",
    ),
]
Keywords = Annotated[
    list[str] | None,
    typer.Option(
        "--keyword", "-k", metavar="WORD", help="Only folders below with this in the name. Repeat it: any of them."
    ),
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--pattern", "-p", metavar="GLOB", help="Only files of such names, like '*.jpg'. Repeat it."),
]
Servers = Annotated[
    list[str] | None,
    typer.Option("--server", "-s", metavar="NAME|ID", help="A server that does it; repeated, they share the work."),
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where outputs land, at the same relative paths.")
]
Flat = Annotated[bool, typer.Option("--flat", help="Leave out the folders in folders.")]


@batch.command()
def start(
    workflow: Workflow,
    folder: Folders,
    keyword: Keywords = None,
    pattern: Patterns = None,
    server: Servers = None,
    output: Output = None,
    flat: Flat = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-P", metavar="KEY=VALUE", help="A parameter of the workflow: JSON, or else text."),
    ] = None,
    parameters_file: Annotated[
        Path | None, typer.Option(help="A JSON file with parameters; --parameter wins over it.")
    ] = None,
    on_error: Annotated[OnError, typer.Option(help="What to do when a file fails.")] = OnError.CONTINUE,
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    priority: Annotated[int, typer.Option(min=1, max=10, help="1 (low) to 10 (urgent).")] = 5,
    timeout: Annotated[str | None, typer.Option(help="How long all of it may take, such as 2h or PT2H.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; print what would be done.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay until it has ended: a bar in a terminal, lines in a pipe.")
    ] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Start a batch and print its task's id.

    With --watch: exit 0 if every file was done, 1 if some failed or it was stopped. Exit 2 if it was refused.
    """
    given = _batch(workflow, folder, keyword, pattern, server, output, flat) | {
        "onItemError": on_error.name,
        "priority": priority,
        "dryRun": dry_run,
    }
    if parameter or parameters_file is not None:
        given["parameters"] = values("--parameter", parameter or [], parameters_file)
    for key, value in (("name", name), ("timeout", timeout)):
        if value is not None:
            given[key] = value

    async def work(server: Client) -> int:
        payload = await server.mutate(START, {"input": given})
        if payload["plan"] is not None:
            typer.echo(_planned(payload["plan"]))
            return 0
        id = payload["task"]["id"]
        typer.echo(id)
        return await watched(server, id) if watch else 0

    raise typer.Exit(_with_server(work, url, token, data_dir, alone=watch or dry_run))


@batch.command()
def check(
    workflow: Workflow,
    folder: Annotated[
        list[str] | None, typer.Option("--folder", "-f", metavar="FOLDER", help="As for start; not looked at.")
    ] = None,
    server: Servers = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Say whether a batch could start now, and if not, why: exit 0 if it could, 1 if not."""

    async def work(asked: Client) -> int:
        given = _batch(workflow, folder or [], None, None, server, None, False)
        found = (await asked.query(CHECK, {"input": given}))["serverCheck"]
        reason = f" [{found['reason']}]" if found["reason"] else ""
        typer.echo(f"{found['message']}{reason}")
        return 0 if found["available"] else 1

    raise typer.Exit(_with_server(work, url, token, data_dir, alone=True))


def _with_server(
    work: Callable[[Client], Awaitable[int]], url: str | None, token: str | None, data_dir: Path | None, *, alone: bool
) -> int:
    """Do it with the server that the options name; where none runs, and it makes sense, with one for this command."""
    from mirrorflow.client import ClientError, NoServer

    async def remote() -> int:
        async with client(url, token, data_dir) as server:
            return await work(server)

    try:
        return asyncio.run(remote())
    except NoServer:
        if url is not None:
            raise
        if not alone:
            message = "A batch without --watch needs a server: start one with `mirrorflow serve`."
            raise ClientError(message, exit_code=2) from None
        from mirrorflow import embedded, settings

        return embedded.borrowed(settings.load(data_dir=data_dir, port=0, log_level="error"), work)


def _batch(
    workflow: str,
    folders: list[str],
    keywords: list[str] | None,
    patterns: list[str] | None,
    servers: list[str] | None,
    output: str | None,
    flat: bool,
) -> dict[str, Any]:
    return {
        "workflow": {"id": workflow} if workflow.startswith("wf-") else {"name": workflow},
        "targetFolders": folders,
        "folderKeywords": keywords,
        "filePatterns": patterns,
        "servers": servers or None,
        "outputRoot": output,
        "recursive": not flat,
    }


def _planned(plan: dict[str, Any]) -> str:
    """What would be done, for a person."""
    servers = ", ".join(server["name"] for server in plan["servers"]) or "this engine itself"
    least = "at least " if plan["more"] else ""
    files = "1 file" if plan["files"] == 1 else f"{plan['files']:,} files"
    lines = [f"{least}{files}, {size(plan['bytes'])}, on {servers}"]
    for file in plan["first"]:
        refusal = f"  would fail: {file['refusal']}" if file["refusal"] else ""
        lines.append(f"{size(file['size']):>9}  {printable(file['relative'])}{refusal}")
    rest = plan["files"] - len(plan["first"])
    if rest > 0:
        lines.append(f"{'':>9}  … and {rest:,} more")
    lines += [f"left out: {warning['count']:,} {warning['reason']}" for warning in plan["warnings"]]
    return "\n".join(lines)
