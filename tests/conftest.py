"""What every room's tests share."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import hypothesis
import pytest

from tests.live.server import Server

# A busy machine makes examples slowly; that says nothing about the code.
hypothesis.settings.register_profile("house", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("house")

pytest_plugins = ["tests.databases", "tests.redis", "tests.live.cluster"]


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest) -> None:
    """An async test fails if a task that it started still runs when it and its fixtures are done."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_tasks_end")


@pytest.fixture
async def _tasks_end() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(20):  # a cancelled task needs a few turns of the loop to end
        left = {task for task in asyncio.all_tasks() - before if not task.done()} - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    pytest.fail("tasks left running: " + ", ".join(sorted(str(task.get_coro()) for task in left if task)))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running server of the test's own, over an empty data folder."""
    async with Server(tmp_path / "data") as running:
        yield running


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soak runs only where asked for (``-m soak``); of parallel tests the live ones, which are long, come first."""
    if hasattr(config, "workerinput"):  # or the last minute would be one process's alone
        items.sort(key=lambda item: "tests/live/" not in item.nodeid)
    if "soak" not in (config.option.markexpr or ""):
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is installed (``MIRRORFLOW_CI=1``), a skip for want of a part is a failure."""
    report = yield
    if os.environ.get("MIRRORFLOW_CI") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where every part must be there: {report.longrepr}"
    return report
