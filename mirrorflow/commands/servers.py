"""Commands about servers: the places that execute work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client

if TYPE_CHECKING:
    from mirrorflow.client import Client

T = TypeVar("T")

app = typer.Typer(help="Register servers, and see how they are.", invoke_without_command=True, add_completion=False)

Name = Annotated[str, typer.Argument(metavar="NAME|ID", help="The server's name or id.")]

_SHOWN = "id name type url enabled status batchSize running currentTaskId lastCheck latencyMs lastError"
LIST = f"""
query($after: String) {{ servers(first: 100, after: $after) {{
  nodes {{ {_SHOWN} }} pageInfo {{ hasNextPage endCursor }} }} }}
"""
ONE = f"""
query($id: ID, $name: String) {{ server(id: $id, name: $name) {{
  {_SHOWN} capabilities checks(first: 10) {{ nodes {{ at outcome latencyMs message status }} }} }} }}
"""
FOLLOW = f"subscription($ids: [ID!]) {{ serverUpdated(ids: $ids) {{ {_SHOWN} }} }}"
CHECK = """
mutation($input: ServerCheckHealthInput!) { serverCheckHealth(input: $input) {
  __typename
  ... on ServerCheckHealthPayload { healthy check { outcome latencyMs message } server { name status } }
  ... on UserError { code message } } }
"""


def _mutation(name: str, payload: str) -> str:
    type = name[0].upper() + name[1:]
    return f"""mutation($input: {type}Input!) {{ {name}(input: $input) {{
      __typename
      ... on {type}Payload {{ {payload} }}
      ... on ValidationFailed {{ problems {{ pointer code message }} }}
      ... on UserError {{ code message }} }} }}"""


REGISTER = _mutation("serverRegister", "server { id name }")
UPDATE = _mutation("serverUpdate", "changed server { id name }")
STATUS = _mutation("serverStatusSet", "server { id name status }")
DELETE = _mutation("serverDelete", "id").replace("... on ValidationFailed { problems { pointer code message } }", "")


@app.callback()
def root(context: typer.Context, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Register servers, and see how they are; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_(url=url, token=token, data_dir=data_dir)


@app.command("list")
def list_(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, with a line for every change.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """List the servers by name."""

    async def tell(server: Client) -> None:
        after: str | None = None
        while not watch:
            page = (await server.query(LIST, {"after": after}))["servers"]
            for row in page["nodes"]:
                typer.echo(_line(row))
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                return
        async for message in server.subscribe(FOLLOW, {"ids": None}):
            typer.echo(_line(message["serverUpdated"]))

    _with(tell, url, token, data_dir)


@app.command()
def show(name: Name, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Show one server with its last checks, as JSON."""

    async def tell(server: Client) -> None:
        typer.echo(json.dumps(await _server(server, name), indent=2, ensure_ascii=False))

    _with(tell, url, token, data_dir)


@app.command()
def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, unique in the project.")],
    address: Annotated[str, typer.Argument(metavar="URL", help="Its address, such as http://127.0.0.1:8188.")],
    type: Annotated[str, typer.Option("--type", "-t", help="comfyui, mirrorflow, http or local.")],
    batch_size: Annotated[int, typer.Option(help="How many items it takes at once.")] = 5,
    disabled: Annotated[bool, typer.Option("--disabled", help="Neither check it nor give it work.")] = False,
    server_token: Annotated[
        str | None,
        typer.Option(
            envvar="MIRRORFLOW_SERVER_TOKEN", help="Sent to it as a Bearer token.", show_default=False, show_envvar=True
        ),
    ] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Register a server, have it checked, and print its id."""
    from flow.servers import ServerType
    from mirrorflow.client import ClientError

    if type.lower() not in set(ServerType):
        raise ClientError(f"There is no type {type!r}: use {', '.join(ServerType)}.", exit_code=2)
    given = {"name": name, "url": address, "type": type.upper(), "batchSize": batch_size, "enabled": not disabled}

    async def add(server: Client) -> None:
        made = (await server.mutate(REGISTER, {"input": given | {"token": server_token}}))["server"]
        typer.echo(made["id"])
        if not disabled:
            _tell_check(await server.mutate(CHECK, {"input": {"id": made["id"]}}), err=True)

    _with(add, url, token, data_dir)


@app.command()
def update(
    name: Name,
    address: Annotated[str | None, typer.Option("--address", help="Another URL.")] = None,
    rename: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="How many items it takes at once.")] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is checked and used.")] = None,
    server_token: Annotated[str | None, typer.Option(help="Another token; empty: none.", show_default=False)] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Change what is given of a server."""
    given: dict[str, Any] = {"name": rename, "url": address, "batchSize": batch_size, "enabled": enable}
    given = {key: value for key, value in given.items() if value is not None}
    if server_token is not None:
        given["token"] = server_token or None

    async def change(server: Client) -> None:
        id = (await _server(server, name))["id"]
        changed = (await server.mutate(UPDATE, {"input": given | {"id": id}}))["changed"]
        typer.echo(f"{name}: {'changed' if changed else 'as it was'}")

    _with(change, url, token, data_dir)


@app.command()
def status(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="STATUS", help="online, offline, busy or maintenance.")],
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Say what state a server is in; maintenance lasts until somebody ends it."""
    from flow.servers import SETTABLE
    from mirrorflow.client import ClientError

    if to.upper() not in set(SETTABLE):
        raise ClientError(f"{to!r} can't be set: use {', '.join(SETTABLE).lower()}.", exit_code=2)

    async def change(server: Client) -> None:
        id = (await _server(server, name))["id"]
        payload = await server.mutate(STATUS, {"input": {"id": id, "status": to.upper()}})
        typer.echo(f"{name}: {payload['server']['status']}")

    _with(change, url, token, data_dir)


@app.command()
def check(name: Name, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Ask a server how it is, now; exit 0 if it is well, 1 if not."""

    async def ask(server: Client) -> bool:
        id = (await _server(server, name))["id"]
        return _tell_check(await server.mutate(CHECK, {"input": {"id": id}}))

    if not _with(ask, url, token, data_dir):
        raise typer.Exit(1)


@app.command()
def delete(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Also while it works: its items go to others.")] = False,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Delete a server and its history."""

    async def remove(server: Client) -> None:
        id = (await _server(server, name))["id"]
        await server.mutate(DELETE, {"input": {"id": id, "force": force}})
        typer.echo(f"{name}: deleted")

    _with(remove, url, token, data_dir)


def _with(work: Callable[[Client], Awaitable[T]], url: str | None, token: str | None, data_dir: Any) -> T:
    async def run() -> T:
        async with client(url, token, data_dir) as server:
            return await work(server)

    return asyncio.run(run())


async def _server(server: Client, name: str) -> dict[str, Any]:
    from mirrorflow.client import ClientError

    for given in ({"name": name}, {"id": name}):
        found = (await server.query(ONE, given))["server"]
        if found is not None:
            return dict(found)
    raise ClientError(f"There is no server {name!r}.", exit_code=2)


def _line(row: dict[str, Any]) -> str:
    state = row["status"] if row["enabled"] else "disabled"
    latency = "" if row["latencyMs"] is None else f"{row['latencyMs']:.0f} ms"
    slots = f"{row['running']}/{row['batchSize']}"
    why = f"  {row['lastError']}" if row["lastError"] else ""
    where = f"{row['type'].lower():<10}  {row['name']}  {row['url']}"
    return f"{row['id']}  {state:<11}  {slots:>6}  {latency:>7}  {where}{why}"


def _tell_check(payload: dict[str, Any], *, err: bool = False) -> bool:
    found, server = payload["check"], payload["server"]
    took = "" if found["latencyMs"] is None else f" in {found['latencyMs']:.0f} ms"
    said = f": {found['message']}" if found["message"] else ""
    typer.echo(f"{server['name']}: {found['outcome']}{took}, {server['status']}{said}", err=err)
    return bool(payload["healthy"])
