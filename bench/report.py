"""What is printed: one JSON line for each result, and one for the machine."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil

#: How what is measured is set up: ``embedded``, or ``distributed`` and over how many workers.
mode = ContextVar("mode", default="embedded")


def line(workload: str, variant: str, values: list[float], unit: str = "ms", **more: Any) -> None:
    """Print one result: milliseconds have percentiles, everything has its median."""
    ordered = sorted(values)
    record: dict[str, Any] = {
        "workload": workload,
        "mode": mode.get(),
        "variant": variant,
        "n": len(values),
        "unit": unit,
    }
    record["median"] = round(statistics.median(ordered), 3)
    if unit == "ms":
        record["p50_ms"] = record["median"]
        record["p99_ms"] = round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3)
    record["min"], record["max"] = round(ordered[0], 3), round(ordered[-1], 3)
    print(msgspec.json.encode(record | more).decode(), flush=True)


def _reference() -> float:
    """Milliseconds of a fixed piece of plain Python, the best of five: how fast this machine is, and at this hour."""

    def once() -> float:
        began = time.perf_counter()
        sum(number for number in range(1_000_000))
        return (time.perf_counter() - began) * 1000

    return round(min(once() for _ in range(5)), 1)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            row.split(":", 1)[1].strip() for row in cpuinfo.read_text().splitlines() if row.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "machine": model,
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "reference_ms": _reference(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "versions": {
            name: metadata.version(name) for name in ("strawberry-graphql", "sqlalchemy", "uvicorn", "msgspec")
        },
    }
