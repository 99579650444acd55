"""This engine as a server: work is an instance, its id the idempotency key, its events what is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

from db.session import Database
from db.store import lists
from engine import clock
from engine.access import ADMIN_NAME, ADMIN_USER, ROLES, Actor
from engine.artifacts import ArtifactMissing, ArtifactStore
from engine.definitions import PinnedVersion
from engine.files import Files, PathRefused
from engine.instances import Instances
from engine.servers.contract import (
    Checked,
    Done,
    Failed,
    OutputFile,
    Report,
    ServerAddress,
    ServerFailed,
    Work,
    lost,
    refused,
)
from engine.servers.outputs import ended
from engine.streams import Streams
from flow import events as e
from flow.errors import Category, Conflict, NotFound, QuotaExceeded, StorageUnavailable, WorkflowError
from flow.servers import CheckOutcome
from flow.states import InstanceStatus

_CHUNK = 1 << 20


class Local:
    """The client of a server of type ``local``."""

    def __init__(
        self,
        server: ServerAddress,
        *,
        database: Database,
        instances: Instances,
        streams: Streams,
        version: Callable[[str], Awaitable[PinnedVersion]],
        artifacts: ArtifactStore,
        files: Files,
        storage_check: Callable[[], Awaitable[None]],
    ) -> None:
        self._server = server
        self._database = database
        self._instances = instances
        self._streams = streams
        self._version = version
        self._artifacts = artifacts
        self._files = files
        self._storage_check = storage_check

    async def check(self) -> Checked:
        """Whether the database stores: without it nothing runs."""
        began = clock.monotonic()
        try:
            await self._storage_check()
        except StorageUnavailable as error:
            return Checked(CheckOutcome.REFUSED, message=error.message)
        return Checked(CheckOutcome.OK, (clock.monotonic() - began) * 1_000)

    async def submit(self, work: Work) -> str:
        """Start an instance of exactly that version."""
        try:
            started = await self._instances.start(
                _actor(work.project_id, work.created_by),
                workflow_id=work.workflow_id,
                version_id=work.version_id,
                input=work.input,
                trigger=e.Trigger(type="task", payload={"work": work.id}),
                priority=work.priority,
                timeout=work.timeout,
                idempotency_key=work.id,
                parameters=dict(work.parameters),
            )
        except StorageUnavailable as error:
            raise ServerFailed(lost(error.code, error.message)) from None
        except (Conflict, QuotaExceeded) as error:
            category = Category.RATE_LIMIT if error.code in _PATIENCE else Category.VALIDATION
            raise ServerFailed(refused(error.code, error.message, category=category)) from None
        except WorkflowError as error:
            raise ServerFailed(refused(error.code, error.message)) from None
        return started.instance_id

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        """By the instance's events; its row says how it ended."""
        actor = _actor(self._server.project_id)
        while True:
            try:
                row = await self._row(ref)
                if row is None:
                    return lost("WORK_UNKNOWN", f"There is no instance {ref} (any more).", category=Category.INTERNAL)
                if InstanceStatus(row.status).terminal:
                    return await self._ended(row)
                await self._watch(actor, row, report)
            except NotFound:
                continue
            except StorageUnavailable as error:
                return lost(error.code, error.message)

    async def cancel(self, ref: str) -> None:
        """Ask the instance to stop."""
        try:
            await self._instances.cancel(_actor(self._server.project_id), ref, "Its task does not want it any more.")
        except (NotFound, Conflict):
            return
        except StorageUnavailable as error:
            raise ServerFailed(lost(error.code, error.message)) from None

    async def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        """An artifact of the project, or a file in the folders that nodes may touch."""
        try:
            if "artifact" in file.locator:
                id = str(file.locator["artifact"])
                row = (await self._database.read(lists.artifacts, self._server.project_id, [id])).get(id)
                if row is None:
                    raise ArtifactMissing(f"There is no artifact {id!r} in this project.")
                path = self._artifacts.path(row.sha256)
            else:
                path = await asyncio.to_thread(self._files.reading, str(file.locator.get("path", "")))
            opened = await asyncio.to_thread(path.open, "rb")
        except (ArtifactMissing, PathRefused, OSError) as error:
            raise ServerFailed(refused("OUTPUT_MISSING", f"{file.name!r} can't be fetched: {error}")) from None
        try:
            while piece := await asyncio.to_thread(opened.read, _CHUNK):
                yield piece
        except OSError as error:
            raise ServerFailed(refused("OUTPUT_MISSING", f"{file.name!r} can't be read: {error}")) from None
        finally:
            opened.close()

    async def close(self) -> None:
        """Nothing is held."""

    async def _row(self, ref: str) -> Any:
        return (await self._database.read(lists.instances, self._server.project_id, [ref])).get(ref)

    async def _ended(self, row: Any) -> Done | Failed:
        output = row.output
        if row.output_artifact is not None:
            try:
                output = await asyncio.to_thread(self._artifacts.read_json, row.output_artifact)
            except (ArtifactMissing, OSError) as error:
                return refused("OUTPUT_MISSING", f"The instance's output can't be read: {error}")
        return ended(row.status, output, row.error)

    async def _watch(self, actor: Actor, row: Any, report: Report) -> None:
        """Until the instance has ended."""
        settled = 0
        if row.status != InstanceStatus.PENDING:
            counts = (await self._database.read(lists.node_counts, [row.id]))[row.id]
            settled = sum(number for status, number in counts.items() if status in _SETTLED)
        total = max(1, len((await self._version(row.version_id)).definition.nodes))
        report(min(1.0, settled / total), "")
        stream = cast("AsyncGenerator[e.Recorded, None]", self._streams.events(actor, row.id, row.last_seq))
        async with aclosing(stream) as events:
            async for recorded in events:
                match recorded.event:
                    case e.NodeCompleted(path=path) | e.NodeFailed(path=path) | e.NodeSkipped(path=path):
                        if "/" not in path:
                            settled += 1
                            report(min(1.0, settled / total), "")
                    case e.NodeProgress(path=path, message=message) if message:
                        report(min(1.0, settled / total), f"{path}: {message}")


_SETTLED = ("COMPLETED", "FAILED", "SKIPPED", "CANCELED")
_PATIENCE = ("QUOTA_EXCEEDED", "CONCURRENCY_LIMIT")


def _actor(project_id: str, user_id: str | None = None) -> Actor:
    return Actor(user_id or ADMIN_USER, ADMIN_NAME, project_id, ROLES["operator"])
