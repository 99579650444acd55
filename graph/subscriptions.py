"""Live views. Every stream resumes by a cursor: what came after it is read from SQL, then followed live.

``engine.streams`` joins the two without gap or duplicate and keeps memory bounded for slow readers; here its events
and changes become what clients see. Before each item the loaders are emptied: what they remember belongs to the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, TypeVar, cast

import strawberry
from strawberry import argument, field

from db.store import keyset, lists
from engine.access import Permission
from flow import errors
from flow import events as e
from graph.event_types import InstanceEvent, LogLine
from graph.events import event, log_line
from graph.instances import Instance, InstanceWhere, instance
from graph.nodes import NodeExecution, execution
from graph.paging import refuse, where
from graph.permissions import Info, caller, subscription
from graph.scalars import BigInt

T = TypeVar("T")

#: Changes are shown at most ten times a second; what happens in between is one change.
COALESCE_S = 0.1
LARGEST_SNAPSHOT = 500
LARGEST_BATCH = 500

InstanceId = Annotated[strawberry.ID, argument(name="instance", description="The instance's id.")]


@strawberry.type(description="What changed among the instances since the last batch.")
class ChangeBatch:
    """See ``db.store.lists.Changes``."""

    change_seq: BigInt = field(description="How far this batch reaches: resume `after` it.")
    snapshot: bool = field(
        description="True for the first batch without `after`: forget what you have, `added` is all."
    )
    added: list[Instance] = field(description="Instances that were started since the last batch and match.")
    updated: list[Instance] = field(
        description="Older instances that changed and match; you may not have had them, if they match only now."
    )
    removed: list[strawberry.ID] = field(
        description="Instances that changed and do not match; you may not have had them, if they never did."
    )


@strawberry.type
class InstanceSubscription:
    """Every stream about runs."""

    @subscription(
        Permission.INSTANCE_READ,
        "Each event of an instance once, in order, without a gap; completes after its last. "
        "After a lost connection, resume `after` the last `seq` that you have seen.",
    )
    async def instance_events(
        self,
        info: Info,
        id: Annotated[strawberry.ID, argument(description="The instance's id.")],
        after: Annotated[int, argument(description="Only events after this `seq`.")] = 0,
    ) -> AsyncIterator[InstanceEvent]:
        """The history, then what happens."""
        actor = caller(info)
        async with _closing(_events(info, id, after)) as stream:
            async for recorded in stream:
                yield event(id, recorded, actor)

    @subscription(
        Permission.INSTANCE_READ,
        "An instance now, and again whenever it changed (at most ten times a second); completes when it has ended.",
    )
    async def instance_updated(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The instance's id.")]
    ) -> AsyncIterator[Instance]:
        """The object itself."""
        actor = caller(info)
        async with _closing(_following(info, id)) as turns:
            async for row in turns:
                yield instance(row, actor)

    @subscription(
        Permission.INSTANCE_READ,
        "The nodes of an instance as they change (at most ten times a second each); completes when the instance has "
        "ended. Resume `after` the `lastSeq` that you have seen; without it every node comes first.",
    )
    async def node_execution_updated(
        self,
        info: Info,
        instance: InstanceId,
        after: Annotated[int, argument(description="Only nodes that changed after this `seq`.")] = 0,
    ) -> AsyncIterator[NodeExecution]:
        """The rows that events since the cursor touched."""
        actor, db = caller(info), info.context.engine.database
        seen = _cursor(after)
        async with _closing(_following(info, instance)) as turns:
            async for row in turns:
                while seen < row.last_seq:
                    rows = await db.read(lists.nodes_changed, instance, seen, LARGEST_BATCH)
                    for node in rows:
                        info.context.refresh()
                        yield execution(node, actor)
                    if len(rows) < LARGEST_BATCH:
                        seen = max(row.last_seq, rows[-1].last_seq) if rows else row.last_seq
                    else:
                        seen = rows[-1].last_seq

    @subscription(
        Permission.INSTANCE_READ,
        "Each log line of a node once, in order; completes when the instance has ended. Resume `after` the last `seq`.",
    )
    async def node_logs(
        self,
        info: Info,
        instance: InstanceId,
        node: Annotated[str, argument(description="The node's id, in a loop its path such as `resize[3]/encode`.")],
        after: Annotated[int, argument(description="Only lines after this `seq`.")] = 0,
    ) -> AsyncIterator[LogLine]:
        """The node's ``node.log`` events."""
        async with _closing(_events(info, instance, after)) as stream:
            async for recorded in stream:
                match recorded.event:
                    case e.NodeLog(path=path) if path == node:
                        yield log_line(recorded, recorded.event)

    @subscription(
        Permission.INSTANCE_READ,
        "The instances of your project as a live list: first what there is (unless you resume `after` a `changeSeq`), "
        "then what changed, at most ten times a second. Put `added` and `updated` in by id, take `removed` out.",
    )
    async def instance_changes(
        self,
        info: Info,
        where: Annotated[InstanceWhere | None, argument(name="where", description="Only instances that match.")] = None,
        after: Annotated[
            BigInt | None, argument(description="Resume after this `changeSeq`, without a snapshot.")
        ] = None,
        first: Annotated[int, argument(description="How many the snapshot holds at most, the newest: 1 to 500.")] = 100,
    ) -> AsyncIterator[ChangeBatch]:
        """Snapshot, then windows of the project's order of changes."""
        actor, engine = caller(info), info.context.engine
        wanted = filter_of(where)
        if not 1 <= first <= LARGEST_SNAPSHOT:
            raise refuse("BAD_PAGE", f"`first` must be between 1 and {LARGEST_SNAPSHOT}, not {first}.", "first")
        if after is None:
            found = await engine.database.read(lists.snapshot, actor.project_id, wanted, first)
            yield _batch(info, found, snapshot=True)
            seen = found.change_seq
        else:
            seen = _cursor(after)
        async with _closing(engine.streams.changes(actor, seen)) as changes:
            async for newest in changes:
                while seen < newest:
                    found = await engine.database.read(
                        lists.changes, actor.project_id, wanted, seen, newest, LARGEST_BATCH
                    )
                    seen = found.change_seq
                    if found.added or found.updated or found.removed:
                        yield _batch(info, found, snapshot=False)


filter_of = where


def _batch(info: Info, found: lists.Changes, *, snapshot: bool) -> ChangeBatch:
    info.context.refresh()
    actor = caller(info)
    return ChangeBatch(
        change_seq=BigInt(found.change_seq),
        snapshot=snapshot,
        added=[instance(row, actor) for row in found.added],
        updated=[instance(row, actor) for row in found.updated],
        removed=[strawberry.ID(id) for id in found.removed],
    )


def _cursor(after: int) -> int:
    if after < 0:
        raise refuse("BAD_CURSOR", "`after` is a number that a stream gave you, or 0 for the beginning.", "after")
    return after


def _closing(stream: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """Whoever stops reading the stream closes it at once, and not when the garbage collector comes by."""
    return aclosing(cast("AsyncGenerator[T, None]", stream))


async def _events(info: Info, id: str, after: int) -> AsyncIterator[e.Recorded]:
    async with _closing(info.context.engine.streams.events(caller(info), id, _cursor(after))) as stream:
        async for recorded in stream:
            info.context.refresh()
            yield recorded


async def _following(info: Info, id: str) -> AsyncIterator[keyset.Record]:
    """The instance's row now, and again after changes, coalesced; ends when the instance has."""
    actor, engine = caller(info), info.context.engine
    row = await _row(info, id)
    if row is None:
        raise errors.NotFound("instance", id)
    yield row
    changed = asyncio.Event()

    async def listen(after: int) -> None:
        try:
            async with _closing(engine.streams.events(actor, id, after)) as stream:
                async for _ in stream:
                    changed.set()
        finally:
            changed.set()

    listening = asyncio.create_task(listen(row.last_seq), name=f"following {id}")
    over = False
    try:
        while not over:
            await changed.wait()
            changed.clear()
            # What happens until then is one change with this one; an end is shown at once.
            await asyncio.wait([listening], timeout=COALESCE_S)
            over = listening.done()  # asked before the row is read, so that the last row that is read shows the end
            before, row = row, await _row(info, id)
            if row is None:
                return
            if row.last_seq != before.last_seq:
                yield row
        await listening
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _row(info: Info, id: str) -> keyset.Record | None:
    info.context.refresh()
    return await info.context.load.instance.load(id)
