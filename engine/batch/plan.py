"""What a task that is held is to do, read from its row, and the pieces of work that it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from db.store.items import Taken
from db.store.keyset import Record
from engine.batch.outputs import Staging
from engine.definitions import PinnedVersion
from engine.servers.contract import Work
from flow import batches
from flow.tasks import BATCH, WORKFLOW, BatchSpec, RunSpec

#: How much longer than its task a run may take by its own server's clock.
MARGIN = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Plan:
    """A task as its holder sees it. ``servers`` are ids; empty: this engine itself."""

    row: Record
    spec: BatchSpec | RunSpec
    version: PinnedVersion
    servers: tuple[str, ...]
    output_root: Path | None
    deadline: datetime | None

    @property
    def batch(self) -> BatchSpec | None:
        """The batch, if it is one."""
        return self.spec if isinstance(self.spec, BatchSpec) else None

    @property
    def retries(self) -> int:
        """How often an item that failed for a passing reason is tried again."""
        return self.spec.item_retries if isinstance(self.spec, BatchSpec) else self.spec.retries

    def staging(self, item: Taken) -> Staging | None:
        """Where the attempt's outputs are put before they land; None if they stay where they are."""
        return None if self.output_root is None else Staging(self.output_root, item.id, item.attempts)

    def work(self, item: Taken, now: datetime, callback: dict[str, Any] | None = None) -> Work:
        """The attempt as a server takes it: its id is the same however often it is submitted."""
        staging = self.staging(item)
        definition = self.version.definition
        if isinstance(self.spec, BatchSpec):
            out = None if staging is None else str(staging.out)
            file = batches.InputFile(item.path, item.relative, item.size, out)
            given = batches.run_input(file, definition.input_schema, self.spec.parameters)
            parameters = self.spec.parameters
        else:
            given = self.spec.input
            parameters = self.spec.parameters if self.spec.type == WORKFLOW else {}
        return Work(
            id=f"{item.id}-{item.attempts}",
            project_id=self.row.project_id,
            workflow_id=self.version.workflow_id,
            version_id=self.version.version_id,
            definition=definition,
            input=given,
            file=Path(item.path) if item.path else None,
            output_dir=None if staging is None else staging.out,
            # later than ours, which says why: theirs is for when nobody is left to ask
            timeout=None if self.deadline is None else max(self.deadline - now, timedelta(0)) + MARGIN,
            priority=self.row.priority,
            parameters=parameters,
            created_by=self.row.created_by,
            callback=callback,
        )


def spec_of(row: Record) -> BatchSpec | RunSpec:
    """What the task is to do, with every name resolved."""
    kind: type[BatchSpec] | type[RunSpec] = BatchSpec if row.type == BATCH else RunSpec
    return msgspec.convert(row.spec, kind, strict=False)


def plan(row: Record, version: PinnedVersion) -> Plan:
    """The plan of a task that has begun."""
    spec = spec_of(row)
    if isinstance(spec, BatchSpec):
        servers = spec.servers
        root = None if spec.output_root is None else Path(spec.output_root)
    else:
        servers = () if spec.server is None else (spec.server,)
        root = None
    begun: datetime | None = row.started_at
    deadline = begun + timedelta(seconds=row.timeout_s) if begun is not None and row.timeout_s is not None else None
    return Plan(row, spec, version, servers, root, deadline)
