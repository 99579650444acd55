"""Commands about the processes that run nodes: which there are, and how one is emptied."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client

if TYPE_CHECKING:
    from mirrorflow.client import Client

#: How long a watcher waits for a server that went away to come back.
PATIENCE_S = 60.0

FIELDS = "id version labels gpus state running instances uptime slots { placement total running }"
LIST = f"""
query($where: WorkerWhere, $after: String) {{ workers(where: $where, first: 100, after: $after, orderBy: HOST_ASC) {{
  nodes {{ {FIELDS} }} pageInfo {{ hasNextPage endCursor }} }} }}
"""
FOLLOW = f"subscription {{ workerUpdated {{ {FIELDS} }} }}"
DRAIN = """
mutation($input: WorkerDrainInput!) { workerDrain(input: $input) {
  __typename ... on WorkerDrainPayload { worker { id } } ... on UserError { code message } } }
"""
HEAD = ("WORKER", "STATE", "RUNS", "NODES", "PLACES", "LABELS", "UP", "VERSION")

Row = dict[str, Any]


def workers(
    every: Annotated[bool, typer.Option("--all", help="Also those that stopped within the last day.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on: a table in a terminal, a line for each change in a pipe.")
    ] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List the workers: what they offer and what they are doing."""

    async def show() -> None:
        async with client(url, token, data_dir) as server:
            if watch:
                await _watch(server, every)
                return
            found = await _all(server, every)
            typer.echo(table(found))
            for line in warnings(found):
                typer.echo(f"mirrorflow: {line}", err=True)

    asyncio.run(show())


def drain(
    id: Annotated[str, typer.Argument(help="The worker's id, as `mirrorflow workers` shows it.")],
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Have a worker take no new work: it finishes what it has, or leaves it to others, and stops."""

    async def ask() -> None:
        async with client(url, token, data_dir) as server:
            await server.mutate(DRAIN, {"input": {"id": id}})

    asyncio.run(ask())
    typer.echo(f"{id}: draining. See it end with: mirrorflow workers --watch")


def table(found: Iterable[Row]) -> str:
    """The workers, one a line, in columns."""
    rows = [HEAD, *(_cells(each) for each in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def warnings(found: Iterable[Row]) -> list[str]:
    """What is wrong with the workers as a whole."""
    versions = sorted({each["version"] for each in found if each["state"] != "OFFLINE"})
    return [f"workers of different versions are at work: {', '.join(versions)}."] if len(versions) > 1 else []


def _cells(worker: Row) -> tuple[str, ...]:
    places = " ".join(f"{each['placement'].lower()} {each['running']}/{each['total']}" for each in worker["slots"])
    labels = ",".join(worker["labels"]) or "-"
    offers = f"{labels} +{worker['gpus']} GPU" if worker["gpus"] else labels
    return (
        worker["id"], worker["state"], str(worker["instances"]), str(worker["running"]), places, offers,
        _short(worker["uptime"]), worker["version"],
    )  # fmt: skip


def _short(duration: str) -> str:
    """``PT1H3M2.5S`` in its two largest parts: ``1h 3m``."""
    from flow import durations

    seconds = int(durations.parse(duration).total_seconds())
    parts = [(seconds // 86_400, "d"), (seconds // 3_600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    first = next((index for index, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number}{unit}" for number, unit in parts[first : first + 2])


async def _all(server: Client, every: bool) -> list[Row]:
    where = None if every else {"state": {"in": ["ONLINE", "DRAINING"]}}
    found: list[Row] = []
    after = None
    while True:
        page = (await server.query(LIST, {"where": where, "after": after}))["workers"]
        found += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def _watch(server: Client, every: bool) -> None:
    screen = _Screen() if sys.stdout.isatty() else None
    known: dict[str, Row] = {}
    with screen or contextlib.nullcontext():
        async with contextlib.aclosing(_followed(server)) as updates:
            async for worker in updates:
                gone = worker["state"] == "OFFLINE"
                if gone and not every and worker["id"] not in known:
                    continue
                known[worker["id"]] = worker
                if screen is None:
                    typer.echo("  ".join(_cells(worker)))
                else:
                    screen.show(table(sorted(known.values(), key=lambda each: str(each["id"]))))
                if gone and not every:
                    del known[worker["id"]]


class _Screen:
    """A text that changes in place on a terminal."""

    def __enter__(self) -> _Screen:
        from rich.live import Live

        self._live = Live("", auto_refresh=False)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, text: str) -> None:
        from rich.text import Text

        self._live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)


async def _followed(server: Client) -> AsyncGenerator[Row, None]:
    """Every worker that changed; a server that goes away and comes back tells all of them again."""
    from mirrorflow.client import ClientError, ConnectionBroke

    loop = asyncio.get_running_loop()
    lost_at: float | None = None
    while True:
        try:
            async with contextlib.aclosing(server.subscribe(FOLLOW, {})) as messages:
                async for message in messages:
                    lost_at = None
                    yield message["workerUpdated"]
        except ConnectionBroke as error:
            lost_at = lost_at or loop.time()
            if loop.time() - lost_at > PATIENCE_S:
                raise ClientError(f"{error} It did not come back within {PATIENCE_S:g} s.") from None
        await asyncio.sleep(0.5)
