"""The GraphQL endpoint as one ASGI application: HTTP and sockets at the same address."""

from __future__ import annotations

from collections.abc import Collection

import strawberry
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from graph.access import Authenticate, ContextFactory
from graph.execution import Execution
from graph.http import GraphQLOverHTTP, Playground
from graph.limits import Limits
from graph.websocket import GraphQLOverWebSocket


class GraphQLView:
    """Serves ``schema``; ``context`` makes what resolvers see, anew for each operation.

    ``allowed_origins`` are the origins (``https://host:port``) of other sites' pages that may use
    it; programs and our own pages always may.
    """

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        authenticate: Authenticate,
        context: ContextFactory,
        limits: Limits | None = None,
        registry: CollectorRegistry | None = None,
        allowed_origins: Collection[str] = (),
        playground: Playground | None = None,
    ) -> None:
        execution = Execution(schema, limits or Limits(), registry or CollectorRegistry())
        origins = frozenset(allowed_origins)
        self.http = GraphQLOverHTTP(
            execution, authenticate=authenticate, context=context, allowed_origins=origins, playground=playground
        )
        self.socket = GraphQLOverWebSocket(
            execution, authenticate=authenticate, context=context, allowed_origins=origins
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.socket.serve(WebSocket(scope, receive, send))
        else:
            response = await self.http.respond(Request(scope, receive))
            await response(scope, receive, send)
