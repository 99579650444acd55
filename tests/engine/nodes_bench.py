"""A runner over the built-in node types and a temporary folder, for the tests of the node families."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from engine.calls import Broke, Call, Done, Outcome, Report
from engine.nodes.registry import Registry
from engine.placement import Runner


class Bench:
    """Runs single nodes. ``said`` is what the last one reported."""

    def __init__(self, runner: Runner, files: Path) -> None:
        self.runner = runner
        self.files = files
        self.said: list[Report] = []

    async def run(self, type: str, input: Any = None, *, timeout: float = 30, **parameters: Any) -> Outcome:
        self.said = []
        call = Call(type, "inst-1", "proj-1", "a", "a", 1, parameters, input, "inst-1/a", timedelta(seconds=timeout))
        return await self.runner.run(call, self.said.append)

    async def done(self, type: str, input: Any = None, **parameters: Any) -> Any:
        """The output of a node that must succeed."""
        outcome = await self.run(type, input, **parameters)
        assert isinstance(outcome, Done), outcome
        return outcome.output

    async def broke(self, type: str, input: Any = None, **parameters: Any) -> tuple[str, str, Broke]:
        """Code and category of a node that must fail."""
        outcome = await self.run(type, input, **parameters)
        assert isinstance(outcome, Broke), outcome
        return outcome.failure.code, outcome.failure.category.value, outcome


@asynccontextmanager
async def bench(folder: Path, *more_roots: Path) -> AsyncIterator[Bench]:
    files = folder / "files"
    files.mkdir()
    runner = Runner(Registry.load(), data_dir=folder, roots=[files, *more_roots], processes=1, grace=0.3)
    yield Bench(runner, files)
    await runner.close()
