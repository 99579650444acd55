"""GraphQL over HTTP, by the GraphQL-over-HTTP specification (draft of 2025): the 61 checks of the audit suite hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from graphql import OperationType
from starlette.requests import Request
from starlette.responses import Response

from graph.access import Authenticate, ContextFactory, origin_allowed, signed_in
from graph.documents import Operation, Refused
from graph.errors import RequestError
from graph.execution import Answer, Execution, encoded
from graph.request import Ask, ask, bad_json, bad_request, decoded

GRAPHQL = "application/graphql-response+json"
LEGACY = "application/json"

#: Answers a browser that opens the endpoint; None where this server has no page for it.
Playground = Callable[[Request], Awaitable[Response]]


class GraphQLOverHTTP:
    """The HTTP half of the endpoint."""

    def __init__(
        self,
        execution: Execution,
        *,
        authenticate: Authenticate,
        context: ContextFactory,
        allowed_origins: frozenset[str] = frozenset(),
        playground: Playground | None = None,
    ) -> None:
        self._execution = execution
        self._authenticate = authenticate
        self._context = context
        self._allowed_origins = allowed_origins
        self._playground = playground

    async def respond(self, request: Request) -> Response:
        """The answer to one request; refusals are answers too."""
        media = _media_type(request.headers.get("accept"))
        if media == "text/html" and request.method in ("GET", "HEAD") and "query" not in request.query_params:
            if self._playground is not None:
                return await self._playground(request)
            media = LEGACY
        request_id = request.scope.get("request_id", "-")
        try:
            if media is None:
                media = LEGACY
                raise RequestError(406, "NOT_ACCEPTABLE", f"This endpoint answers {GRAPHQL} or {LEGACY} only.")
            if not origin_allowed(request, self._allowed_origins):
                raise RequestError(403, "ORIGIN_REFUSED", "Pages of other sites may not use this server.")
            question = await self._ask(request)
            user = await signed_in(request, self._authenticate)
            operation, cost = self._execution.operation(question, signed_in=user is not None)
            _allow(operation, request)
            context = self._context(user, request)
            answer = await self._execution.answer(operation, cost, question, context, request_id)
            return Response(encoded(answer), _status(answer, media), media_type=media)
        except Refused as refused:
            answer = self._execution.refused(refused, request_id)
            # The older media type promises 200 for every well-formed request; the newer one says what it was.
            return Response(encoded(answer), 200 if media == LEGACY else 400, media_type=media)
        except RequestError as error:
            answer = self._execution.refused(error, request_id)
            return Response(encoded(answer), error.status, error.headers, media_type=media)

    async def _ask(self, request: Request) -> Ask:
        match request.method:
            case "POST":
                kind, _, parameters = request.headers.get("content-type", "").partition(";")
                charset = parameters.strip().lower()
                if kind.strip().lower() != LEGACY or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
                    raise RequestError(415, "UNSUPPORTED_MEDIA_TYPE", f"Send the request as {LEGACY} in UTF-8.")
                return ask(decoded(await body(request, self._execution.limits.body_bytes)))
            case "GET" | "HEAD":
                return ask(_parameters(request.query_params))
            case _:
                raise RequestError(405, "METHOD_NOT_ALLOWED", "Use POST, or GET for queries.", {"allow": "GET, POST"})


async def body(request: Request, limit: int) -> bytes:
    """The request's body. Raises RequestError 413 as soon as it is known to be longer than ``limit`` bytes.

    What still arrives then is thrown away piece by piece: hanging up would lose the client our answer.
    """
    too_large = RequestError(413, "BODY_TOO_LARGE", f"The body is limited to {limit:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > limit:
            raise too_large
    return bytes(received)


def _parameters(given: Mapping[str, str]) -> dict[str, Any]:
    if "query" not in given:
        raise bad_request('Give the document in the parameter "query", or POST it.')
    if any("\0" in value for value in given.values()):
        raise bad_json("a parameter holds the character NUL")
    members: dict[str, Any] = {name: given[name] for name in ("query", "operationName") if name in given}
    members |= {name: decoded(given[name]) for name in ("variables", "extensions") if given.get(name)}
    return members


def _allow(operation: Operation, request: Request) -> None:
    match operation.kind:
        case OperationType.MUTATION if request.method != "POST":
            raise RequestError(405, "METHOD_NOT_ALLOWED", "Mutations need POST.", {"allow": "POST"})
        case OperationType.SUBSCRIPTION:
            message = "Subscriptions run over a WebSocket at this same address (subprotocol graphql-transport-ws)."
            raise RequestError(400, "SUBSCRIPTION_NEEDS_SOCKET", message)
        case _:
            pass


def _status(answer: Answer, media: str) -> int:
    if answer.executed:
        return 200
    if answer.errors and answer.errors[0]["extensions"]["code"] == "TIMEOUT":
        return 504
    return 200 if media == LEGACY else 400


def _media_type(accept: str | None) -> str | None:
    """Which of our media types suits the client best, by weight, then by order; None where none does."""
    if not accept or not accept.strip():
        return LEGACY
    best: tuple[float, str] | None = None
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((_weight(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        offered = {GRAPHQL: GRAPHQL, LEGACY: LEGACY, "application/*": LEGACY, "*/*": LEGACY, "text/html": "text/html"}
        if (media := offered.get(name)) and weight > (best[0] if best else 0.0):
            best = (weight, media)
    return best[1] if best else None


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
