"""Commands about definitions: validate, import, export."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client, text_of

if TYPE_CHECKING:
    from mirrorflow.client import Client

Files = Annotated[list[str], typer.Argument(metavar="FILE…", help="YAML or JSON files; - reads standard input.")]

VERSION = "query($workflow: ID!, $version: SemVer!) { workflowVersion(workflow: $workflow, version: $version) { id } }"
WORKFLOW = "query($name: String) { workflow(name: $name) { id name currentVersion { id version } } }"
EXPORT = """
mutation($input: WorkflowExportInput!) { workflowExport(input: $input) {
  __typename ... on WorkflowExportPayload { text } ... on UserError { code message } } }
"""


class Format(StrEnum):
    """How a definition is written."""

    YAML = "yaml"
    JSON = "json"


def validate(files: Files) -> None:
    """Check definitions, without a server: every problem with its place; exit 2 if there is one."""
    from engine.definitions import read_document
    from engine.nodes.registry import Registry
    from flow.definition import TypeInfo
    from flow.errors import Invalid
    from mirrorflow.client import ClientError

    types = {kind.name: TypeInfo(kind.name, kind.parameters_schema) for kind in Registry.load().all()}
    wrong = 0
    for file in files:
        try:
            problems = list(read_document(text_of(file), types).problems)
        except Invalid as refusal:
            problems = refusal.problems
        except ClientError as error:
            typer.echo(f"mirrorflow: {error}", err=True)
            wrong += 1
            continue
        wrong += bool(problems)
        for problem in problems:
            typer.echo(f"{file}: {problem.pointer or '/'}: {problem.message} [{problem.code}]")
        if not problems:
            typer.echo(f"{file}: valid")
    if wrong:
        raise typer.Exit(2)


def import_(files: Files, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Store definitions on the server; where a name exists, as a new version of it."""

    async def send() -> None:
        async with client(url, token, data_dir) as server:
            for file in files:
                version = await stored(server, file, text_of(file))
                what = "stored" if version["changed"] else "unchanged"
                typer.echo(f"{file}: {version['name']} {version['version']} {what} ({version['workflowId']})")

    asyncio.run(send())


def export(
    name: Annotated[str, typer.Argument(help="The workflow's name.")],
    version: Annotated[str | None, typer.Option(help="Which version, such as 1.2.0; default: the current one.")] = None,
    format: Annotated[Format, typer.Option(help="How to write it.")] = Format.YAML,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print a definition in its canonical form."""
    from mirrorflow.client import ClientError

    async def fetch() -> str:
        async with client(url, token, data_dir) as server:
            asked: dict[str, Any] = {"id": (await workflow(server, name))["id"], "format": format.name}
            if version is not None:
                found = await server.query(VERSION, {"workflow": asked["id"], "version": version})
                if found["workflowVersion"] is None:
                    raise ClientError(f"There is no version {version} of {name}.", exit_code=2)
                asked["version"] = found["workflowVersion"]["id"]
            return str((await server.mutate(EXPORT, {"input": asked}))["text"])

    typer.echo(asyncio.run(fetch()), nl=False)


async def workflow(server: Client, name: str) -> dict[str, Any]:
    """The workflow of that name. Raises ClientError if there is none."""
    from mirrorflow.client import ClientError

    found = (await server.query(WORKFLOW, {"name": name}))["workflow"]
    if found is None:
        raise ClientError(f"There is no workflow {name!r} on the server, and no such file here.", exit_code=2)
    return dict(found)


async def stored(server: Client, file: str, text: str) -> dict[str, Any]:
    """Store what a file holds; which version it is. Raises ClientError, which names the file at each problem."""
    from mirrorflow.client import ClientError, Refused

    try:
        return await server.import_(text)
    except Refused as refusal:
        if not refusal.problems:
            raise
        raise ClientError("\n".join(f"{file}: {problem}" for problem in refusal.problems), exit_code=2) from None
