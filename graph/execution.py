"""One GraphQL operation from the request to the answer, the same over HTTP and sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any

import msgspec
import strawberry
from graphql import ExecutionResult, GraphQLError, execute, subscribe
from msgspec import UNSET, UnsetType
from prometheus_client import CollectorRegistry
from strawberry.execution import optimized_is_awaitable

from graph.documents import Documents, Operation, Refused
from graph.errors import RequestError, formatted
from graph.limits import Limits, limit_error
from graph.metrics import WireMetrics
from graph.request import Ask

_timer: ContextVar[asyncio.Timeout | None] = ContextVar("mirrorflow_graph_timer", default=None)


def extend_deadline(seconds: float) -> None:
    """Let the operation that is running take this long from now on; for a resolver that waits on purpose."""
    if (timer := _timer.get()) is not None and (when := timer.when()) is not None:
        timer.reschedule(max(when, asyncio.get_running_loop().time() + seconds))


class Answer(msgspec.Struct, omit_defaults=True):
    """A GraphQL response. ``data`` is unset (not null) where execution never began."""

    errors: list[dict[str, Any]] | UnsetType = UNSET
    data: Any = UNSET
    extensions: dict[str, Any] | UnsetType = UNSET

    @property
    def executed(self) -> bool:
        """True when there is a ``data`` entry, be it null."""
        return self.data is not UNSET


class Execution:
    """Runs operations of one schema within its limits."""

    def __init__(self, schema: strawberry.Schema, limits: Limits, registry: CollectorRegistry) -> None:
        self.limits = limits
        self.metrics = WireMetrics(registry)
        # Strawberry's own execute() builds extension runners and parses anew for every request; we need neither.
        self._schema = schema._schema
        self._executor = schema.execution_context_class
        self._documents = Documents(self._schema, limits)

    def operation(self, ask: Ask, *, signed_in: bool) -> tuple[Operation, int]:
        """The operation asked for and its cost.

        Raises Refused or RequestError where it must not run. Strangers may not read the schema.
        """
        operation = self._documents.operation(ask.query, ask.operation_name)
        cost = operation.cost(ask.variables)
        if cost > self.limits.cost:
            what = "The cost of an operation (objects it may produce)"
            raise Refused([limit_error("COST_LIMIT_EXCEEDED", what, self.limits.cost, cost, operation.node)])
        if operation.introspects and not signed_in:
            raise RequestError(401, "UNAUTHENTICATED", "Introspection is for signed-in users.")
        return operation, cost

    async def answer(self, operation: Operation, cost: int, ask: Ask, context: Any, request_id: str) -> Answer:
        """Carry out a query or a mutation. Never raises but for cancellation."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self.limits.execution_seconds) as timer:
                _timer.set(timer)
                result = execute(
                    self._schema,
                    operation.document,
                    context_value=context,
                    variable_values=ask.variables,
                    operation_name=operation.name,
                    executor_class=self._executor,
                    is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]
                    operation_extensions=None,
                )
                if not isinstance(result, ExecutionResult):
                    result = await result
            answer = self._answer(result, request_id)
        except TimeoutError:
            answer = self.failure([_timeout(self.limits)], request_id)
        except Exception as error:
            answer = self.failure([_as_graphql(error)], request_id)
        answer.extensions = {"cost": cost}
        self.metrics.seconds.labels(operation.kind.value, operation.field).observe(time.perf_counter() - started)
        return answer

    async def stream(
        self, operation: Operation, ask: Ask, context: Any, request_id: str
    ) -> AsyncGenerator[Answer, None]:
        """The answers of a subscription. One without ``data`` is the last: the stream could not begin or go on."""
        running = self.metrics.subscriptions.labels(operation.field)
        running.inc()
        try:
            source = await self._source(operation, ask, context)
            if isinstance(source, ExecutionResult):
                yield self.failure(source.errors or [], request_id)
                return
            async with aclosing(source) as results:
                async for result in results:
                    yield self._answer(result, request_id)
        except Exception as error:
            yield self.failure([_as_graphql(error)], request_id)
        finally:
            running.dec()

    async def _source(
        self, operation: Operation, ask: Ask, context: Any
    ) -> ExecutionResult | AsyncGenerator[ExecutionResult, None]:
        try:
            async with asyncio.timeout(self.limits.execution_seconds) as timer:
                source = subscribe(
                    self._schema,
                    operation.document,
                    context_value=context,
                    variable_values=ask.variables,
                    operation_name=operation.name,
                    executor_class=self._executor,
                    operation_extensions=None,
                )
                return await source if isawaitable(source) else source  # type: ignore[return-value]
        except TimeoutError as error:
            raise _timeout(self.limits) if timer.expired() else error from None

    def failure(self, errors: list[GraphQLError], request_id: str) -> Answer:
        """An answer of errors only."""
        return Answer(errors=self._formatted(errors, request_id))

    def refused(self, error: Refused | RequestError, request_id: str) -> Answer:
        """The answer to what may not run at all."""
        if isinstance(error, Refused):
            return self.failure(error.errors, request_id)
        self.metrics.errors.labels(error.code).inc()
        return Answer(errors=[error.formatted()])

    def _answer(self, result: ExecutionResult, request_id: str) -> Answer:
        if not result.errors:
            return Answer(data=result.data)
        errors = self._formatted(result.errors, request_id)
        # An error without a path was found before execution began (variables that don't fit): no data then.
        if result.data is None and all(error.path is None for error in result.errors):
            return Answer(errors=errors)
        return Answer(errors=errors, data=result.data)

    def _formatted(self, errors: list[GraphQLError], request_id: str) -> list[dict[str, Any]]:
        shown = formatted(errors, request_id, limit=self.limits.errors)
        for error in shown:
            self.metrics.errors.labels(error["extensions"]["code"]).inc()
        return shown


def encoded(value: Any) -> bytes:
    """JSON for the wire."""
    try:
        return msgspec.json.encode(value)
    except (UnicodeError, OverflowError):  # a lone surrogate got in somewhere: an escape is better than an outage
        return json.dumps(msgspec.to_builtins(value)).encode()


def _timeout(limits: Limits) -> GraphQLError:
    message = f"The operation took longer than {limits.execution_seconds:g} seconds and was stopped."
    return GraphQLError(message, extensions={"code": "TIMEOUT"})


def _as_graphql(error: Exception) -> GraphQLError:
    return error if isinstance(error, GraphQLError) else GraphQLError(str(error), original_error=error)
