"""The schema on a real engine and a real database."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest
from graphql import ExecutionResult, GraphQLError, execute, parse, subscribe, validate
from sqlalchemy import Engine as SqlEngine
from sqlalchemy import event

from engine.access import LOCAL, Actor
from engine.engine import Engine
from flow.errors import WorkflowError
from graph.context import Context
from graph.schema import build_schema
from tests.engine.conftest import engine_on


class Asker:
    """Asks one engine, as one caller."""

    def __init__(self, engine: Engine, actor: Actor | None = LOCAL) -> None:
        self.engine = engine
        self.actor = actor
        self.schema = build_schema()._schema

    def as_(self, actor: Actor | None) -> Asker:
        """The same engine, asked by somebody else."""
        return Asker(self.engine, actor)

    async def result(self, text: str, **variables: Any) -> ExecutionResult:
        """Errors and all."""
        document = parse(text)
        assert validate(self.schema, document) == []
        answer = execute(
            self.schema, document, context_value=Context(self.engine, self.actor), variable_values=variables
        )
        return answer if isinstance(answer, ExecutionResult) else await answer

    async def __call__(self, text: str, **variables: Any) -> Any:
        """The data of an answer without errors."""
        result = await self.result(text, **variables)
        assert not result.errors, [error.original_error or error for error in result.errors]
        return result.data

    async def code(self, text: str, **variables: Any) -> str:
        """The code of the refusal that the answer's only error is."""
        result = await self.result(text, **variables)
        assert result.errors, result.data
        [error] = result.errors
        return str(getattr(error.original_error, "code", error.message))

    async def refusal(self, text: str, **variables: Any) -> str:
        """The code of the refusal with which a stream ends, at its beginning or at its first item."""
        document = parse(text)
        assert validate(self.schema, document) == []
        context = Context(self.engine, self.actor)
        source: Any = subscribe(self.schema, document, context_value=context, variable_values=variables)
        source = await source if isawaitable(source) else source
        if isinstance(source, ExecutionResult):
            assert source.errors
            cause: Any = source.errors[0].original_error
        else:
            with pytest.raises((GraphQLError, WorkflowError)) as caught:
                await anext(aiter(source))
            cause = caught.value
        return str(getattr(getattr(cause, "original_error", None) or cause, "code", cause))

    @contextmanager
    def statements(self) -> Iterator[list[str]]:
        """Every SQL statement meanwhile; the heartbeats of the worker come when they come and aren't counted."""
        found: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "workers" not in statement:
                found.append(statement)

        event.listen(SqlEngine, "before_cursor_execute", note)
        try:
            yield found
        finally:
            event.remove(SqlEngine, "before_cursor_execute", note)

    async def stream(self, text: str, **variables: Any) -> AsyncGenerator[Any, None]:
        """The data of each item."""
        document = parse(text)
        assert validate(self.schema, document) == []
        source = subscribe(
            self.schema, document, context_value=Context(self.engine, self.actor), variable_values=variables
        )
        if not hasattr(source, "__aiter__"):
            source = await source  # type: ignore[misc]
        assert not isinstance(source, ExecutionResult), source.errors
        try:
            async for item in source:
                assert not item.errors, [error.original_error or error for error in item.errors]
                yield item.data
        finally:
            await source.aclose()  # type: ignore[union-attr]


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Asker]:
    """Asks a running engine as the administrator of the default project."""
    async with engine_on(tmp_path) as engine:
        yield Asker(engine)
