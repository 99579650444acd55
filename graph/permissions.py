"""Every root field declares what its caller must be allowed to do: ``query``, ``mutation`` and ``subscription`` make
fields that check it before anything else, and a test walks the schema to find one that was made without.

Objects under a root field belong to the caller's project, so nothing is asked again per object or scalar.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import strawberry
from graphql import GraphQLUnionType, get_named_type

from engine.access import Actor, Permission
from flow.errors import WorkflowError
from graph.context import Context
from graph.errors import RequestError
from graph.results import refusal_as_result

Info = strawberry.Info[Context, None]

#: Open to everybody, signed in or not: says so aloud, so that no field is open by having been forgotten.
PUBLIC = "public"
#: Whoever is signed in, whatever they may do.
SIGNED_IN = "signed_in"

Needed = Permission | str


def caller(info: Info) -> Actor:
    """Who is asking. Raises RequestError UNAUTHENTICATED."""
    actor = info.context.actor
    if actor is None:
        raise RequestError(401, "UNAUTHENTICATED", "Sign in first: send 'Authorization: Bearer <token>'.")
    return actor


def check(info: Info, needed: Needed) -> None:
    """Raise UNAUTHENTICATED or Denied unless the caller may."""
    if needed == PUBLIC:
        return
    actor = caller(info)
    if isinstance(needed, Permission):
        actor.require(needed)


def query(needed: Needed, description: str) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """A field of Query that ``needed`` opens."""

    def decorate(resolve: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(resolve)
        async def guarded(*args: Any, info: Info, **kwargs: Any) -> Any:
            check(info, needed)
            return await resolve(*args, info=info, **kwargs)

        return strawberry.field(resolver=guarded, description=description, metadata={"permission": needed})

    return decorate


def mutation(needed: Needed, description: str) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """A field of Mutation that ``needed`` opens; refusals that its result union names become results."""

    def decorate(resolve: Callable[..., Awaitable[Any]]) -> Any:
        @functools.wraps(resolve)
        async def guarded(*args: Any, info: Info, **kwargs: Any) -> Any:
            try:
                check(info, needed)
                return await resolve(*args, info=info, **kwargs)
            except WorkflowError as error:
                result = refusal_as_result(error)
                if result is None or not _answers(info, type(result).__name__):
                    raise
                return result

        return strawberry.mutation(resolver=guarded, description=description, metadata={"permission": needed})

    return decorate


def _answers(info: Info, name: str) -> bool:
    """Whether the field's result union has a member of this name."""
    union = get_named_type(info._raw_info.return_type)
    return isinstance(union, GraphQLUnionType) and any(member.name == name for member in union.types)


def subscription(needed: Needed, description: str) -> Callable[[Callable[..., AsyncIterator[Any]]], Any]:
    """A field of Subscription that ``needed`` opens."""

    def decorate(resolve: Callable[..., AsyncIterator[Any]]) -> Any:
        @functools.wraps(resolve)
        def guarded(*args: Any, info: Info, **kwargs: Any) -> AsyncIterator[Any]:
            check(info, needed)
            return resolve(*args, info=info, **kwargs)

        return strawberry.subscription(resolver=guarded, description=description, metadata={"permission": needed})

    return decorate
