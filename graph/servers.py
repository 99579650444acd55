"""Servers that execute work: looked at, registered, changed, checked, and watched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, cast

import msgspec
import strawberry
from strawberry import UNSET, argument, field

from db.store import keyset
from db.store import servers as store
from db.store.servers import CHECKS, SERVERS
from engine.access import Actor, Permission
from flow import errors
from flow.servers import CheckOutcome, ServerStatus, ServerType, unavailable
from graph.loaders import Counted, Part
from graph.objects import Node, choice, derived
from graph.paging import (
    After,
    Before,
    Connection,
    DateTimeFilter,
    First,
    IdFilter,
    IntFilter,
    Last,
    StringFilter,
    connection,
    part,
    refuse,
    where,
)
from graph.permissions import Info, caller, mutation, query, subscription
from graph.results import Conflict, NotFound, PermissionDenied, QuotaExceeded, ValidationFailed
from graph.scalars import JSON, BigInt

filter_of = where

strawberry.enum(ServerType, description="What a server speaks.")
strawberry.enum(CheckOutcome, description="What came of asking a server how it is.")

#: How many servers one subscription can follow by id.
MOST_IDS = 100
#: A project has no more of them.
MOST_SERVERS = 1_000


@strawberry.type(description="The result of one health check.")
class ServerCheckResult:
    """A row of ``server_checks``."""

    at: datetime = field(description="When the server was asked.")
    outcome: CheckOutcome = field(description="What came of it.")
    latency_ms: float | None = field(description="Milliseconds until the answer was there; null if none came.")
    message: str | None = field(description="What was wrong, if anything was.")
    status: ServerStatus = field(description="The server's status after it.")


@strawberry.type(description="A registered place that executes work.")
class Server(Node):
    """A row of ``servers``."""

    name: str = field(description="Its name, unique in the project.")
    url: str = field(description="Its address; of a local server a mere name.")
    type: ServerType = field(description="What it speaks.")
    enabled: bool = field(description="False: it is neither checked nor given work.")
    batch_size: int = field(description="How many items it takes at once.")
    status: ServerStatus = field(description="Where it is in its life.")
    failures: int = field(description="How many checks have failed in a row; the third takes it out of service.")
    last_check: datetime | None = field(description="When it was last asked how it is.")
    latency_ms: float | None = field(description="Milliseconds that its last answer took.")
    capabilities: JSON | None = field(description="What it says about itself, by its last good check.")
    last_error: str | None = field(description="What was wrong at the last check; null if nothing was.")
    has_token: bool = field(description="True when it has a token, which nobody can read again.")
    created_at: datetime = field(description="When it was registered.")
    created_by: str | None = field(description="Who registered it: a user's id.")
    updated_at: datetime = field(description="When people last changed it.")
    updated_by: str | None = field(description="Who changed it last: a user's id.")
    change_seq: BigInt = field(description="The place of people's newest change in the project's order of changes.")
    viewer_can_edit: bool = field(description="True when you may change it.")
    viewer_can_check: bool = field(description="True when you may have it checked.")

    @derived("How many items it works on now, of all tasks together.")
    async def running(self, info: Info) -> int:
        """By loader, from the tasks' ledger."""
        return (await info.context.load.server_load.load(self.id)).running

    @derived("A task that it works on now.")
    async def current_task_id(self, info: Info) -> strawberry.ID | None:
        """By loader, from the tasks' ledger."""
        id = (await info.context.load.server_load.load(self.id)).task_id
        return None if id is None else strawberry.ID(id)

    @derived("How many more items it would take now; 0 unless it is enabled and ONLINE.")
    async def free_slots(self, info: Info) -> int:
        """By ``flow.servers``."""
        load = await info.context.load.server_load.load(self.id)
        if unavailable(self.name, self.enabled, self.status, self.batch_size, load) is not None:
            return 0
        return self.batch_size - load.running

    @derived("The results of its last 100 health checks, the newest first.")
    async def checks(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> Connection[ServerCheckResult]:
        """By loader: one statement for a whole page of servers."""
        asked = part(CHECKS, "AT", True, first, after, last, before)
        load = info.context.load
        page = await load.checks_of.load(Part(self.id, keyset.EVERY, asked))
        return connection(CHECKS, asked, page, _check, lambda: load.check_count.load(Counted(self.id, keyset.EVERY)))


def server(row: Any, actor: Actor) -> Server:
    """The row as the schema shows it."""
    return Server(
        id=strawberry.ID(row.id),
        name=row.name,
        url=row.url,
        type=ServerType(row.type),
        enabled=row.enabled,
        batch_size=row.batch_size,
        status=ServerStatus(row.status),
        failures=row.failures,
        last_check=row.last_check_at,
        latency_ms=row.latency_ms,
        capabilities=row.capabilities,
        last_error=row.last_error,
        has_token=row.sealed_token is not None,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
        change_seq=row.change_seq,
        viewer_can_edit=actor.may(Permission.SERVER_ADMIN),
        viewer_can_check=actor.may(Permission.SERVER_CHECK),
    )


def _check(row: keyset.Record) -> ServerCheckResult:
    return ServerCheckResult(
        at=row.at,
        outcome=CheckOutcome(row.outcome),
        latency_ms=row.latency_ms,
        message=row.message,
        status=ServerStatus(row.status),
    )


# ---- lists ----------------------------------------------------------------------------------------------------


@strawberry.input(description="Compares a server's status.")
class ServerStatusFilter:
    """``eq`` or ``in``."""

    eq: ServerStatus | None = field(default=UNSET, description="Is exactly this.")
    in_: list[ServerStatus] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Compares a server's type.")
class ServerTypeFilter:
    """``eq`` or ``in``."""

    eq: ServerType | None = field(default=UNSET, description="Is exactly this.")
    in_: list[ServerType] | None = field(default=UNSET, name="in", description="Is one of these.")


@strawberry.input(description="Asks whether something is so.")
class BooleanFilter:
    """``eq``."""

    eq: bool | None = field(default=UNSET, description="Is so, or is not.")


@strawberry.input(description="Which servers. Everything that is given must hold.")
class ServerWhere:
    """See ``db.store.servers.SERVERS``."""

    id: IdFilter | None = field(default=None, description="By id.")
    name: StringFilter | None = field(default=None, description="By name.")
    url: StringFilter | None = field(default=None, description="By address.")
    type: ServerTypeFilter | None = field(default=None, description="By what they speak.")
    status: ServerStatusFilter | None = field(default=None, description="By status.")
    enabled: BooleanFilter | None = field(default=None, description="By whether they are enabled.")
    batch_size: IntFilter | None = field(default=None, description="By how many items they take at once.")
    created_at: DateTimeFilter | None = field(default=None, description="By when they were registered.")
    and_: list[ServerWhere] | None = field(default=None, name="and", description="All of these hold.")
    or_: list[ServerWhere] | None = field(default=None, name="or", description="At least one of these holds.")
    not_: ServerWhere | None = field(default=None, name="not", description="This does not hold.")


@strawberry.enum(description="The order of a list of servers.")
class ServerOrder(Enum):
    """Order and direction."""

    NAME_ASC = choice("NAME_ASC", "By name.")
    NAME_DESC = choice("NAME_DESC", "By name, backwards.")
    CREATED_DESC = choice("CREATED_DESC", "The newest first.")
    CREATED_ASC = choice("CREATED_ASC", "The oldest first.")


@strawberry.type
class ServersQuery:
    """Servers by id and as lists."""

    @query(Permission.SERVER_READ, "One server by id or by name; null if your project has none.")
    async def server(
        self,
        info: Info,
        id: Annotated[strawberry.ID | None, argument(description="The server's id.")] = None,
        name: Annotated[str | None, argument(description="Its name, instead of the id.")] = None,
    ) -> Server | None:
        """By loader."""
        actor = caller(info)
        if (id is None) == (name is None):
            raise refuse("BAD_INPUT", "Give the server's `id` or its `name`.", "id")
        row: Any
        if id is not None:
            row = await info.context.load.server.load(id)
        else:
            row = await info.context.engine.servers.named(actor, name or "")
        return None if row is None else shown(row, actor)

    @query(Permission.SERVER_READ, "The servers of your project, by name unless you say otherwise.")
    async def servers(
        self,
        info: Info,
        where: Annotated[ServerWhere | None, argument(name="where", description="Only those that match.")] = None,
        order_by: Annotated[ServerOrder, argument(description="In which order.")] = ServerOrder.NAME_ASC,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[Server]:
        """One page."""
        order, _, direction = order_by.value.partition("_")
        asked = part(SERVERS, order, direction == "DESC", first, after, last, before)
        wanted = filter_of(where)
        actor, db = caller(info), info.context.engine.database
        page = await db.read(keyset.page, SERVERS, actor.project_id, wanted, asked)
        return connection(
            SERVERS,
            asked,
            page,
            lambda row: shown(row, actor),
            lambda: db.read(keyset.count, SERVERS, actor.project_id, wanted),
        )

    @query(
        Permission.SERVER_READ,
        "The servers that can take work now: enabled, ONLINE and with a free place; the oldest first.",
    )
    async def servers_available(self, info: Info) -> list[Server]:
        """From the ledger."""
        actor = caller(info)
        return [shown(each.server, actor) for each in await info.context.engine.servers.available(actor)]


shown = server


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
        found = _check(page.rows[0])
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


# ---- watching -------------------------------------------------------------------------------------------------


@strawberry.type
class ServersSubscription:
    """Servers, live."""

    @subscription(
        Permission.SERVER_READ,
        "Each server now, and again after every check and every change of it.",
    )
    async def server_updated(
        self,
        info: Info,
        ids: Annotated[
            list[strawberry.ID] | None,
            argument(description="Only these servers: 100 at most; null: all of the project."),
        ] = None,
    ) -> AsyncIterator[Server]:
        """Reads those rows of which the bus says that they changed."""
        actor, engine = caller(info), info.context.engine
        if ids is not None and len(ids) > MOST_IDS:
            raise refuse("BAD_PAGE", f"`ids` can hold {MOST_IDS} ids at most, not {len(ids)}.", "ids")
        wanted = None if ids is None else frozenset(map(str, ids))
        if wanted is not None:
            there = await engine.database.read(store.servers, actor.project_id, sorted(wanted))
            if unknown := wanted - there.keys():
                raise errors.NotFound("server", min(unknown), path=("ids",))
        told: dict[str, keyset.Record] = {}
        stream = cast("AsyncGenerator[frozenset[str] | None, None]", engine.servers.changes(actor))
        async with aclosing(stream) as changes:
            async for changed in changes:
                if changed is not None and wanted is not None and not (changed := changed & wanted):
                    continue
                which = keyset.EVERY if wanted is None else keyset.Compare("id", "in", tuple(wanted))
                if changed is not None:
                    which = keyset.Compare("id", "in", tuple(changed))
                asked = keyset.Slice("NAME", limit=MOST_SERVERS)
                page = await engine.database.read(keyset.page, SERVERS, actor.project_id, which, asked)
                for row in page.rows:
                    if told.get(row.id) != row:
                        told[row.id] = row
                        info.context.refresh()
                        yield server(row, actor)
