"""Commands that act on a run under way, or on one that has failed."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from mirrorflow.commands.options import DataDir, Token, Url, client

Id = Annotated[str, typer.Argument(help="The run's id.")]
Path = Annotated[str, typer.Argument(metavar="NODE", help="The node's id, in a loop its path.")]
Comment = Annotated[str | None, typer.Option(help="What there is to say about it; kept with the run.")]
Answer = Annotated[str | None, typer.Option(help="The approval's form, filled in, as JSON.")]

FAILED = """
query($id: ID!) { instance(id: $id) {
  nodeExecutions(where: {status: {eq: FAILED}}, first: 100) { nodes { id path } } } }
"""


def pause(id: Id, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Start no more nodes of a run; those that run finish."""
    _send("instancePause", {"id": id}, url, token, data_dir)
    typer.echo(f"{id}: being paused. Go on with: mirrorflow resume {id}")


def resume(id: Id, url: Url = None, token: Token = None, data_dir: DataDir = None) -> None:
    """Let a paused run go on."""
    _send("instanceResume", {"id": id}, url, token, data_dir)
    typer.echo(f"{id}: goes on")


def signal(
    id: Id,
    name: Annotated[str, typer.Argument(help="The signal's name.")],
    payload: Annotated[str | None, typer.Option(help="What comes with it, as JSON.")] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Send a signal to a run: for the node that waits for it, or the first that will."""
    _send("instanceSignal", {"id": id, "name": name, "payload": _json("--payload", payload)}, url, token, data_dir)
    typer.echo(f"{id}: {name} sent")


def approve(
    id: Id,
    node: Path,
    comment: Comment = None,
    answer: Answer = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Say yes to the approval that a run waits for."""
    given = {"id": id, "path": node, "approved": True, "comment": comment, "answer": _json("--answer", answer)}
    _send("approvalAnswer", given, url, token, data_dir)
    typer.echo(f"{id}: {node} approved")


def reject(
    id: Id, node: Path, comment: Comment = None, url: Url = None, token: Token = None, data_dir: DataDir = None
) -> None:
    """Say no to the approval that a run waits for."""
    given = {"id": id, "path": node, "approved": False, "comment": comment}
    _send("approvalAnswer", given, url, token, data_dir)
    typer.echo(f"{id}: {node} rejected")


def retry(
    id: Id,
    node: Annotated[
        str | None, typer.Argument(metavar="[NODE]", help="Only this failed node; left out: all that failed.")
    ] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Run what failed in a FAILED run again, and let the run go on from there."""
    from mirrorflow.client import ClientError

    async def again() -> None:
        async with client(url, token, data_dir) as server:
            if node is None:
                given: dict[str, Any] = {"where": {"id": {"eq": id}}}
                payload = await server.mutate(
                    _document("instancesRetry", "results { refusal { message } }"), {"input": given}
                )
                if not payload["results"]:
                    raise ClientError(f"There is no run {id!r} on the server.", exit_code=2)
                if refusal := payload["results"][0]["refusal"]:
                    raise ClientError(refusal["message"], exit_code=2)
                return
            found = (await server.query(FAILED, {"id": id}))["instance"]
            if found is None:
                raise ClientError(f"There is no run {id!r} on the server.", exit_code=2)
            failed = {each["path"]: each["id"] for each in found["nodeExecutions"]["nodes"]}
            if node not in failed:
                known = ", ".join(failed) or "none"
                raise ClientError(f"{node!r} has not failed in {id}; failed: {known}.", exit_code=2)
            await server.mutate(_document("nodeExecutionRetry"), {"input": {"id": failed[node]}})

    asyncio.run(again())
    typer.echo(f"{id}: goes on. Follow it with: mirrorflow logs -f {id}")


def fork(
    id: Id,
    seq: Annotated[int | None, typer.Option(help="Begin as the run was right after this event.")] = None,
    node: Annotated[str | None, typer.Option(help="Begin before this node started.")] = None,
    version: Annotated[str | None, typer.Option(help="Another version of the workflow, by its id.")] = None,
    input: Annotated[str | None, typer.Option(help="Another input, as JSON.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", metavar="NODE=JSON", help="A node's output that is given.")
    ] = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
) -> None:
    """Start a new run from the middle of an old one and print its id: what had completed is not done again."""
    from mirrorflow.client import ClientError

    given: dict[str, Any] = {"id": id, "seq": seq, "node": node, "version": version}
    if input is not None:
        given["input"] = _json("--input", input)
    pins = []
    for each in pin or []:
        path, separator, value = each.partition("=")
        if not separator or not path:
            raise ClientError(f"--pin {each}: write it as NODE=JSON.", exit_code=2)
        pins.append({"path": path, "output": _json("--pin", value)})
    payload = _send("instanceFork", given | {"pins": pins}, url, token, data_dir)
    typer.echo(payload["instance"]["id"])


def _json(option: str, text: str | None) -> Any:
    from mirrorflow.client import ClientError

    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ClientError(f"{option} is not JSON: {error}", exit_code=2) from None


def _document(mutation: str, payload: str = "instance { id status }") -> str:
    name = mutation[0].upper() + mutation[1:]
    return f"""mutation($input: {name}Input!) {{ {mutation}(input: $input) {{
      __typename
      ... on {name}Payload {{ {payload} }}
      ... on UserError {{ code message }} }} }}"""


def _send(mutation: str, given: dict[str, Any], url: str | None, token: str | None, data_dir: Any) -> dict[str, Any]:
    async def send() -> dict[str, Any]:
        async with client(url, token, data_dir) as server:
            return await server.mutate(_document(mutation), {"input": given})

    return asyncio.run(send())
