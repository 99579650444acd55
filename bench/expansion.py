"""B1: how fast a batch writes down the files of a large tree, and in how much memory.

Runs in a process of its own (``python -m bench.expansion FILES FOLDER``), so that its peak of memory is only its own:
an engine that looks through the folders and writes to SQLite as a server does, but hands nothing out.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from bench.report import line
from db import migrate
from db.session import connect
from db.store import tasks as store
from engine.access import LOCAL
from engine.engine import Engine
from engine.nodes.registry import Registry
from engine.placement import Runner
from flow.tasks import BatchSpec

IN_A_FOLDER = 1_000
DEFINITION = {
    "name": "b1",
    "triggers": [{"id": "m", "type": "manual"}],
    "nodes": [{"id": "n", "type": "core/noop"}],
}


async def batch_expansion() -> None:
    """A million empty files (``BENCH_FILES``: so many), written down while nothing is handed out."""
    files = int(os.environ.get("BENCH_FILES", "1000000"))
    with tempfile.TemporaryDirectory(prefix="mirrorflow-bench-") as folder:
        await asyncio.to_thread(make_tree, Path(folder) / "files" / "tree", files)
        command = [sys.executable, "-m", "bench.expansion", str(files), folder]
        done = await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.PIPE)
    found = msgspec.json.decode(done.stdout)
    line("B1", f"{files:,} files", [found["files_per_second"]], "1/s")
    line("B1", "peak memory (RSS)", [found["peak_mb"]], "MB", idle_mb=round(found["idle_mb"], 1))


def make_tree(folder: Path, files: int) -> None:
    """So many empty files, a thousand in each folder, the folders in folders of a hundred."""
    for number in range(-(-files // IN_A_FOLDER)):
        below = folder / f"{number // 100:03d}" / f"{number % 100:02d}"
        below.mkdir(parents=True)
        for file in range(min(IN_A_FOLDER, files - number * IN_A_FOLDER)):
            (below / f"file-{file:04d}.jpg").touch()


async def expand(data: Path, files: int) -> dict[str, float]:
    """Start a batch on a server that is out of service, and wait until its folders are expanded."""
    url = f"sqlite:///{data / 'mirrorflow.db'}"
    migrate.upgrade(url)
    database = connect(url)
    engine = Engine(database, Runner(Registry.load(), data_dir=data, roots=[data / "files"], processes=1), alone=True)
    await engine.access.ensure_defaults()
    await engine.start()
    try:
        made = await engine.workflows.create(LOCAL, DEFINITION)
        spec = BatchSpec(workflow_id=made.workflow_id, target_folders=("tree",))
        local = await engine.servers.named(LOCAL, "local")
        assert local is not None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = await engine.tasks.batch_start(LOCAL, spec)
        await engine.servers.update(LOCAL, local.id, enabled=False)
        began = time.perf_counter()
        while True:
            rows = await database.read(store.tasks, LOCAL.project_id, [started.task_id])
            if rows[started.task_id].expanded:
                break
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - began
        assert rows[started.task_id].total == files, rows[started.task_id].total
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": seconds, "files_per_second": files / seconds, "peak_mb": peak, "idle_mb": before}
    finally:
        await engine.stop(0)
        await database.close()


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(expand(Path(sys.argv[2]), int(sys.argv[1])))).decode())
