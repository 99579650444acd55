"""What is about the server itself and its caller: viewer, health, node types, and any object by its id."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Annotated

import strawberry
from strawberry import argument, field

from engine.access import Permission
from flow.errors import StorageUnavailable
from graph.instances import instance
from graph.nodes import NodeType, execution, node_type, split_id
from graph.objects import Node, choice
from graph.paging import refuse
from graph.permissions import PUBLIC, SIGNED_IN, Info, caller, query
from graph.servers import server
from graph.task_items import task_item
from graph.tasks import task, task_execution
from graph.versions import version
from graph.workflows import workflow

MOST_NODES = 100


@strawberry.type(description="Who is asking, and what they may do.")
class Viewer:
    """The actor."""

    id: strawberry.ID = field(description="The user's id.")
    name: str = field(description="The user's name.")
    project_id: strawberry.ID = field(description="The project that the token is for.")
    permissions: list[str] = field(description="What the token allows, such as workflow:write.")


@strawberry.enum(description="Whether the server works.")
class HealthStatus(Enum):
    """By its parts."""

    OK = choice("OK", "It works.")
    UNAVAILABLE = choice("UNAVAILABLE", "It can't reach its database.")


@strawberry.type(description="Whether the server works.")
class Health:
    """As far as a stranger may know."""

    status: HealthStatus = field(description="In one word.")


@strawberry.type
class ServerQuery:
    """The server, its caller, and look-ups by id alone."""

    @query(PUBLIC, "Who is asking, and what they may do; null for strangers.")
    async def viewer(self, info: Info) -> Viewer | None:
        """The actor."""
        actor = info.context.actor
        if actor is None:
            return None
        return Viewer(
            id=strawberry.ID(actor.user_id),
            name=actor.name,
            project_id=strawberry.ID(actor.project_id),
            permissions=sorted(actor.permissions),
        )

    @query(PUBLIC, "Whether the server works.")
    async def health(self, info: Info) -> Health:
        """Has the database store something, once a second at most."""
        try:
            await info.context.engine.storage_check()
        except StorageUnavailable:
            return Health(status=HealthStatus.UNAVAILABLE)
        return Health(status=HealthStatus.OK)

    @query(SIGNED_IN, "Anything by its id; null if your project has none of that id or you may not see it.")
    async def node(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="Its id, whatever it is.")]
    ) -> Node | None:
        """By the id's prefix."""
        return await _node(info, id)

    @query(SIGNED_IN, "Several things by their ids, in the same order; null for each that is not there.")
    async def nodes(
        self, info: Info, ids: Annotated[list[strawberry.ID], argument(description="Their ids: 100 at most.")]
    ) -> list[Node | None]:
        """By the ids' prefixes."""
        if len(ids) > MOST_NODES:
            raise refuse("BAD_PAGE", f"`ids` can hold {MOST_NODES} ids at most, not {len(ids)}.", "ids")
        return list(await asyncio.gather(*(_node(info, id) for id in ids)))

    @query(Permission.NODE_TYPE_READ, "The kinds of nodes that this server knows, by name.")
    async def node_types(
        self,
        info: Info,
        category: Annotated[str | None, argument(description="Only of this family, such as image.")] = None,
        search: Annotated[
            str | None, argument(description="Only with this in the name, title or description, in capitals or not.")
        ] = None,
    ) -> list[NodeType]:
        """From the registry."""
        wanted = (search or "").casefold()
        return [
            node_type(kind)
            for kind in info.context.engine.registry.all()
            if (category is None or kind.category == category)
            and (not wanted or wanted in f"{kind.name}\n{kind.title}\n{kind.description}".casefold())
        ]


async def _node(info: Info, id: str) -> Node | None:
    load, actor = info.context.load, caller(info)
    match id.partition("-")[0]:
        case "wf" if actor.may(Permission.WORKFLOW_READ):
            row = await load.workflow.load(id)
            return None if row is None else workflow(row, actor)
        case "wfv" if actor.may(Permission.WORKFLOW_READ):
            row = await load.version.load(id)
            return None if row is None else version(row)
        case "inst" if actor.may(Permission.INSTANCE_READ):
            row = await load.instance.load(id)
            return None if row is None else instance(row, actor)
        case "task" if actor.may(Permission.TASK_READ):
            row = await load.task.load(id)
            return None if row is None else task(row, actor)
        case "exec" if actor.may(Permission.TASK_READ):
            row = await load.execution.load(id)
            return None if row is None else task_execution(row, actor)
        case "item" if actor.may(Permission.TASK_READ):
            row = await load.item.load(id)
            return None if row is None else task_item(row, actor)
        case "srv" if actor.may(Permission.SERVER_READ):
            row = await load.server.load(id)
            return None if row is None else server(row, actor)
        case "node" if actor.may(Permission.INSTANCE_READ) and (key := split_id(id)) is not None:
            # The instance is looked up too: only it says whose it is.
            if await load.instance.load(key[0]) is None:
                return None
            row = await load.node.load(key)
            return None if row is None else execution(row, actor)
        case _:
            return None
