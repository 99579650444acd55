"""What a drive has decided since its last commit, on its way to be one append of the journal."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import msgspec
import structlog

from db.store import journal as store
from db.store.leases import Claim
from engine import clock
from engine.artifacts import ArtifactStore
from engine.attempts import Attempt
from engine.children import farewell
from engine.output import MAX_INLINE
from flow import events as e
from flow.events import Artifact
from flow.history import NodeState
from flow.planner import Run

#: How soon a large output is put again when that could not be done.
STORE_AGAIN_S = 1.0

log = structlog.get_logger(__name__)


class Draft:
    """Add to its lists, ``record`` events, and have ``finish`` make the append of all of it, which empties it again."""

    def __init__(self, artifacts: ArtifactStore, worker: str, claim: Claim, run: Run) -> None:
        self._store = artifacts
        self._worker = worker
        self._claim = claim
        self._run = run
        self._touched: dict[str, NodeState] = {}
        #: Events (by number) whose output is too large to be in them.
        self._large: set[int] = set()
        self._empty()

    def _empty(self) -> None:
        self.events: list[e.Recorded] = []
        #: Letters of the inbox that are dealt with.
        self.consumed: list[int] = []
        self.artifacts: list[store.NewArtifact] = []
        self.children: list[store.Create] = []
        #: Children whose node was cancelled.
        self.left: list[str] = []
        #: Attempts that other workers may make, with their lane and GPUs; and those (paths) not wanted any more.
        self.offers: list[tuple[Attempt, str, int]] = []
        self.revoked: list[str] = []
        self._touched = {}
        self._large = set()

    def record(self, event: e.AnyEvent, *, large: bool = False) -> None:
        """Make the event history, as far as this process knows; the append makes it so for everybody.

        ``large``: its output belongs in the artifact store. That of a run's end is measured here.
        """
        recorded = e.Recorded(self._run.snapshot.last_seq + 1, clock.now(), event)
        self._touched.update(self._run.apply(recorded))
        self.events.append(recorded)
        if isinstance(event, e.InstanceCompleted) and event.artifact is None:
            large = len(msgspec.json.encode(event.output)) > MAX_INLINE
        if large:
            self._large.add(recorded.seq)

    async def finish(self, *, release: bool, due_at: datetime | None, progress: bool) -> store.Append:
        """All of it as one append, with large values put into the artifact store."""
        if self._large:
            await self._store_large_outputs()
        offers = [await self._offered(*offer) for offer in self.offers]
        id, snapshot, run = self._claim.instance_id, self._run.snapshot, self._run
        append = store.Append(
            instance_id=id,
            project_id=self._claim.project_id,
            worker=self._worker,
            fence=self._claim.fence,
            base_seq=snapshot.last_seq - len(self.events),
            events=[without_large_values(event) for event in self.events],
            instance=store.instance_row(id, self._claim.project_id, snapshot),
            nodes=[store.node_row(id, path, run.node(path).type, state) for path, state in self._touched.items()],
            artifacts=self.artifacts,
            consumed=self.consumed,
            release=release,
            due_at=due_at,
            progress=progress,
            children=self.children,
            left=self.left,
            letters=farewell(id, snapshot),
            offers=offers,
            revoked=self.revoked,
        )
        self._empty()
        return append

    async def _offered(self, made: Attempt, lane: str, gpus: int) -> store.Offer:
        """The attempt as it is stored for other workers; a large input goes to the artifact store."""
        call, artifact = made.call, None
        if len(msgspec.json.encode(call.input)) > MAX_INLINE:
            artifact = await self._put(call.input)
            made = msgspec.structs.replace(made, call=msgspec.structs.replace(call, input=None))
        return store.Offer(
            id=clock.new_id("att"),
            path=call.path,
            attempt=call.attempt,
            lane=lane,
            labels=self._run.node(call.path).runs_on,
            gpus=gpus,
            priority=self._claim.priority,
            call=msgspec.to_builtins(made),
            artifact=artifact,
        )

    async def _store_large_outputs(self) -> None:
        """What is too large for an event goes to the artifact store: a run's output, or that of a control node."""
        for place, recorded in enumerate(self.events):
            event = recorded.event
            if recorded.seq not in self._large or not isinstance(event, e.NodeCompleted | e.InstanceCompleted):
                continue
            artifact = await self._put(event.output)
            self.artifacts.append(store.NewArtifact(artifact, clock.now()))
            if isinstance(event, e.NodeCompleted):
                self._touched[event.path].artifact = artifact
            else:
                self._run.snapshot.artifact = artifact
            self.events[place] = msgspec.structs.replace(
                recorded, event=msgspec.structs.replace(event, artifact=artifact)
            )

    async def _put(self, value: Any) -> Artifact:
        """Put the value into the artifact store, however long that has no room: the work it came from is done."""
        while True:
            try:
                return await asyncio.to_thread(self._store.put_json, value)
            except OSError as error:
                log.warning("drive.output_unstored", instance=self._claim.instance_id, error=str(error))
                await asyncio.sleep(STORE_AGAIN_S)


def without_large_values(recorded: e.Recorded) -> e.Recorded:
    """The event as it is stored: a value that is in the artifact store is not repeated in it."""
    event = recorded.event
    if isinstance(event, e.NodeCompleted | e.InstanceCompleted | e.ChildEnded) and event.artifact is not None:
        return msgspec.structs.replace(recorded, event=msgspec.structs.replace(event, output=None))
    return recorded
