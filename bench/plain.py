"""The yardstick of G1: a plain Starlette route that runs the same SQL as ``{ instance(id) { … } }`` and answers JSON.

``python -m bench.plain DATABASE PORT``, in a process of its own, on the server's own uvicorn configuration.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from db.session import connect
from db.store import lists
from engine.access import Access
from mirrorflow.server import http_server, listening_socket


async def serve(database_file: Path, port: int) -> None:
    """Serve ``POST /plain`` until killed."""
    database = connect(f"sqlite:///{database_file}")
    access = Access(database)

    async def plain(request: Request) -> Response:
        actor = await access.authenticate(request.headers["authorization"].removeprefix("Bearer "))
        assert actor is not None
        id = msgspec.json.decode(await request.body())["variables"]["id"]
        row = (await database.read(lists.instances, actor.project_id, [id]))[id]
        instance = {"id": row.id, "status": row.status, "createdAt": row.created_at, "completedAt": row.completed_at}
        return Response(msgspec.json.encode({"data": {"instance": instance}}), media_type="application/json")

    app = Starlette(routes=[Route("/plain", plain, methods=["POST"])])
    print("ready", flush=True)
    await http_server(app).serve(sockets=[listening_socket("127.0.0.1", port)])


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
