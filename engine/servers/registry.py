"""Which client speaks with which type of server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from db.session import Database
from engine.definitions import PinnedVersion
from engine.instances import Instances
from engine.nodes.contract import Surroundings
from engine.servers.contract import ServerAddress, ServerClient
from engine.streams import Streams
from flow.servers import ServerType

#: Makes a client for a server of its type.
Opens = Callable[[ServerAddress], ServerClient]


class Clients:
    """The clients of this process, one for each server and address, made when they are first needed.

    A server that is changed gets another client; work that is followed through the old one is followed on.
    """

    def __init__(self, opens: Mapping[ServerType, Opens]) -> None:
        self._opens = dict(opens)
        self._open: dict[ServerAddress, ServerClient] = {}

    def of(self, server: ServerAddress) -> ServerClient:
        """The client for this server as it is now."""
        client = self._open.get(server)
        if client is None:
            client = self._open[server] = self._opens[server.type](server)
        return client

    async def close(self) -> None:
        """Close every client."""
        clients, self._open = list(self._open.values()), {}
        await asyncio.gather(*(client.close() for client in clients))


def opens(
    database: Database,
    instances: Instances,
    streams: Streams,
    version: Callable[[str], Awaitable[PinnedVersion]],
    around: Surroundings,
    storage_check: Callable[[], Awaitable[None]],
) -> Mapping[ServerType, Opens]:
    """How a client of each type is made. What a client needs is imported when the first one is."""

    def local(server: ServerAddress) -> ServerClient:
        from engine.servers.local import Local

        return Local(
            server,
            database=database,
            instances=instances,
            streams=streams,
            version=version,
            artifacts=around.artifacts,
            files=around.files,
            storage_check=storage_check,
        )

    def http(server: ServerAddress) -> ServerClient:
        from engine.servers.http import Http

        return Http(server, around.outbound.server_client)

    def mirrorflow(server: ServerAddress) -> ServerClient:
        from engine.servers.mirrorflow import Mirrorflow

        return Mirrorflow(server, around.outbound.server_client, around.files)

    def comfyui(server: ServerAddress) -> ServerClient:
        from engine.servers.comfyui import Comfy

        return Comfy(server, around.outbound.server_client)

    return {
        ServerType.LOCAL: local,
        ServerType.HTTP: http,
        ServerType.MIRRORFLOW: mirrorflow,
        ServerType.COMFYUI: comfyui,
    }
