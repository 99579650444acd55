"""What a client is told when something goes wrong: once, here, for every top-level error.

Refusals (``WorkflowError``) keep their code and message. Mistakes in the request say what is
wrong with it. Everything else is ours: the client gets ``INTERNAL`` and the request id, the log
gets the whole story under the same id. Nobody ever gets a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog
from graphql import GraphQLError, GraphQLSyntaxError

from flow.errors import Conflict, Invalid, WorkflowError

log = structlog.get_logger("graph")


class RequestError(Exception):
    """The request can't be carried out as it stands; ``status`` is the HTTP answer, ``code`` the stable name."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    def formatted(self) -> dict[str, Any]:
        """The error as it stands in the ``errors`` of an answer."""
        return {"message": self.message, "extensions": {"code": self.code}}


def formatted(errors: Sequence[GraphQLError], request_id: str, *, limit: int) -> list[dict[str, Any]]:
    """The errors as a client may see them: each with ``extensions.code``, at most ``limit`` of them."""
    return [_formatted(error, request_id) for error in errors[:limit]]


def refusal(error: WorkflowError) -> dict[str, Any]:
    """The ``extensions`` of a refusal: its code, and what else a program can act upon."""
    extensions: dict[str, Any] = {"code": error.code}
    if error.path:
        extensions["inputPath"] = list(error.path)
    match error:
        case Invalid(problems=problems):
            extensions["problems"] = msgspec.to_builtins(problems)
        case Conflict(details=details) if details:
            extensions["details"] = msgspec.to_builtins(details, enc_hook=str)
        case _:
            pass
    return extensions


def _formatted(error: GraphQLError, request_id: str) -> dict[str, Any]:
    cause = _cause(error)
    shown: dict[str, Any] = {"message": error.message}
    if error.locations:
        shown["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path is not None:
        shown["path"] = error.path
    match cause:
        case WorkflowError():
            shown["message"] = cause.message
            shown["extensions"] = refusal(cause)
        case RequestError():
            shown["message"] = cause.message
            shown["extensions"] = {"code": cause.code}
        case GraphQLError(extensions={"code": str()}):
            shown["extensions"] = dict(cause.extensions or {})
        case GraphQLSyntaxError():
            shown["extensions"] = {"code": "GRAPHQL_PARSE_FAILED"}
        case GraphQLError() if error.path is None or cause.nodes:
            # A variable or an argument that does not fit. (Without nodes: a value of ours that no scalar could write.)
            shown["extensions"] = {"code": "BAD_USER_INPUT"}
        case ValueError() if error.path is None:
            # A scalar's refusal of a variable or a literal; graphql-core's message says which and what was given.
            shown["extensions"] = {"code": "BAD_USER_INPUT"}
        case _:
            log.error("request failed", request_id=request_id, path=error.path, exc_info=cause)
            shown["message"] = f"Something went wrong on the server; its log has more under {request_id}."
            shown["extensions"] = {"code": "INTERNAL", "requestId": request_id}
    return shown


def _cause(error: GraphQLError) -> Exception:
    """The innermost reason: what a resolver raised, or the first error that graphql-core made itself."""
    cause: Exception = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    return cause
