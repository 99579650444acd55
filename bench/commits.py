"""C1: how many commits a second one project's row takes, and whether anything else is shared.

The journal's own transaction (``db.store.journal.commit``) is run by several writers at once, each with a connection
and instances of its own: all in one project, or each in a project of its own. Where each transaction is held open for
20 ms more, as by a far database or a slow disk, the processors have nothing to do but wait: what is lost there is lost
to locks, however few processors there are.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from bench.report import line
from bench.stands import DURABLE
from db import migrate
from db.session import Database, connect
from db.store import access
from db.store import workflows as workflows_store
from db.store.entries import CHANGING, FIXED, Append, Create, instance_row, node_row
from db.store.journal import commit
from db.store.workflows import StoredVersion, StoredWorkflow
from flow import events as e
from flow.history import replay
from tests.postgres import Postgres

WRITERS = (1, 2, 4)
SIZES = (1, 50, 400)
SECONDS = 3.0
AT = datetime(2026, 11, 21, 8, 0, 0, 0, UTC)
LAST_SEQ = len(FIXED) + CHANGING.index("last_seq")


async def project_rows() -> None:
    """Groups and events a second, by writers, projects, size of a group, and how long its transaction is held."""
    postgres = Postgres(DURABLE)
    try:
        for held_s, size, writers in itertools.product((0.0, 0.02), SIZES, WRITERS):
            for projects in sorted({1, writers}):
                url = postgres.create()
                await asyncio.to_thread(migrate.upgrade, url)
                rate = await _rate(url, writers, projects, size, held_s)
                held = f", held {held_s * 1000:g} ms" if held_s else ""
                variant = f"{writers} writers, {projects} projects, groups of {size}{held}"
                line("C1", variant, [rate], "groups/s", events_per_s=round(rate * size * 2))
                postgres.drop(url)
    finally:
        postgres.close()


async def _rate(url: str, writers: int, projects: int, size: int, held_s: float) -> float:
    async with _databases(url, writers) as databases:
        lanes = [_Lane(f"proj-{n % projects}", f"{n}", size, held_s) for n in range(writers)]
        for database, lane in zip(databases, lanes, strict=True):
            await database.write(lane.prepare)
            await database.write(lane.commit)
        began = time.perf_counter()
        counts = await asyncio.gather(
            *(_until(database, lane, began + SECONDS) for database, lane in zip(databases, lanes, strict=True))
        )
        return sum(counts) / (time.perf_counter() - began)


async def _until(database: Database, lane: _Lane, end: float) -> int:
    done = 0
    while time.perf_counter() < end:
        await database.write(lane.commit)
        done += 1
    return done


@asynccontextmanager
async def _databases(url: str, count: int) -> AsyncGenerator[Sequence[Database], None]:
    databases = [connect(url) for _ in range(count)]
    try:
        yield databases
    finally:
        for database in databases:
            await database.close()


class _Lane:
    """One writer's instances, and the groups that it writes: a node starts and completes in each of them."""

    def __init__(self, project: str, name: str, size: int, held_s: float) -> None:
        self.project = project
        self._held_s = held_s
        self._creates = [
            Create(
                f"inst-{name}-{n}",
                project,
                e.Recorded(1, AT, e.InstanceCreated(workflow_id=f"wf-{project}", version_id=f"wfv-{project}")),
                worker="bench",
            )
            for n in range(size)
        ]
        self._turn = 0
        self._events: list[e.AnyEvent] = [
            e.NodeStarted(path="a", attempt=1, worker="bench"),
            e.NodeCompleted(path="a", attempt=1, output={}),
        ]
        self._made = []
        for create in self._creates:
            recorded = (create.created, *(e.Recorded(seq, AT, event) for seq, event in enumerate(self._events, 2)))
            snapshot = replay(recorded)
            row = instance_row(create.instance_id, project, snapshot)
            self._made.append(
                (create.instance_id, row, node_row(create.instance_id, "a", "core/noop", snapshot.nodes["a"]))
            )

    def prepare(self, connection: Connection) -> None:
        """The project, its workflow and the instances."""
        project = self.project
        access.ensure_project(connection, project, project, AT)
        if workflows_store.workflow(connection, project, f"wf-{project}") is None:
            workflows_store.insert_workflow(connection, _workflow(project))
            workflows_store.insert_version(connection, _version(project))
        commit(connection, self._creates)

    def commit(self, connection: Connection) -> None:
        """Write the next group."""
        commit(connection, self._next())
        if self._held_s:
            connection.execute(text("SELECT pg_sleep(:s)"), {"s": self._held_s})

    def _next(self) -> list[Append]:
        base = 1 + 2 * self._turn
        self._turn += 1
        return [
            Append(
                id,
                self.project,
                worker="bench",
                fence=1,
                base_seq=base,
                events=[e.Recorded(base + n, AT, event) for n, event in enumerate(self._events, 1)],
                instance=(*row[:LAST_SEQ], base + 2, *row[LAST_SEQ + 1 :]),
                nodes=[node],
            )
            for id, row, node in self._made
        ]


def _workflow(project: str) -> StoredWorkflow:
    return StoredWorkflow(
        id=f"wf-{project}", project_id=project, name="w", display_name=None, description=None, scenario=None,
        status="ACTIVE", tags=(), current_version_id=f"wfv-{project}", change_seq=0, created_at=AT, created_by=None,
        updated_at=AT, updated_by=None,
    )  # fmt: skip


def _version(project: str) -> StoredVersion:
    return StoredVersion(
        id=f"wfv-{project}", workflow_id=f"wf-{project}", project_id=project, number=(1, 0, 0), parent_id=None,
        definition={"name": "w", "nodes": []}, problems=(), label=None, change_note=None, created_at=AT,
        created_by=None,
    )  # fmt: skip
