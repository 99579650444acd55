"""One attempt of one node, wherever it is made: worked out by the run's driver, made by it or by another worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec

from engine import cache, clock
from engine.cache import ResultCache
from engine.calls import Call, LogLine, Outcome, Report
from engine.placement import Runner
from flow import events as e
from flow import expressions
from flow.planner import Run

#: Log lines of one attempt beyond this are dropped, and a last line says so.
MAX_LOG_LINES = 1_000


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call, and for how long its result is used again under which key (None: not at all)."""

    call: Call
    key: str | None = None
    ttl: timedelta | None = None


class Attempts:
    """Works attempts out and makes them. ``observe(type, seconds)`` is told how long each call took."""

    def __init__(self, runner: Runner, results: ResultCache, observe: Callable[[str, float], None]) -> None:
        self._runner = runner
        self._results = results
        self._observe = observe

    def prepare(self, instance_id: str, project_id: str, run: Run, path: str, attempt: int) -> Attempt:
        """The attempt with its input and its parameters, as the run stands now. Raises ExpressionError."""
        node = run.node(path)
        input = run.input(path)
        parameters: dict[str, Any] = node.parameters
        scope = {}
        if parameters or node.cache is not None:
            scope = run.names(path, input)
            parameters = expressions.render(parameters, scope)
        call = Call(
            type=node.type,
            instance_id=instance_id,
            project_id=project_id,
            path=path,
            node_id=node.id,
            attempt=attempt,
            parameters=parameters,
            input=input,
            idempotency_key=f"{instance_id}/{path}",
            timeout=node.timeout,
            heartbeat_timeout=node.heartbeat_timeout,
            resources=node.resources,
        )
        if node.cache is None:
            return Attempt(call)
        kind = self._runner.registry.get(node.type)
        version = kind.version if kind is not None else ""
        if node.cache.key is not None:
            key = cache.key_by(node.type, version, expressions.render(node.cache.key, scope))
        else:
            key = cache.key(node.type, version, parameters, input)
        return Attempt(call, key, node.cache.ttl)

    async def make(self, attempt: Attempt, report: Callable[[Report], None]) -> Outcome:
        """The result of equal work, if there is one, or the handler's own. Raises only CancelledError."""
        call = attempt.call
        if attempt.key is None or attempt.ttl is None:
            return await self._called(call, report)
        make: Callable[[], Awaitable[Outcome]] = lambda: self._called(call, report)  # noqa: E731
        return await self._results.outcome(call.project_id, attempt.key, attempt.ttl, call.instance_id, make)

    async def _called(self, call: Call, report: Callable[[Report], None]) -> Outcome:
        began = clock.monotonic()
        outcome = await self._runner.run(call, report)
        self._observe(call.type, clock.monotonic() - began)
        return outcome


class Lines:
    """The log of one attempt: as many lines as are kept, and one that says that there were more."""

    __slots__ = ("_attempt", "_count", "_path")

    def __init__(self, path: str, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._count = 0

    def event(self, line: LogLine) -> e.NodeLog | None:
        """The line as an event; None if it is one too many."""
        self._count += 1
        if self._count < MAX_LOG_LINES:
            return e.NodeLog(self._path, self._attempt, line.message, line.level, line.fields)
        if self._count == MAX_LOG_LINES:
            dropped = f"More than {MAX_LOG_LINES:,} lines in one attempt: the others are not kept."
            return e.NodeLog(self._path, self._attempt, dropped, "warning")
        return None
