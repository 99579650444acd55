"""Servers that execute work: looked at and watched. What changes them is in ``graph.server_editing``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, cast

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
from graph.permissions import Info, caller, query, subscription
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
        return connection(
            CHECKS, asked, page, check_result, lambda: load.check_count.load(Counted(self.id, keyset.EVERY))
        )


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


def check_result(row: keyset.Record) -> ServerCheckResult:
    """The row as the schema shows it."""
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
