"""What is read for many objects at once: each loader gathers the keys of one turn and asks the database once.

Loaders live as long as one operation (for subscriptions: one item), so nothing they remember can be stale.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from strawberry.dataloader import DataLoader

from db.store import keyset, lists
from db.store import servers as servers_store
from db.store import tasks as tasks_store
from engine import clock
from engine.engine import Engine
from engine.lru import LRU
from flow import events as e
from flow.definition import Definition
from flow.graph import Graph, prepare
from flow.servers import Load

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Bounds the parameters of one statement.
BATCH = 500

#: The past of a version's nodes is taken from so many runs at most, and from so many nodes of them all together.
PAST_RUNS, PAST_NODES = 50, 20_000
PAST_KEPT, PAST_KEPT_S = 500, 60.0
#: Versions never change, so what was read of them once holds.
GRAPHS_KEPT = 100
_graphs: WeakKeyDictionary[Engine, LRU[str, Graph]] = WeakKeyDictionary()
_past: WeakKeyDictionary[Engine, LRU[str, tuple[float, dict[str, float]]]] = WeakKeyDictionary()


class Part(NamedTuple):
    """A page of what belongs to one parent."""

    parent: str
    where: keyset.Filter
    slice: keyset.Slice


class Counted(NamedTuple):
    """How much belongs to one parent."""

    parent: str
    where: keyset.Filter


class Events(NamedTuple):
    """Some events of one instance."""

    instance_id: str
    after: int
    limit: int
    type: str | None = None
    path: str | None = None


class Loaders:
    """One operation's loaders on one project."""

    def __init__(self, engine: Engine, project_id: str) -> None:
        self.engine = engine
        self.project_id = project_id

    @cached_property
    def workflow(self) -> DataLoader[str, keyset.Record | None]:
        """A workflow's row by id."""
        return self._by_id(lists.workflows)

    @cached_property
    def version(self) -> DataLoader[str, keyset.Record | None]:
        """A version's row by id, without the definition."""
        return self._by_id(lists.versions)

    @cached_property
    def document(self) -> DataLoader[str, dict[str, Any] | None]:
        """A version's definition as it is stored."""
        return self._by_id(lists.definitions)

    @cached_property
    def instance(self) -> DataLoader[str, keyset.Record | None]:
        """An instance's row by id."""
        return self._by_id(lists.instances)

    @cached_property
    def server(self) -> DataLoader[str, keyset.Record | None]:
        """A server's row by id."""
        return self._by_id(servers_store.servers)

    @cached_property
    def server_load(self) -> DataLoader[str, Load]:
        """What a server works on. The caller has made sure that the server is the project's."""

        async def fetch(ids: list[str]) -> Sequence[Load]:
            found = await self.engine.database.read(servers_store.loads, ids)
            return [found[id] for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def task(self) -> DataLoader[str, keyset.Record | None]:
        """A task's row by id."""
        return self._by_id(tasks_store.tasks)

    @cached_property
    def execution(self) -> DataLoader[str, keyset.Record | None]:
        """The row of a task's execution by id."""
        return self._by_id(tasks_store.executions)

    @cached_property
    def item(self) -> DataLoader[str, keyset.Record | None]:
        """The row of a task's item by id."""
        return self._by_id(tasks_store.items)

    @cached_property
    def created(self) -> DataLoader[str, e.InstanceCreated | None]:
        """An instance's first event: what it was started with."""

        async def fetch(ids: list[str]) -> Sequence[e.InstanceCreated | None]:
            found = await self.engine.database.read(lists.events, ids, 0, 1)
            firsts = [found[id][0].event if found[id] else None for id in ids]
            return [event if isinstance(event, e.InstanceCreated) else None for event in firsts]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def node(self) -> DataLoader[tuple[str, str], keyset.Record | None]:
        """A node execution's row by instance and path. The caller has made sure that the instance is the project's."""

        async def fetch(keys: list[tuple[str, str]]) -> Sequence[keyset.Record | None]:
            found = await self.engine.database.read(lists.nodes, keys)
            return [found.get(key) for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def state(self) -> DataLoader[tuple[str, str], keyset.Record | None]:
        """How a node of an instance stands, by instance and path, without what it gave."""

        async def fetch(keys: list[tuple[str, str]]) -> Sequence[keyset.Record | None]:
            found = await self.engine.database.read(lists.node_states, keys)
            return [found.get(key) for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def outer(self) -> DataLoader[str, keyset.Rows]:
        """How the nodes of an instance stand that have begun, those in loops' bodies left out."""

        async def fetch(ids: list[str]) -> Sequence[keyset.Rows]:
            found = await self.engine.database.read(lists.outer_states, ids)
            return [found[id] for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def newest(self) -> DataLoader[tuple[str, str], e.Recorded | None]:
        """An instance's newest event of a type."""

        async def fetch(keys: list[tuple[str, str]]) -> Sequence[e.Recorded | None]:
            groups: defaultdict[str, list[str]] = defaultdict(list)
            for instance_id, type in keys:
                groups[type].append(instance_id)
            found: dict[tuple[str, str], e.Recorded] = {}
            for type, ids in groups.items():
                answer = await self.engine.database.read(lists.newest, ids, [type])
                found |= {(id, type): recorded for id, recorded in answer.items()}
            return [found.get(key) for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)

    async def past(self, version_id: str) -> Mapping[str, float]:
        """How many seconds each node of the version took lately, by its median; up to a minute old."""
        known = _past.setdefault(self.engine, LRU(PAST_KEPT))
        now = clock.now().timestamp()
        kept = known.get(version_id)
        if kept is not None and now - kept[0] < PAST_KEPT_S:
            return kept[1]
        graph = await self.graph.load(version_id)
        size = len(graph.nodes) if graph is not None else 1
        runs = max(3, min(PAST_RUNS, PAST_NODES // max(1, size)))
        found = await self.engine.database.read(lists.durations, version_id, runs)
        medians = {id: statistics.median(seconds) for id, seconds in found.items()}
        known[version_id] = (now, medians)
        return medians

    @cached_property
    def outcomes(self) -> DataLoader[str, keyset.Rows]:
        """What every node of an instance came to."""

        async def fetch(ids: list[str]) -> Sequence[keyset.Rows]:
            found = await self.engine.database.read(lists.outputs, ids)
            return [found[id] for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def node_counts(self) -> DataLoader[str, dict[str, int]]:
        """How many nodes of an instance are in each status."""

        async def fetch(ids: list[str]) -> Sequence[dict[str, int]]:
            found = await self.engine.database.read(lists.node_counts, ids)
            return [found[id] for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def versions_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of a workflow's versions."""
        return self._pages(lists.VERSIONS)

    @cached_property
    def version_count(self) -> DataLoader[Counted, int]:
        """How many versions a workflow has."""
        return self._counts(lists.VERSIONS)

    @cached_property
    def instances_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of a workflow's instances."""
        return self._pages(lists.INSTANCES)

    @cached_property
    def instance_count(self) -> DataLoader[Counted, int]:
        """How many instances a workflow has."""
        return self._counts(lists.INSTANCES)

    @cached_property
    def children_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of an instance's children."""
        return self._pages(lists.CHILDREN)

    @cached_property
    def child_count(self) -> DataLoader[Counted, int]:
        """How many children an instance has."""
        return self._counts(lists.CHILDREN)

    @cached_property
    def nodes_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of an instance's node executions."""
        return self._pages(lists.NODES)

    @cached_property
    def node_count(self) -> DataLoader[Counted, int]:
        """How many node executions an instance has."""
        return self._counts(lists.NODES)

    @cached_property
    def checks_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of a server's health checks."""
        return self._pages(servers_store.CHECKS)

    @cached_property
    def check_count(self) -> DataLoader[Counted, int]:
        """How many health checks of a server are kept."""
        return self._counts(servers_store.CHECKS)

    @cached_property
    def executions_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of a task's executions."""
        return self._pages(tasks_store.EXECUTIONS)

    @cached_property
    def execution_count(self) -> DataLoader[Counted, int]:
        """How many executions a task has."""
        return self._counts(tasks_store.EXECUTIONS)

    @cached_property
    def items_of(self) -> DataLoader[Part, keyset.Page]:
        """A page of a task's items."""
        return self._pages(tasks_store.ITEMS)

    @cached_property
    def item_count(self) -> DataLoader[Counted, int]:
        """How many items a task has."""
        return self._counts(tasks_store.ITEMS)

    @cached_property
    def events(self) -> DataLoader[Events, list[e.Recorded]]:
        """Some events of an instance."""

        async def fetch(keys: list[Events]) -> Sequence[list[e.Recorded]]:
            groups: defaultdict[tuple[int, int, str | None, str | None], list[str]] = defaultdict(list)
            for instance_id, after, limit, type, path in keys:
                groups[after, limit, type, path].append(instance_id)
            found: dict[Events, list[e.Recorded]] = {}
            for (after, limit, type, path), ids in groups.items():
                answer = await self.engine.database.read(lists.events, ids, after, limit, type=type, path=path)
                found |= {Events(id, after, limit, type, path): rows for id, rows in answer.items()}
            return [found[key] for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)

    @cached_property
    def graph(self) -> DataLoader[str, Graph | None]:
        """A version's definition, prepared; None for a draft whose problems keep it from being one."""

        async def fetch(ids: list[str]) -> Sequence[Graph | None]:
            known = _graphs.setdefault(self.engine, LRU(GRAPHS_KEPT))
            versions = await self.version.load_many(ids)  # also says whether it is the project's
            found = {id: known.get(id) for id, version in zip(ids, versions, strict=True) if version is not None}
            missing = [id for id, graph in found.items() if graph is None]
            rows = {version.id: version for version in versions if version is not None}
            for id, document in zip(missing, await self.document.load_many(missing), strict=True):
                if (graph := _graph(rows[id], document)) is not None:
                    found[id] = known[id] = graph
            return [found.get(id) for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    def _by_id(self, query: Callable[[Any, str, Sequence[str]], Mapping[str, V]]) -> DataLoader[str, V | None]:
        async def fetch(ids: list[str]) -> Sequence[V | None]:
            found = await self.engine.database.read(query, self.project_id, ids)
            return [found.get(id) for id in ids]

        return DataLoader(fetch, max_batch_size=BATCH)

    def _pages(self, listing: keyset.Listing) -> DataLoader[Part, keyset.Page]:
        async def fetch(keys: list[Part]) -> Sequence[keyset.Page]:
            groups: defaultdict[tuple[keyset.Filter, keyset.Slice], list[str]] = defaultdict(list)
            for parent, where, part in keys:
                groups[where, part].append(parent)
            found: dict[Part, keyset.Page] = {}
            for (where, part), parents in groups.items():
                answer = await self.engine.database.read(keyset.pages, listing, parents, where, part)
                found |= {Part(parent, where, part): page for parent, page in answer.items()}
            return [found[key] for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)

    def _counts(self, listing: keyset.Listing) -> DataLoader[Counted, int]:
        async def fetch(keys: list[Counted]) -> Sequence[int]:
            groups: defaultdict[keyset.Filter, list[str]] = defaultdict(list)
            for parent, where in keys:
                groups[where].append(parent)
            found: dict[Counted, int] = {}
            for where, parents in groups.items():
                answer = await self.engine.database.read(keyset.counts, listing, parents, where)
                found |= {Counted(parent, where): number for parent, number in answer.items()}
            return [found[key] for key in keys]

        return DataLoader(fetch, max_batch_size=BATCH)


def _graph(version: keyset.Record | None, document: dict[str, Any] | None) -> Graph | None:
    if version is None or document is None or version.problems:
        return None
    # It was checked when it was stored, in its canonical form: nothing but types is to be read.
    return prepare(msgspec.convert(document, Definition))


async def artifact_json(engine: Engine, artifact: Mapping[str, Any]) -> Any:
    """The value that was too large to be stored inline. Raises engine.artifacts.ArtifactMissing."""
    return await asyncio.to_thread(engine.artifacts.read_json, artifact)
