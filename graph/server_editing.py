"""What can be done with servers: an input, a payload and a result for every mutation."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset
from engine.access import Permission
from flow import errors
from flow.servers import ServerStatus, ServerType
from graph.loaders import Part
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, QuotaExceeded, ValidationFailed
from graph.scalars import BigInt
from graph.servers import Server, ServerCheckResult, check_result, server

# ---- inputs and payloads --------------------------------------------------------------------------------------


@strawberry.input(description="A new server.")
class ServerRegisterInput:
    """See ``engine.servers``."""

    name: str = field(description="Its name, unique in the project: 1 to 255 characters.")
    url: str = field(description="Its address, http or https, without credentials, query or fragment.")
    type: ServerType = field(description="What it speaks.")
    enabled: bool = field(default=True, description="False: it is neither checked nor given work.")
    batch_size: int = field(default=5, description="How many items it takes at once: 1 to 10,000.")
    token: str | None = field(
        default=None, description="Sent to it as a Bearer token; kept encrypted and never shown again."
    )


@strawberry.input(description="What to change of a server; what is left out stays as it is.")
class ServerUpdateInput:
    """See ``engine.servers``."""

    id: strawberry.ID = field(description="The server's id.")
    name: str | None = field(default=UNSET, description="Another name.")
    url: str | None = field(
        default=UNSET,
        description="Another address: the server is OFFLINE until it is checked there. If it has a token, give the "
        "token again, or null.",
    )
    enabled: bool | None = field(default=UNSET, description="Whether it is checked and given work.")
    batch_size: int | None = field(default=UNSET, description="How many items it takes at once.")
    token: str | None = field(default=UNSET, description="Another token; null takes the token away.")


@strawberry.input(description="Which server to delete.")
class ServerDeleteInput:
    """See ``engine.servers``."""

    id: strawberry.ID = field(description="The server's id.")
    force: bool = field(
        default=False, description="Also while it works on a task: the items go back to the task's other servers."
    )


@strawberry.input(description="What state a server is in, by somebody's word.")
class ServerStatusSetInput:
    """See ``engine.servers``."""

    id: strawberry.ID = field(description="The server's id.")
    status: ServerStatus = field(
        description="ONLINE, OFFLINE or BUSY, until the next check says otherwise; MAINTENANCE, until somebody ends it."
    )


@strawberry.input(description="Which server to ask how it is.")
class ServerCheckHealthInput:
    """See ``engine.servers``."""

    id: strawberry.ID = field(description="The server's id.")


@strawberry.type(description="The server was registered, and is being checked.")
class ServerRegisterPayload:
    """The server."""

    server: Server = field(description="The server.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The server is as asked for.")
class ServerUpdatePayload:
    """The server."""

    server: Server = field(description="The server after the change.")
    changed: bool = field(description="False if it was so already: nothing was written.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The server and its history are gone.")
class ServerDeletePayload:
    """Its id."""

    id: strawberry.ID = field(description="The id that it had.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The server has the status.")
class ServerStatusSetPayload:
    """The server."""

    server: Server = field(description="The server after the change.")
    changed: bool = field(description="False if it had that status already.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The server was asked; what came of it counts as any other check does.")
class ServerCheckHealthPayload:
    """The server."""

    server: Server = field(description="The server after the check.")
    healthy: bool = field(description="True if it answered as it should.")
    check: ServerCheckResult = field(description="What came of it.")


ServerRegisterResult = Annotated[
    ServerRegisterPayload | ValidationFailed | Conflict | PermissionDenied | QuotaExceeded,
    strawberry.union("ServerRegisterResult", description="A registered server, or why there is none."),
]
ServerUpdateResult = Annotated[
    ServerUpdatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("ServerUpdateResult", description="A changed server, or why it is not."),
]
ServerDeleteResult = Annotated[
    ServerDeletePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("ServerDeleteResult", description="A deleted server, or why it is still there."),
]
ServerStatusSetResult = Annotated[
    ServerStatusSetPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("ServerStatusSetResult", description="A server in that status, or why it is not."),
]
ServerCheckHealthResult = Annotated[
    ServerCheckHealthPayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("ServerCheckHealthResult", description="A checked server, or why it was not checked."),
]


# ---- mutations ------------------------------------------------------------------------------------------------


@strawberry.type
class ServersMutation:
    """What can be done with servers."""

    @mutation(Permission.SERVER_ADMIN, "Register a server. It is OFFLINE until its first check, which comes at once.")
    async def server_register(
        self, info: Info, input: Annotated[ServerRegisterInput, argument(description="Name, address and type.")]
    ) -> ServerRegisterResult:
        """Stores it."""
        actor = caller(info)
        changed = await info.context.engine.servers.register(
            actor,
            name=input.name,
            url=input.url,
            type=input.type,
            enabled=input.enabled,
            batch_size=input.batch_size,
            token=input.token,
        )
        return ServerRegisterPayload(
            server=await _reread(info, changed.server_id), change_seq=BigInt(changed.change_seq)
        )

    @mutation(Permission.SERVER_ADMIN, "Change a server.")
    async def server_update(
        self, info: Info, input: Annotated[ServerUpdateInput, argument(description="Which one, and what.")]
    ) -> ServerUpdateResult:
        """Stores what differs."""
        given: dict[str, Any] = {}
        for name in ("name", "url", "enabled", "batch_size"):
            value = getattr(input, name)
            if value is None:
                problem = errors.Problem(f"/{_camel(name)}", "BAD_INPUT", f"`{_camel(name)}` can't be null.")
                raise errors.Invalid([problem], path=("input", _camel(name)))
            given[name] = msgspec.UNSET if value is UNSET else value
        given["token"] = msgspec.UNSET if input.token is UNSET else input.token
        changed = await info.context.engine.servers.update(caller(info), input.id, **given)
        return ServerUpdatePayload(
            server=await _reread(info, input.id), changed=changed.changed, change_seq=BigInt(changed.change_seq)
        )

    @mutation(
        Permission.SERVER_ADMIN, "Delete a server and its history. Refused while it works on a task, unless forced."
    )
    async def server_delete(
        self, info: Info, input: Annotated[ServerDeleteInput, argument(description="Which one.")]
    ) -> ServerDeleteResult:
        """Removes it."""
        changed = await info.context.engine.servers.delete(caller(info), input.id, force=input.force)
        return ServerDeletePayload(id=input.id, change_seq=BigInt(changed.change_seq))

    @mutation(Permission.SERVER_ADMIN, "Say what state a server is in, such as MAINTENANCE, which no check ends.")
    async def server_status_set(
        self, info: Info, input: Annotated[ServerStatusSetInput, argument(description="Which one, and what state.")]
    ) -> ServerStatusSetResult:
        """Stores it."""
        changed = await info.context.engine.servers.status_set(caller(info), input.id, input.status)
        return ServerStatusSetPayload(
            server=await _reread(info, input.id), changed=changed.changed, change_seq=BigInt(changed.change_seq)
        )

    @mutation(Permission.SERVER_CHECK, "Ask a server how it is, now; it has three seconds to answer.")
    async def server_check_health(
        self, info: Info, input: Annotated[ServerCheckHealthInput, argument(description="Which one.")]
    ) -> ServerCheckHealthResult:
        """Asks it."""
        await info.context.engine.servers.check_health(caller(info), input.id)
        shown = await _reread(info, input.id)
        newest = keyset.Slice("AT", descending=True, limit=1)
        page = await info.context.load.checks_of.load(Part(input.id, keyset.EVERY, newest))
        if not page.rows:
            raise errors.Conflict("The server was moved while it was checked. Check it again.")
        found = check_result(page.rows[0])
        return ServerCheckHealthPayload(server=shown, healthy=not found.outcome.failed, check=found)


async def _reread(info: Info, id: str) -> Server:
    info.context.refresh()
    row = await info.context.load.server.load(id)
    if row is None:
        raise errors.NotFound("server", id)
    return server(row, caller(info))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(each.capitalize() for each in rest)
