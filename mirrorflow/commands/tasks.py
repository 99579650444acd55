"""Commands about tasks: list them, look at one, watch it, and what can be done with it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client

if TYPE_CHECKING:
    from mirrorflow.client import Client

#: How long a watcher waits for a server that went away to come back.
PATIENCE_S = 60.0
#: In a pipe, a line at most this often, unless more than numbers changed.
LINE_EVERY_S = 1.0
#: So many failed files are told of one by one.
FAILURES_TOLD = 20

FIELDS = (
    "id type name status progress message total done failed canceled expanded rate estimatedEnd createdAt "
    "error { code message } warnings { reason count }"
)
LIST = f"""
query($first: Int!, $where: TaskWhere) {{ tasks(first: $first, where: $where) {{ nodes {{ {FIELDS} }} }} }}
"""
SHOW = f"""
query($id: ID!, $first: Int!) {{ task(id: $id) {{
  {FIELDS} description priority duration workflow {{ name }} version {{ version }} servers {{ name status }}
  executions(first: 5) {{ nodes {{ number status createdAt duration message }} }}
  items(first: $first, where: {{status: {{eq: FAILED}}}}) {{
    totalCount nodes {{ relative attempts server {{ name }} error {{ code message }} }} }} }} }}
"""
FOLLOW = f"subscription($id: ID!) {{ taskUpdated(id: $id) {{ {FIELDS} }} }}"
CANCEL = """
mutation($input: TaskCancelInput!) { taskCancel(input: $input) {
  __typename ... on TaskCancelPayload { task { status } } ... on UserError { code message }
  ... on ValidationFailed { problems { code pointer message } } } }
"""
RETRY = """
mutation($input: TaskItemsRetryInput!) { taskItemsRetry(input: $input) {
  __typename ... on TaskItemsRetryPayload { items } ... on UserError { code message }
  ... on ValidationFailed { problems { code pointer message } } } }
"""
RUN = """
mutation($input: TaskExecuteInput!) { taskExecute(input: $input) {
  __typename ... on TaskExecutePayload { task { id } } ... on UserError { code message }
  ... on ValidationFailed { problems { code pointer message } } } }
"""
DELETE = """
mutation($input: TaskDeleteInput!) { taskDelete(input: $input) {
  __typename ... on TaskDeletePayload { id } ... on UserError { code message } } }
"""
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELED"})

Shown = dict[str, Any]

tasks = typer.Typer(
    help="Background work: batches, and runs of workflows and nodes. Alone, it lists them.",
    rich_markup_mode=None,
)
Id = Annotated[str, typer.Argument(help="The task's id.")]


@tasks.callback(invoke_without_command=True)
def root(context: typer.Context, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Background work: batches, and runs of workflows and nodes. Alone, it lists them."""
    if context.invoked_subcommand is None:
        list_(first=20, status=None, type=None, url=url, token=token, data_dir=data_dir)


@tasks.command("list")
def list_(
    first: Annotated[int, typer.Option("--first", "-n", min=1, max=100, help="How many, the newest.")] = 20,
    status: Annotated[str | None, typer.Option(help="Only those in this status, such as RUNNING.")] = None,
    type: Annotated[str | None, typer.Option(help="Only of this type: batch, workflow, or a node type.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List tasks, the newest first."""
    from flow.tasks import TaskStatus
    from mirrorflow.client import ClientError

    if status is not None and status.upper() not in set(TaskStatus):
        raise ClientError(f"There is no status {status!r}: use {', '.join(TaskStatus)}.", exit_code=2)

    async def fetch() -> list[Shown]:
        async with client(url, token, data_dir) as server:
            where: dict[str, Any] = {}
            if status is not None:
                where["status"] = {"eq": status.upper()}
            if type is not None:
                where["type"] = {"eq": type}
            return list((await server.query(LIST, {"first": first, "where": where}))["tasks"]["nodes"])

    for row in asyncio.run(fetch()):
        done = f"{row['done']}/{row['total']}{'' if row['expanded'] else '+'}"
        wrong = f"  {row['failed']} failed" if row["failed"] else ""
        what = f"{row['type']}  {printable(row['name'])}{wrong}"
        typer.echo(f"{row['id']}  {row['status']:<9}  {row['createdAt'][:19]}Z  {done:>11}  {what}")


@tasks.command()
def show(
    id: Id,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay until it has ended: a bar in a terminal, lines in a pipe.")
    ] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Print how a task stands, its runs, and what failed. With --watch: exit 0 if all was done, 1 if not."""

    async def tell() -> int:
        async with client(url, token, data_dir) as server:
            if watch:
                return await watched(server, id)
            typer.echo("\n".join(_described(await _task(server, id))))
            return 0

    raise typer.Exit(asyncio.run(tell()))


@tasks.command()
def cancel(
    id: Id,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the task.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Ask a task to stop: nothing new is begun, what runs is stopped, what is done stays."""

    async def ask() -> str:
        async with client(url, token, data_dir) as server:
            payload = await server.mutate(CANCEL, {"input": {"id": id, "reason": reason}})
            return str(payload["task"]["status"])

    status = asyncio.run(ask())
    typer.echo(f"{id}: {status if status == 'CANCELED' else f'{status}, being cancelled'}")


@tasks.command()
def retry(
    id: Id,
    canceled: Annotated[bool, typer.Option("--canceled", help="Also what was stopped.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it has ended.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Run the files of a finished task again that failed; the others stay as they are."""

    async def ask(api: Client) -> str:
        payload = await api.mutate(RETRY, {"input": {"task": id, "canceled": canceled}})
        return f"{id}: {payload['items']} run again"

    _started(ask, id, watch, client(url, token, data_dir))


@tasks.command()
def run(
    id: Id,
    server: Annotated[
        str | None, typer.Option("--server", "-s", metavar="NAME", help="On this server, instead of its own.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until it has ended.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Run a task that waits to be started, or that has ended, again: of a batch what isn't done, and new files."""

    async def ask(api: Client) -> str:
        await api.mutate(RUN, {"input": {"id": id, "server": server}})
        return f"{id} runs"

    _started(ask, id, watch, client(url, token, data_dir))


@tasks.command()
def delete(id: Id, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Delete a finished task with its ledger. What it wrote stays."""

    async def ask() -> None:
        async with client(url, token, data_dir) as server:
            await server.mutate(DELETE, {"input": {"id": id}})

    asyncio.run(ask())
    typer.echo(f"{id}: deleted")


def _started(ask: Callable[[Client], Awaitable[str]], id: str, watch: bool, server: Client) -> NoReturn:
    """Ask, tell what came of it, and stay until the task has ended if that is wanted."""

    async def tell() -> int:
        async with server as api:
            typer.echo(await ask(api))
            return await watched(api, id) if watch else 0

    raise typer.Exit(asyncio.run(tell()))


# ---- watching -------------------------------------------------------------------------------------------------


async def watched(server: Client, id: str) -> int:
    """Show a task until it has ended; 0 if all of it was done, 1 if something failed or it was stopped."""
    try:
        follow = _drawn if sys.stderr.isatty() else _told
        last = await follow(followed(server, id))
    except asyncio.CancelledError:
        typer.echo(f"{id} goes on without you. Stop it with: mirrorflow tasks cancel {id}", err=True)
        raise
    if last is None:
        typer.echo(f"mirrorflow: {id} was deleted.", err=True)
        return 1
    for failure in await _failures(server, id) if last["failed"] else []:
        typer.echo(f"mirrorflow: {failure}", err=True)
    if last["error"]:
        typer.echo(f"mirrorflow: {id} {last['status']}: {last['error']['code']}: {last['error']['message']}", err=True)
    return 0 if last["status"] == "COMPLETED" and not last["failed"] else 1


async def followed(server: Client, id: str) -> AsyncGenerator[Shown, None]:
    """The task as it changes, until its end; a server that goes away and comes back makes no difference."""
    from mirrorflow.client import ClientError, ConnectionBroke

    loop = asyncio.get_running_loop()
    lost_at: float | None = None
    while True:
        try:
            async with contextlib.aclosing(server.subscribe(FOLLOW, {"id": id})) as messages:
                async for message in messages:
                    lost_at = None
                    yield message["taskUpdated"]
                return
        except ConnectionBroke as error:
            lost_at = lost_at or loop.time()
            if loop.time() - lost_at > PATIENCE_S:
                raise ClientError(f"{error} It did not come back within {PATIENCE_S:g} s.") from None
        await asyncio.sleep(0.5)


async def _told(states: AsyncGenerator[Shown, None]) -> Shown | None:
    """A line for what changed, on stderr."""
    loop = asyncio.get_running_loop()
    last: Shown | None = None
    told_at = 0.0
    async with contextlib.aclosing(states):
        async for task in states:
            words = ("status", "message")
            news = last is None or any(task[key] != last[key] for key in words) or task["status"] in ENDED
            last = task
            if news or loop.time() - told_at >= LINE_EVERY_S:
                told_at = loop.time()
                typer.echo(line(task), err=True)
    return last


async def _drawn(states: AsyncGenerator[Shown, None]) -> Shown | None:
    """A bar that grows in place, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[status]}", style="bold"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[counts]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    last: Shown | None = None
    with Progress(*columns, console=Console(file=sys.stderr), auto_refresh=False) as bar:
        drawn = bar.add_task("", total=None, status="PENDING", counts="", note="")
        async with contextlib.aclosing(states):
            async for last in states:
                # While folders are looked through nobody knows the whole: the bar only says that something happens.
                known = last["expanded"] and last["total"] > 0
                bar.update(
                    drawn,
                    total=1.0 if known or last["status"] in ENDED else None,
                    completed=1.0 if last["status"] == "COMPLETED" else last["progress"],
                    status=last["status"],
                    counts=counts(last),
                    note=_note(last),
                    refresh=True,
                )
    return last


def line(task: Shown) -> str:
    """The task as one line of text."""
    from engine.clock import now

    return "  ".join(filter(None, (f"{now():%H:%M:%S}", task["status"], counts(task), _note(task))))


def _note(task: Shown) -> str:
    """What it says of itself, unless that is only its numbers again."""
    from flow.batches import Counts, summary

    told = summary(Counts(task["total"], task["done"], task["failed"], task["canceled"]))
    return "" if not task["message"] or task["message"] == told else printable(task["message"])


def counts(task: Shown) -> str:
    """How much is done: ``120/2000  2 failed  34.1/s  1m 2s left``."""
    from engine.clock import now

    parts = [f"{task['done']}/{task['total']}{'' if task['expanded'] else '+'}"]
    if task["failed"]:
        parts.append(f"{task['failed']} failed")
    if task["canceled"]:
        parts.append(f"{task['canceled']} canceled")
    if task["status"] == "RUNNING" and task["rate"]:
        parts.append(f"{task['rate']:.3g}/s")
    if task["status"] == "RUNNING" and task["estimatedEnd"]:
        left = (datetime.fromisoformat(task["estimatedEnd"]) - now()).total_seconds()
        parts.append(f"{_short(max(0.0, left))} left")
    return "  ".join(parts)


def _short(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"


def size(number: int) -> str:
    """Bytes for people: ``3.4 MB``."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def printable(text: str) -> str:
    """The text without what would break a line or steer a terminal: names of files may hold anything."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


# ---- one task -------------------------------------------------------------------------------------------------


async def _task(server: Client, id: str) -> Shown:
    from mirrorflow.client import ClientError

    found = (await server.query(SHOW, {"id": id, "first": FAILURES_TOLD}))["task"]
    if found is None:
        raise ClientError(f"There is no task {id!r} on the server.", exit_code=2)
    return dict(found)


async def _failures(server: Client, id: str) -> list[str]:
    found = (await _task(server, id))["items"]
    lines = [_failure(item) for item in found["nodes"]]
    rest = found["totalCount"] - len(lines)
    return lines if rest <= 0 else [*lines, f"… and {rest} more"]


def _failure(item: Shown) -> str:
    where = f" on {item['server']['name']}" if item["server"] else ""
    why = f"{item['error']['code']}: {item['error']['message']}" if item["error"] else "failed"
    return f"{printable(item['relative']) or 'the run'}{where}: {printable(why)}"


def _described(task: Shown) -> list[str]:
    what = (
        f" of {task['workflow']['name']} {task['version']['version']}" if task["workflow"] and task["version"] else ""
    )
    servers = ", ".join(f"{server['name']} ({server['status']})" for server in task["servers"]) or "this engine itself"
    lines = [
        f"{task['id']}  {printable(task['name'])}",
        f"  {task['type']}{what} on {servers}, priority {task['priority']}",
        f"  {task['status']}  {counts(task)}",
    ]
    if note := _note(task):
        lines.append(f"  {note}")
    if task["error"]:
        lines.append(f"  {task['error']['code']}: {printable(task['error']['message'])}")
    lines += [f"  left out: {warning['count']} {warning['reason']}" for warning in task["warnings"]]
    for run in task["executions"]["nodes"]:
        message = f"  {printable(run['message'])}" if run["message"] else ""
        lines.append(f"  run {run['number']}  {run['createdAt'][:19]}Z  {run['status']}{message}")
    lines += [f"  failed: {_failure(item)}" for item in task["items"]["nodes"]]
    rest = task["items"]["totalCount"] - len(task["items"]["nodes"])
    return [*lines, f"  … and {rest} more"] if rest > 0 else lines
