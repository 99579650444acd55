"""Two runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import strawberry
from strawberry import argument, field

from db.store import keyset
from engine.access import Permission
from flow import compare, errors, versions
from flow import events as e
from flow.history import NodeState
from flow.versions import ChangeKind
from graph.blocked import slim_state
from graph.definitions import DiffEntry
from graph.instances import Instance, instance
from graph.nodes import NodeExecution, execution
from graph.objects import derived
from graph.paging import refuse
from graph.permissions import Info, caller, query

#: Runs with more node executions than this are not compared.
LARGEST = 5_000
MOST_NODES = 500


@strawberry.type(description="One node in both runs.")
class NodeDiff:
    """See ``flow.compare.NodeDiff``."""

    path: str = field(description="The node's place in the runs.")
    kind: ChangeKind | None = field(
        description="ADDED: only in b. REMOVED: only in a. CHANGED: its status or output. Null: it came to the same."
    )
    status_changed: bool = field(description="True if it ended (or stands) otherwise.")
    output_changes: list[DiffEntry] = field(description="Where its outputs differ, at most a hundred places.")
    more_changes: bool = field(description="True if the outputs differ in more places, or are too large to look into.")
    slower_by_seconds: float | None = field(description="How much longer it took in b; negative: it was faster.")
    between: strawberry.Private[tuple[str, str]]

    @derived("The node in a; null if a has none.")
    async def a(self, info: Info) -> NodeExecution | None:
        """By loader."""
        return await _execution(info, self.between[0], self.path)

    @derived("The node in b; null if b has none.")
    async def b(self, info: Info) -> NodeExecution | None:
        """By loader."""
        return await _execution(info, self.between[1], self.path)


@strawberry.type(description="What differs between two runs, of one workflow or two.")
class InstanceDiff:
    """See ``flow.compare``."""

    a: Instance = field(description="The first.")
    b: Instance = field(description="The second.")
    identical: bool = field(description="True if the input, the output and every node came to the same.")
    input: list[DiffEntry] = field(description="Where their inputs differ, at most a hundred places.")
    output: list[DiffEntry] = field(description="Where their outputs differ, at most a hundred places.")
    found: strawberry.Private[Sequence[compare.NodeDiff]]

    @derived("The nodes, in the order in which they began in a, then those that only b has.")
    def nodes(
        self,
        all: Annotated[bool, argument(description="Also those that came to the same.")] = False,
        first: Annotated[int, argument(description="At most this many: 1 to 500.")] = 100,
    ) -> list[NodeDiff]:
        """Those that differ, or all."""
        shown = [diff for diff in self.found if all or diff.kind is not None]
        between = (str(self.a.id), str(self.b.id))
        return [_shown(diff, between) for diff in shown[: max(1, min(first, MOST_NODES))]]


@strawberry.type
class ComparingQuery:
    """Comparing runs."""

    @query(
        Permission.INSTANCE_READ,
        "What differs between two runs, node by node: status, output and duration. "
        "Runs with more than 5,000 node executions are not compared.",
    )
    async def instance_diff(
        self,
        info: Info,
        a: Annotated[strawberry.ID, argument(description="The first instance's id.")],
        b: Annotated[strawberry.ID, argument(description="The second instance's id.")],
    ) -> InstanceDiff:
        """Pure comparison."""
        load, actor = info.context.load, caller(info)
        rows = await load.instance.load_many([a, b])
        for id, row, name in zip((a, b), rows, ("a", "b"), strict=True):
            if row is None:
                raise errors.NotFound("instance", id, path=(name,))
            if sum((await load.node_counts.load(id)).values()) > LARGEST:
                raise refuse("TOO_LARGE", f"{id} has more than {LARGEST:,} node executions.", name)
        first, second = rows
        assert first is not None
        assert second is not None
        nodes = [{row.path: _state(row) for row in found} for found in await load.outcomes.load_many([a, b])]
        diffs = compare.compare(*nodes)
        inputs = compare.value_diff(first.input, second.input)
        outputs = compare.value_diff(_output(first), _output(second))
        return InstanceDiff(
            a=instance(first, actor),
            b=instance(second, actor),
            identical=not inputs and not outputs and all(diff.kind is None for diff in diffs),
            input=[_entry(change) for change in inputs.changes],
            output=[_entry(change) for change in outputs.changes],
            found=diffs,
        )


def _state(row: keyset.Record) -> NodeState:
    state = slim_state(row)
    state.output = row.output
    state.artifact = None if row.output_artifact is None else msgspec.convert(row.output_artifact, e.Artifact)
    return state


def _output(row: keyset.Record) -> object:
    """A large output is compared by its hash."""
    return row.output if row.output_artifact is None else {"sha256": row.output_artifact["sha256"]}


def _shown(diff: compare.NodeDiff, between: tuple[str, str]) -> NodeDiff:
    return NodeDiff(
        path=diff.path,
        kind=diff.kind,
        status_changed=diff.status,
        output_changes=[_entry(change) for change in diff.output.changes],
        more_changes=diff.output.more,
        slower_by_seconds=None if diff.slower_by is None else diff.slower_by.total_seconds(),
        between=between,
    )


def _entry(change: versions.Change) -> DiffEntry:
    return DiffEntry(key=change.key, kind=change.kind, before=change.before, after=change.after, parts=[])


async def _execution(info: Info, instance_id: str, path: str) -> NodeExecution | None:
    row = await info.context.load.node.load((instance_id, path))
    return None if row is None else execution(row, caller(info))
