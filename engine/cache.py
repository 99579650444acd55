"""Results of nodes that are used again: equal work is done once while its result lives.

Equal is what has the same type and version of its handler, the same resolved parameters and the same input (or the
same ``cache.key``), in the same project. While one of them runs, the others of this process wait for it; what failed
is never kept, and the next one tries for itself.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from db.session import Database
from db.store import results as store
from db.store.results import Result
from engine import clock
from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.calls import Done, Outcome
from flow.errors import StorageUnavailable

log = structlog.get_logger(__name__)

_encoder = msgspec.json.Encoder(order="sorted")


def key(node_type: str, version: str, parameters: Any, input: Any) -> str:
    """The SHA-256 of everything that the output depends on; the order of keys in objects makes no difference."""
    return hashlib.sha256(_encoder.encode([node_type, version, parameters, input])).hexdigest()


def key_by(node_type: str, version: str, chosen: Any) -> str:
    """The same for a node that says itself what tells its results apart."""
    return hashlib.sha256(_encoder.encode([node_type, version, chosen])).hexdigest()


class ResultCache:
    """The results of every project, each only for its own."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts
        self._under_way: dict[tuple[str, str], asyncio.Future[Done | None]] = {}

    async def outcome(
        self, project_id: str, key: str, ttl: timedelta, instance_id: str, make: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        """The result that is there (``Done.cached``), or what ``make`` gives, kept for ``ttl`` if it is a result.

        Where the database can't be asked, the work is simply done.
        """
        place = project_id, key
        while (other := self._under_way.get(place)) is not None:
            done = await asyncio.shield(other)
            if done is not None:
                return self._again(done)
        mine = self._under_way[place] = asyncio.get_running_loop().create_future()
        done = None
        try:
            kept = await self._kept(project_id, key)
            if kept is not None:
                done = Done(kept.output, artifact=kept.artifact)
                return self._again(done)
            outcome = await make()
            if isinstance(outcome, Done):
                done = outcome
                await self._keep(project_id, key, done, instance_id, ttl)
            return outcome
        finally:
            del self._under_way[place]
            mine.set_result(done)

    def _again(self, done: Done) -> Done:
        """Another node's result as this one's: its large output gets a row of its own."""
        artifact = done.artifact
        if artifact is not None:
            artifact = msgspec.structs.replace(artifact, id=clock.new_id("art"))
        return Done(done.output, artifact=artifact, cached=True)

    async def _kept(self, project_id: str, key: str) -> Result | None:
        try:
            found = await self._database.read(store.result, project_id, key, clock.now())
        except StorageUnavailable as error:
            log.warning("cache.unread", error=error.message)
            return None
        if found is None or found.artifact is None:
            return found
        try:
            await asyncio.to_thread(self._artifacts.read_json, found.artifact)
        except (ArtifactMissing, OSError):
            return None
        return found

    async def _keep(self, project_id: str, key: str, done: Done, instance_id: str, ttl: timedelta) -> None:
        now = clock.now()
        output = None if done.artifact is not None else done.output
        try:
            expires_at = now + ttl
            found = Result(output, done.artifact)
            await self._database.write(store.keep, project_id, key, found, instance_id, now, expires_at)
        except OverflowError:
            return
        except StorageUnavailable as error:
            log.warning("cache.unwritten", error=error.message)
