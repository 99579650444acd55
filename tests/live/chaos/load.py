"""Workflows that faults happen to, and what must have become of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.live.cluster import Cluster, Member
from tests.live.mischief import flow, step
from tests.live.server import wait_until
from tests.live.test_survival import definition

#: What one run of ``load`` gives.
OUTPUT = {"last": {"n": 12, "value": 144}}
#: The names of its nodes.
NODES = 7


class Load:
    """Many runs of one workflow with a fan-out and a join, each started under a key of its own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.ids: list[str] = []
        self._workflow = ""

    async def prepare(self) -> Load:
        """Store the workflow. No fault is under way."""
        self._workflow = await self.cluster.store(definition() | {"name": self.name})
        return self

    async def add(self, runs: int) -> list[str]:
        """Start so many more at once; their ids, each acknowledged."""
        keys = [f"{self.name}-{len(self.ids) + n}" for n in range(runs)]
        start = self.cluster.start
        new = list(
            await asyncio.gather(
                *(start(self._workflow, {"n": 12 + n % 6}, key=k, within=120) for n, k in enumerate(keys))
            )
        )
        self.ids += new
        return new

    async def complete(self, within: float = 60.0) -> None:
        """Wait for all, and see that each was right."""
        assert len(set(self.ids)) == len(self.ids)
        assert Counter(await self.cluster.over(self.ids, within)) == {"COMPLETED": len(self.ids)}
        rows = await self.cluster.sql(
            "SELECT output FROM instances WHERE id = ANY(:ids) AND output::jsonb != cast(:right AS jsonb)",
            ids=self.ids,
            right='{"last": {"n": 12, "value": 144}}',
        )
        assert rows == []
        ends = await self.cluster.sql(
            "SELECT instance_id FROM events WHERE instance_id = ANY(:ids) AND type = 'node.completed' "
            "GROUP BY instance_id HAVING count(DISTINCT path) != :nodes",
            ids=self.ids,
            nodes=NODES,
        )
        assert ends == []


def held(file: Path, name: str = "held", *after: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A workflow that waits in its first node, in a worker's hands, until ``<file>.go`` is there."""
    return flow(name, {"id": "hold", "type": "test/hold", "parameters": {"file": str(file)}} | more, *after)


def go(file: Path) -> None:
    """Let who waits by this file go on."""
    Path(f"{file}.go").touch()


async def lines(file: Path, count: int, within: float = 20.0) -> list[str]:
    """The lines of a file once it has so many."""

    async def there() -> list[str]:
        found = await asyncio.to_thread(lambda: file.read_text() if file.exists() else "")
        return found.splitlines() if found.count("\n") >= count else []

    return await wait_until(there, within)


async def holder(cluster: Cluster, id: str) -> Member:
    """The worker that holds the run."""
    member = await cluster.driver(id)
    assert member is not None, id
    return member


async def completed(cluster: Cluster, ids: Sequence[str], within: float = 60.0) -> None:
    """Wait until the runs are over: all went well."""
    assert Counter(await cluster.over(ids, within)) == {"COMPLETED": len(ids)}


__all__ = ["OUTPUT", "Load", "completed", "go", "held", "holder", "lines", "step"]
