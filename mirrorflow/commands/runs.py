"""Commands about runs: start one and watch it, list them, follow their logs, cancel them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirrorflow.commands.definitions import stored, workflow
from mirrorflow.commands.options import DataDir, Token, Url, client, text_of, values

if TYPE_CHECKING:
    from mirrorflow.client import Client
    from mirrorflow.live import Event, Run

SUFFIXES = {".yaml", ".yml", ".json"}
#: How long a watcher waits for a server that went away to come back.
PATIENCE_S = 60.0

START = """
mutation($input: InstanceStartInput!) { instanceStart(input: $input) {
  __typename
  ... on InstanceStartPayload { created instance { id workflow { name } version { version definition } } }
  ... on ValidationFailed { problems { code pointer message } }
  ... on UserError { code message } } }
"""
EVENTS = "subscription($id: ID!, $after: Int!) { instanceEvents(id: $id, after: $after) { seq at type data } }"
LIST = """
query($first: Int!, $where: InstanceWhere) { instances(first: $first, where: $where) { nodes {
  id status createdAt duration workflow { name } version { version } progress { total completed } } } }
"""
CANCEL = """
mutation($input: InstanceCancelInput!) { instanceCancel(input: $input) {
  __typename ... on InstanceCancelPayload { instance { status } } ... on UserError { code message } } }
"""


def run(
    what: Annotated[str, typer.Argument(metavar="FILE|NAME", help="A definition's file, or a stored workflow's name.")],
    input: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="A value of the input: JSON, or else text."),
    ] = None,
    input_file: Annotated[Path | None, typer.Option(help="A JSON file with the input; --input wins over it.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show the run: live in a terminal, lines in a pipe.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the run's id and leave.")] = False,
    priority: Annotated[int, typer.Option(min=1, max=10, help="1 (low) to 10 (urgent).")] = 5,
    timeout: Annotated[str | None, typer.Option(help="How long the run may take, such as 90s or PT1H.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="The same key starts only one run.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Run a workflow and print its output; exit 0 if it completed, 1 if it failed, 2 if it was refused.

    A file is stored first, as a new version where its name exists. Where no server runs, one is started for this run.
    """
    from mirrorflow import live
    from mirrorflow.client import ClientError, NoServer

    def say(text: str) -> None:
        typer.echo(text, err=True)

    is_file = what == "-" or Path(what).suffix in SUFFIXES or Path(what).is_file()
    text = text_of(what) if is_file else None
    given: dict[str, Any] = {"priority": priority, "input": values("--input", input or [], input_file)}
    if timeout is not None:
        given["timeout"] = timeout
    if key is not None:
        given["idempotencyKey"] = key

    async def work(server: Client) -> int:
        if text is None:
            given["workflow"] = {"id": (await workflow(server, what))["id"]}
        else:
            given["workflow"] = {"version": (await stored(server, what, text))["versionId"]}
        started = (await server.mutate(START, {"input": given}))["instance"]
        if detach:
            typer.echo(started["id"])
            return 0
        shown = _run_of(started)
        try:
            if watch and sys.stderr.isatty():
                await live.drawn([shown], lambda run: _followed(server, run.id), sys.stderr)
            else:
                await live.told(shown, _followed(server, shown.id), say if watch else None)
        except asyncio.CancelledError:
            typer.echo(f"{shown.id} goes on without you. Stop it with: mirrorflow cancel {shown.id}", err=True)
            raise
        return _outcome(shown)

    async def remote() -> int:
        async with client(url, token, data_dir) as server:
            return await work(server)

    try:
        code = asyncio.run(remote())
    except NoServer:
        if url is not None:
            raise
        if detach:
            raise ClientError("--detach needs a server: start one with `mirrorflow serve`.", exit_code=2) from None
        from mirrorflow import embedded, settings

        code = embedded.borrowed(settings.load(data_dir=data_dir, port=0, log_level="error"), work)
    raise typer.Exit(code)


def instances(
    first: Annotated[int, typer.Option("--first", "-n", min=1, max=100, help="How many, the newest.")] = 20,
    name: Annotated[str | None, typer.Option("--workflow", help="Only those of this workflow.")] = None,
    status: Annotated[str | None, typer.Option(help="Only those in this status, such as RUNNING.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List runs, the newest first."""
    from flow.states import InstanceStatus
    from mirrorflow.client import ClientError

    if status is not None and status.upper() not in set(InstanceStatus):
        raise ClientError(f"There is no status {status!r}: use {', '.join(InstanceStatus)}.", exit_code=2)

    async def fetch() -> list[dict[str, Any]]:
        async with client(url, token, data_dir) as server:
            where: dict[str, Any] = {}
            if name is not None:
                where["workflow"] = {"eq": (await workflow(server, name))["id"]}
            if status is not None:
                where["status"] = {"eq": status.upper()}
            answer = await server.query(LIST, {"first": first, "where": where})
            return list(answer["instances"]["nodes"])

    for row in asyncio.run(fetch()):
        done = f"{row['progress']['completed']}/{row['progress']['total']}"
        what = f"{row['workflow']['name']} {row['version']['version']}"
        typer.echo(f"{row['id']}  {row['status']:<9}  {row['createdAt'][:19]}Z  {done:>7}  {what}")


def logs(
    id: Annotated[str, typer.Argument(help="The run's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print what happened in a run, line by line."""
    from mirrorflow.live import line

    async def tell() -> None:
        async with client(url, token, data_dir) as server:
            last = await _last_seq(server, id)
            if not follow and last == 0:
                return
            async with contextlib.aclosing(_followed(server, id)) as events:
                async for event in events:
                    typer.echo(line(event))
                    if not follow and event["seq"] >= last:
                        return

    asyncio.run(tell())


def cancel(
    id: Annotated[str, typer.Argument(help="The run's id.")],
    reason: Annotated[str | None, typer.Option(help="Why; kept with the run.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Ask a run to stop: its nodes are stopped, then it is CANCELED."""

    async def ask() -> str:
        async with client(url, token, data_dir) as server:
            payload = await server.mutate(CANCEL, {"input": {"id": id, "reason": reason}})
            return str(payload["instance"]["status"])

    status = asyncio.run(ask())
    typer.echo(f"{id}: {status if status == 'CANCELED' else f'{status}, being cancelled'}")


def _run_of(started: dict[str, Any]) -> Run:
    from mirrorflow.live import Run

    shown = Run(started["id"], f"{started['workflow']['name']} {started['version']['version']}  {started['id']}")
    shown.expect(node["id"] for node in started["version"]["definition"]["nodes"])
    return shown


async def _followed(server: Client, id: str, after: int = 0) -> AsyncGenerator[Event, None]:
    """The run's events until its last; a server that goes away and comes back makes no gap."""
    from mirrorflow.client import ClientError, ConnectionBroke

    loop = asyncio.get_running_loop()
    lost_at: float | None = None
    while True:
        try:
            async with contextlib.aclosing(server.subscribe(EVENTS, {"id": id, "after": after})) as messages:
                async for message in messages:
                    lost_at = None
                    event = message["instanceEvents"]
                    after = event["seq"]
                    yield event
                return
        except ConnectionBroke as error:
            lost_at = lost_at or loop.time()
            if loop.time() - lost_at > PATIENCE_S:
                raise ClientError(f"{error} It did not come back within {PATIENCE_S:g} s.") from None
        await asyncio.sleep(0.5)


async def _last_seq(server: Client, id: str) -> int:
    from mirrorflow.client import ClientError

    found = (await server.query("query($id: ID!) { instance(id: $id) { lastSeq } }", {"id": id}))["instance"]
    if found is None:
        raise ClientError(f"There is no run {id!r} on the server.", exit_code=2)
    return int(found["lastSeq"])


def _outcome(run: Run) -> int:
    """Print what came out; the exit code."""
    if run.whole.status == "COMPLETED":
        output = run.artifact if run.artifact is not None else run.output
        typer.echo(json.dumps(output, indent=2, ensure_ascii=False))
        return 0
    why = f": {run.error['code']}: {run.error['message']}" if run.error else ""
    typer.echo(f"mirrorflow: {run.id} {run.whole.status}{why}", err=True)
    return 1
