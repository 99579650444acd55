"""Which runs may begin, where a limit keeps some of them waiting.

Three limits hold for a run: its workflow's ``concurrency`` (so many with an equal key), the workflow's and the
project's ``max_running``. A run that a limit may concern is created with a *gate*: nobody claims it until the gate is
taken away, here, under the project's row, so that the limits hold for any number of processes. A run takes its place
when its gate goes, and keeps it until it has ended, also while it waits or is paused.

Who is next: the key with the fewest runs under way, and of equal keys (or within one) the run of the best rank, which
is its priority, aged as in ``engine.queue``. So one key with a thousand runs does not keep out another with one.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, and_, func, select, update
from sqlalchemy.ext.compiler import compiles

from db.models import Instance, Project, Workflow
from db.store import bulk, changes
from db.store.dbclock import db_now, db_now_once
from flow.errors import NotFound

#: One step of priority is worth as much as having waited this long.
AGEING_S = 10.0
#: So many runs of one key are let in at once; the next come with the next end of a run.
BATCH = 200

_WAITING = "SELECT 1 FROM instances WHERE project_id = $1 AND gate IS NOT NULL LIMIT 1"

Group = tuple[str, str | None]  # workflow, concurrency key


class Gate(StrEnum):
    """Which limit keeps a run waiting."""

    KEY = "KEY"
    WORKFLOW = "WORKFLOW"
    PROJECT = "PROJECT"


class rank(ColumnElement[float]):
    """When a run is due in the order of all: its creation, earlier by its priority. The lowest comes first."""

    inherit_cache = False
    _traverse_internals: Any = []  # one like another, so statements with it are compiled once
    type = Float()


@compiles(rank, "sqlite")
def _sqlite(element: rank, compiler: Any, **_: Any) -> str:
    return f"(julianday(instances.created_at) * 86400 - instances.priority * {AGEING_S})"


@compiles(rank, "postgresql")
def _postgresql(element: rank, compiler: Any, **_: Any) -> str:
    return f"(extract(epoch FROM instances.created_at) - instances.priority * {AGEING_S})"


@dataclass(slots=True)
class Admitted:
    """Runs that may begin now, and why the head of each group that waits on does so."""

    ids: list[str] = field(default_factory=list)
    gates: dict[Group, Gate] = field(default_factory=dict)


def waiting(connection: Connection, project_ids: Sequence[str]) -> list[str]:
    """Those of the projects in which a run waits at a gate."""
    return [id for id in project_ids if bulk.execute(connection, _WAITING, (id,))]


def any_gated(connection: Connection) -> bool:
    """Whether a run waits at a gate anywhere."""
    return connection.execute(select(Instance.id).where(Instance.gate.is_not(None)).limit(1)).first() is not None


def admit_due(connection: Connection) -> list[str]:
    """Let in everywhere whoever may begin: after a limit was raised, or a deadline has passed at a gate."""
    past = and_(Instance.gate.is_not(None), Instance.due_at.is_not(None), Instance.due_at <= db_now_once())
    late = update(Instance).where(past).values(gate=None).returning(Instance.id)
    ids = list(connection.execute(late, execution_options={"synchronize_session": False}).scalars())
    query = select(Instance.project_id).where(Instance.gate.is_not(None)).distinct()
    projects = sorted(connection.execute(query).scalars())
    changes.hold(connection, projects)
    for project_id in projects:
        ids += admit(connection, project_id).ids
    return ids


def admit(connection: Connection, project_id: str) -> Admitted:
    """Let in whoever may begin in the project. The caller holds the project's row (``changes.hold`` or ``take``)."""
    i = Instance
    heads = _heads(connection, project_id)
    if not heads:
        return Admitted()
    running = _running(connection, project_id)
    by_workflow: defaultdict[str, int] = defaultdict(int)
    for (workflow_id, _), number in running.items():
        by_workflow[workflow_id] += number
    project_room = _room(connection, select(Project.id, Project.max_running).where(Project.id == project_id))
    concerned = Workflow.id.in_({workflow_id for workflow_id, _ in heads})
    limits = _room(connection, select(Workflow.id, Workflow.max_running).where(concerned))
    free = project_room[project_id] - sum(by_workflow.values())
    rooms = {id: limit - by_workflow[id] for id, limit in limits.items()}

    admitted = Admitted()
    queue = [(running.get(group, 0), found[0][2], found[0][0], group) for group, found in heads.items()]
    heapq.heapify(queue)
    while queue:
        number, _, _, group = heapq.heappop(queue)
        id, limit, _ = heads[group][0]
        if limit is not None and number >= limit:
            admitted.gates[group] = Gate.KEY
        elif rooms[group[0]] <= 0:
            admitted.gates[group] = Gate.WORKFLOW
        elif free <= 0:
            admitted.gates[group] = Gate.PROJECT
        else:
            admitted.ids.append(id)
            free -= 1
            rooms[group[0]] -= 1
            heads[group].pop(0)
            if heads[group]:
                heapq.heappush(queue, (number + 1, heads[group][0][2], heads[group][0][0], group))
    if admitted.ids:
        let_in = update(i).where(i.id.in_(admitted.ids)).values(gate=None, due_at=db_now())
        connection.execute(let_in, execution_options={"synchronize_session": False})
    return admitted


def limit(connection: Connection, project_id: str, workflow_id: str | None, max_running: int | None) -> list[str]:
    """Set the limit of the workflow, or of the project; who may begin by the new one. Raises NotFound."""
    changes.hold(connection, [project_id])
    statement = (
        update(Project).where(Project.id == project_id)
        if workflow_id is None
        else update(Workflow).where(Workflow.project_id == project_id, Workflow.id == workflow_id)
    )
    options = {"synchronize_session": False}
    if connection.execute(statement.values(max_running=max_running), execution_options=options).rowcount == 0:
        raise NotFound("project", project_id) if workflow_id is None else NotFound("workflow", workflow_id)
    return admit(connection, project_id).ids


def others(connection: Connection, project_id: str, group: Group) -> list[str]:
    """The open runs of the group, those that wait at its gate too, oldest first."""
    query = select(Instance.id).where(_in(project_id, group)).order_by(Instance.created_at, Instance.id)
    return list(connection.execute(query).scalars())


def _in(project_id: str, group: Group) -> ColumnElement[bool]:
    workflow_id, key = group
    same_key = Instance.concurrency_key.is_(None) if key is None else Instance.concurrency_key == key
    return and_(
        Instance.project_id == project_id,
        Instance.workflow_id == workflow_id,
        same_key,
        Instance.completed_at.is_(None),
    )


def _running(connection: Connection, project_id: str) -> dict[Group, int]:
    query = (
        select(Instance.workflow_id, Instance.concurrency_key, func.count())
        .where(Instance.project_id == project_id, Instance.completed_at.is_(None), Instance.gate.is_(None))
        .group_by(Instance.workflow_id, Instance.concurrency_key)
    )
    return {(workflow_id, key): int(number) for workflow_id, key, number in connection.execute(query)}


def _heads(connection: Connection, project_id: str) -> dict[Group, list[tuple[str, int | None, float]]]:
    """By group, those who wait: id, limit and rank, the best rank first."""
    i = Instance
    place = func.row_number().over(partition_by=[i.workflow_id, i.concurrency_key], order_by=[rank(), i.id])
    inner = (
        select(i.id, i.workflow_id, i.concurrency_key, i.concurrency_limit, rank().label("rank"), place.label("place"))
        .where(i.project_id == project_id, i.completed_at.is_(None), i.gate.is_not(None))
        .subquery()
    )
    found: defaultdict[Group, list[tuple[str, int | None, float]]] = defaultdict(list)
    for row in connection.execute(select(inner).where(inner.c.place <= BATCH).order_by(inner.c.place)):
        found[row.workflow_id, row.concurrency_key].append((row.id, row.concurrency_limit, float(row.rank)))
    return found


def _room(connection: Connection, query: Any) -> dict[str, float]:
    return {id: float("inf") if limit is None else limit for id, limit in connection.execute(query)}
