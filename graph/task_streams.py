"""Tasks as they change.

The bus only says that there is more: what is told is read from SQL, so that an overflow, a lost message or a slow
reader costs nothing but the states in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import strawberry
from strawberry import argument

from db.store import keyset, lists
from db.store import tasks as store
from engine.access import Permission
from engine.bus import Subscription
from flow import errors
from flow.tasks import TaskStatus
from graph.paging import refuse, where
from graph.permissions import Info, caller, subscription
from graph.scalars import BigInt
from graph.tasks import Task, TaskWhere, task

#: Changes are told at most ten times a second; what happens in between is one change.
COALESCE_S = 0.1
LARGEST_WINDOW = 100
#: Behind every id, in the order of keys.
_LAST = "~"

filter_of = where


@strawberry.type
class TaskSubscription:
    """What becomes of tasks."""

    @subscription(
        Permission.TASK_READ,
        "A task now, and again whenever it changed (at most ten times a second); completes when it has ended.",
    )
    async def task_updated(
        self, info: Info, id: Annotated[strawberry.ID, argument(description="The task's id.")]
    ) -> AsyncIterator[Task]:
        """The object itself."""
        actor = caller(info)
        with info.context.engine.bus.subscribe(id) as changes:
            row = await _row(info, id)
            if row is None:
                raise errors.NotFound("task", id)
            yield task(row, actor)
            while not TaskStatus(row.status).terminal:
                await _more(changes)
                before, row = row, await _row(info, id)
                if row is None:  # deleted
                    return
                if row != before:
                    yield task(row, actor)

    @subscription(
        Permission.TASK_READ,
        "The tasks of your project as they change (at most ten times a second each). Resume `after` the highest "
        "`changeSeq` that you have; without it, only what changes from now on is told.",
    )
    async def tasks_updated(
        self,
        info: Info,
        where: Annotated[TaskWhere | None, argument(name="where", description="Only tasks that match.")] = None,
        after: Annotated[BigInt | None, argument(description="Resume after this `changeSeq`.")] = None,
    ) -> AsyncIterator[Task]:
        """Windows of the project's order of changes."""
        actor, db = caller(info), info.context.engine.database
        wanted = filter_of(where)
        if after is not None and after < 0:
            raise refuse("BAD_CURSOR", "`after` is a `changeSeq` that you were given, or 0 for the beginning.", "after")
        with info.context.engine.bus.subscribe(f"tasks:{actor.project_id}") as changes:
            seen = after if after is not None else await db.read(lists.latest_change, actor.project_id)
            while True:
                asked = keyset.Slice("CHANGED", limit=LARGEST_WINDOW, after=(seen, _LAST))
                page = await db.read(keyset.page, store.TASKS, actor.project_id, wanted, asked)
                for row in page.rows:
                    info.context.refresh()
                    yield task(row, actor)
                    seen = row.change_seq
                if not page.more:
                    await _more(changes)


async def _more(changes: Subscription) -> None:
    """Wait until there is something, and a little longer: what happens until then is one change with it."""
    await changes.take()
    changes.overflowed = False
    await asyncio.sleep(COALESCE_S)


async def _row(info: Info, id: str) -> keyset.Record | None:
    info.context.refresh()
    return await info.context.load.task.load(id)
