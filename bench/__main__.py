"""``python -m bench [--distributed] [W1 W3 …]``: the workloads of docs/performance.md as JSON lines.

Each workload has a server of its own over an empty folder, in another process, and goes through the public API. With
``--distributed`` there are PostgreSQL, Redis, a server without workers and two workers, and the workloads D1 to D4 of
docs/scaling.md besides. C1 needs PostgreSQL alone.
"""

from __future__ import annotations

import argparse
import asyncio

import msgspec

from bench.commits import project_rows
from bench.expansion import batch_expansion
from bench.report import machine, mode
from bench.spread import SPREAD
from bench.stands import embedded, measured_by
from bench.workloads import WORKLOADS

WORKERS = 2
#: Those that mean something with workers elsewhere.
BOTH = ("W1", "W2", "W3", "W4", "W5")


def main() -> None:
    """Run the workloads named, or all of the mode."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--distributed", action="store_true", help="PostgreSQL, Redis, a server and two workers")
    known = [*WORKLOADS, *SPREAD, "B1", "C1"]
    parser.add_argument("workload", nargs="*", choices=[*known, []], help=", ".join(known))
    given = parser.parse_args()
    default = [*BOTH, *SPREAD, "C1"] if given.distributed else [*WORKLOADS, "B1"]
    print(msgspec.json.encode(machine()).decode(), flush=True)
    for name in given.workload or default:
        if name == "B1":
            mode.set("embedded")
            asyncio.run(batch_expansion())
        elif name == "C1":
            mode.set("postgresql alone")
            asyncio.run(project_rows())
        elif name in SPREAD:
            mode.set("distributed")
            asyncio.run(SPREAD[name]())
        elif given.distributed and name in BOTH:
            mode.set(f"distributed, {WORKERS} workers")
            asyncio.run(WORKLOADS[name](measured_by(WORKERS)))
        else:
            mode.set("embedded")
            asyncio.run(WORKLOADS[name](embedded))


main()
