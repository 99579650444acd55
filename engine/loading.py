"""What a drive begins with: the version's graph, the instance's history and its letters, with their large values."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from db.session import Database
from db.store import instances as store
from db.store import leases
from db.store.instances import Letter
from db.store.leases import Claim
from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.definitions import PinnedVersion
from engine.lru import LRU
from engine.nodes.registry import Registry
from engine.places import Places
from flow import events as e
from flow import placing
from flow.definition import Node
from flow.errors import Category, Failure
from flow.planner import Graph, Names, Run, prepare
from flow.states import InstanceStatus

GRAPHS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version as it is run: its graph, and the names that templates see."""

    graph: Graph
    workflow_id: str
    workflow_name: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a claim needs to go on: the histories of the claimed instances, and their letters."""

    claims: list[Claim]
    histories: dict[str, list[e.Recorded]]
    letters: dict[str, list[Letter]]


def claim_and_read(connection: Connection, worker: str, ids: Sequence[str], lease_s: float, suspects: bool) -> Found:
    """Claim and read in one transaction: on another host's database each of them would be a round trip or three."""
    return read_claimed(connection, leases.claim(connection, worker, ids, lease_s, suspects=suspects))


def read_claimed(connection: Connection, claims: Sequence[Claim]) -> Found:
    """What has been claimed, to be driven."""
    ids = [claim.instance_id for claim in claims]
    if not ids:
        return Found([], {}, {})
    return Found(list(claims), store.histories(connection, ids), store.inbox(connection, ids))


class Loader:
    """``version`` gives a version by its id. Every method raises StorageUnavailable, and ArtifactMissing if a large
    value is gone.
    """

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        registry: Registry,
        places: Places,
        version: Callable[[str], Awaitable[PinnedVersion]],
        labels: frozenset[str],
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._registry = registry
        self._places = places
        self._version = version
        self._labels = labels
        self._graphs: LRU[str, Prepared] = LRU(GRAPHS_KEPT)

    async def letters(self, instance_id: str) -> list[Letter]:
        """What lies in the instance's inbox."""
        found = (await self._database.read(store.inbox, [instance_id])).get(instance_id, [])
        return await self.with_their_values(found)

    async def with_their_values(self, letters: Sequence[Letter]) -> list[Letter]:
        """The letters with the values that are in the artifact store.

        A value that isn't there is the failure of the node that should have made it: the run must be able to go on.
        """
        return [Letter(letter.id, await self._arrived(letter.event)) for letter in letters]

    async def _arrived(self, event: e.AnyEvent) -> e.AnyEvent:
        match event:
            case e.NodeCompleted(artifact=e.Artifact() as artifact) | e.ChildEnded(artifact=e.Artifact() as artifact):
                try:
                    value = await asyncio.to_thread(self._artifacts.read_json, artifact)
                except (ArtifactMissing, msgspec.DecodeError) as error:
                    message = f"The output can't be read here ({error}). All workers must share the artifacts' folder."
                    return _without_output(event, Failure("ARTIFACT_MISSING", Category.RESOURCE, message))
                return msgspec.structs.replace(event, output=value)
            case _:
                return event

    async def with_large_values(self, events: list[e.Recorded]) -> list[e.Recorded]:
        """The events with the values that are in the artifact store."""
        large = [i for i, recorded in enumerate(events) if getattr(recorded.event, "artifact", None) is not None]
        for i in large:
            event: Any = events[i].event
            value = await asyncio.to_thread(self._artifacts.read_json, event.artifact)
            events[i] = msgspec.structs.replace(events[i], event=msgspec.structs.replace(event, output=value))
        return events

    async def replayed(self, claim: Claim) -> Run:
        """The claimed instance as its stored events say it is."""
        histories = await self._database.read(store.histories, [claim.instance_id])
        return await self.run(claim, histories[claim.instance_id])

    async def run(self, claim: Claim, events: list[e.Recorded]) -> Run:
        """The claimed instance as these events say it is."""
        prepared = await self.prepared(claim.version_id)
        called = Names(claim.instance_id, prepared.workflow_name, claim.project_id)
        return Run(prepared.graph, await self.with_large_values(events), called)

    async def prepared(self, version_id: str) -> Prepared:
        """The version, ready to be run; kept for the next instance of it."""
        prepared = self._graphs.get(version_id)
        if prepared is None:
            pinned = await self._version(version_id)
            graph = prepare(pinned.definition, self._lane)
            prepared = Prepared(graph, pinned.workflow_id, pinned.workflow_name)
            self._graphs[version_id] = prepared
        return prepared

    def _lane(self, node: Node) -> str:
        """The lane of a node as its graph has it: its own here, or that of the nodes which are offered."""
        return self.lane(node) if placing.stays(node, self._labels, self.gpus(node)) else placing.OFFERED

    def lane(self, node: Node) -> str:
        """The kind of place that the node needs, wherever it runs."""
        kind = self._registry.get(node.type)
        return str(kind.placement) if kind is not None else next(iter(self._places.slots))

    def gpus(self, node: Node) -> int:
        """How many graphics cards the node needs."""
        kind = self._registry.get(node.type)
        return placing.gpus(node, kind.resources.gpu if kind is not None and kind.resources is not None else None)


def _without_output(event: e.NodeCompleted | e.ChildEnded, missing: Failure) -> e.AnyEvent:
    if isinstance(event, e.NodeCompleted):
        return e.NodeFailed(event.path, event.attempt, missing)
    return e.ChildEnded(event.path, event.instance_id, InstanceStatus.FAILED.value, error=missing)
