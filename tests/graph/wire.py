"""A small schema with every kind of behaviour that the wire must cope with, and a server for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import strawberry
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection

from flow.errors import Conflict, Invalid, NotFound, Problem, StorageUnavailable
from graph.access import User
from graph.execution import extend_deadline
from graph.limits import Limits
from graph.view import GraphQLView

TOKEN = "a-good-token-of-a-tester"


@dataclass(frozen=True, slots=True)
class Tester:
    """The only user there is."""

    user_id: str


@dataclass(slots=True)
class World:
    """What resolvers and tests share: who may come in, and what happened."""

    tokens: dict[str, str] = field(default_factory=lambda: {TOKEN: "usr-1", "another-token": "usr-2"})
    closed: list[str] = field(default_factory=list)
    produced: int = 0
    contexts: int = 0
    away: bool = False
    go: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def authenticate(self, token: str) -> User | None:
        if self.away:
            raise StorageUnavailable("The database server can't be reached.")
        user = self.tokens.get(token)
        return None if user is None else Tester(user)

    def context(self, user: User | None, connection: HTTPConnection) -> dict[str, Any]:
        self.contexts += 1
        return {"world": self, "user": user}


def world(info: strawberry.Info) -> World:
    found: World = info.context["world"]
    return found


@strawberry.type
class Thing:
    """Something with more of the same below it."""

    id: strawberry.ID

    @strawberry.field
    def things(self, first: int | None = None, last: int | None = None) -> ThingConnection:
        return ThingConnection(nodes=[Thing(id=strawberry.ID("x"))])


@strawberry.type
class ThingConnection:
    """A page."""

    nodes: list[Thing]


@strawberry.type
class Query:
    """Reads."""

    @strawberry.field
    def hello(self, name: str = "world") -> str:
        return f"Hello, {name}!"

    @strawberry.field
    def things(self, first: int | None = None, last: int | None = None) -> ThingConnection:
        return ThingConnection(nodes=[Thing(id=strawberry.ID(str(n))) for n in range(first or 2)])

    @strawberry.field
    def square(self, n: int) -> int:
        return n * n

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError("the secret is 42")

    @strawberry.field
    def broken_scalar(self) -> int | None:
        return 2**40

    @strawberry.field
    def required(self) -> str:
        raise NotFound("thing", "thing-9")

    @strawberry.field
    def invalid(self) -> str | None:
        raise Invalid([Problem("/a", "WRONG", "A is wrong."), Problem("/b", "WORSE", "B is worse.")])

    @strawberry.field
    def conflict(self) -> str | None:
        raise Conflict("It is not so.", current="1.0.1")

    @strawberry.field
    async def hang(self, info: strawberry.Info, extend: float | None = None) -> str:
        if extend is not None:
            extend_deadline(extend)
        world(info).started.set()
        try:
            await world(info).go.wait()
        except asyncio.CancelledError:
            world(info).closed.append("hang")
            raise
        return "went"

    @strawberry.field
    def user(self, info: strawberry.Info) -> str | None:
        user: User | None = info.context["user"]
        return user.user_id if user else None


@strawberry.type
class Mutation:
    """Writes."""

    @strawberry.mutation
    def produce(self, info: strawberry.Info) -> int:
        world(info).produced += 1
        return world(info).produced


@strawberry.type
class Subscription:
    """Streams."""

    @strawberry.subscription
    async def count(self, info: strawberry.Info, to: int = 3) -> AsyncIterator[int]:
        try:
            for n in range(1, to + 1):
                yield n
        finally:
            world(info).closed.append("count")

    @strawberry.subscription
    async def endless(self, info: strawberry.Info, padding: int = 0) -> AsyncIterator[str]:
        try:
            while True:
                world(info).produced += 1
                yield "x" * padding
                if not padding:
                    await world(info).go.wait()
        finally:
            world(info).closed.append("endless")

    @strawberry.subscription
    async def refuses(self) -> AsyncIterator[int]:
        yield 1
        raise NotFound("thing", "thing-9")

    @strawberry.subscription
    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("the secret is 42")


schema = strawberry.Schema(Query, Mutation, Subscription)


def view(world: World, **limits: Any) -> GraphQLView:
    """The endpoint, with some limits changed."""
    return GraphQLView(
        schema,
        authenticate=world.authenticate,
        context=world.context,
        limits=Limits(**limits),
        registry=CollectorRegistry(),
        allowed_origins=("https://friend.example",),
    )


@asynccontextmanager
async def client(world: World, **limits: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the endpoint, signed in."""
    transport = httpx.ASGITransport(view(world, **limits))
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        yield http
