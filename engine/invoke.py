"""Around every handler: its parameters are decoded before it, and what it raises becomes a failure after it."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from engine.artifacts import ArtifactMissing
from engine.calls import Broke, Call, Report
from engine.nodes.contract import Context, NodeError, NodeType, Stop, Surroundings, plain_fields, plain_text
from engine.output import OutputRefused
from flow import jsonschemas
from flow.errors import Category, Failure
from flow.events import Usage

MAX_MESSAGE = 4_000
MAX_TRACEBACK = 16_000
_AT = re.compile(r" - at `\$(.*)`$")


def context(
    kind: NodeType, call: Call, surroundings: Surroundings, report: Callable[[Report], None], stop: Stop
) -> Context[Any]:
    """What the handler gets. Raises NodeError VALIDATION, PARAMETERS_INVALID, if the rendered parameters don't fit."""
    return Context(call, parameters(kind, call.parameters), surroundings, report, stop)


def parameters(kind: NodeType, given: dict[str, Any]) -> Any:
    """The rendered parameters as the handler wants them: its struct, or the dict checked against its schema.

    Raises NodeError VALIDATION with code PARAMETERS_INVALID and the pointer of the first mismatch.
    """
    if kind.parameters_type is not None:
        try:
            return msgspec.convert(given, kind.parameters_type)
        except msgspec.ValidationError as problem:
            text = str(problem)
            place = _AT.search(text)
            pointer = re.sub(r"\.|\[", "/", place[1]).replace("]", "") if place else ""
            raise _bad_parameters(kind, pointer, text) from None
    if len(kind.parameters_schema) > 1:  # more than {"type": "object"}
        for mismatch in jsonschemas.mismatches(_validator(msgspec.json.encode(kind.parameters_schema)), given):
            raise _bad_parameters(kind, mismatch.pointer, mismatch.message)
    return given


def _bad_parameters(kind: NodeType, pointer: str, why: str) -> NodeError:
    return NodeError(
        f"The parameters do not fit {kind.name}: {why}",
        category=Category.VALIDATION,
        code="PARAMETERS_INVALID",
        details={"pointer": f"/parameters{pointer}"},
    )


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> Any:
    return jsonschemas.validator(msgspec.json.decode(schema))


def broke(call: Call, problem: BaseException, usage: Usage | None = None) -> Broke:
    """The failure that an exception of a handler amounts to."""
    match problem:
        case NodeError():
            failure = Failure(
                problem.code,
                problem.category,
                problem.message,
                retryable=problem.retryable,
                retry_after_seconds=problem.retry_after_seconds,
                details=problem.details,
            )
        case OutputRefused():
            failure = problem.failure
        case MemoryError():
            failure = out_of_memory(call)
        case ArtifactMissing():
            failure = Failure("ARTIFACT_MISSING", Category.VALIDATION, str(problem))
        case OSError() if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            failure = Failure("DISK_FULL", Category.RESOURCE, f"There is no space left: {problem}")
        case _:
            lines = traceback.format_exception(problem)
            failure = Failure(
                "HANDLER_RAISED",
                Category.CODE,
                f"{type(problem).__name__}: {_said(problem)}",
                traceback=plain_text("".join(lines)[-MAX_TRACEBACK:], MAX_TRACEBACK),
            )
    return broken(call, failure, usage)


def _said(problem: BaseException) -> str:
    """The exception's own words; a handler's exception may be unable to say any."""
    try:
        return str(problem)
    except Exception:
        return "(its message can't be shown)"


def broken(call: Call, failure: Failure, usage: Usage | None = None) -> Broke:
    """The failure with its node and attempt, in text that can be stored."""
    return Broke(
        msgspec.structs.replace(
            failure,
            node_id=call.node_id,
            attempt=call.attempt,
            message=plain_text(failure.message, MAX_MESSAGE),
            code=plain_text(failure.code, 100),
            details=plain_fields(failure.details),
        ),
        usage,
    )


def out_of_memory(call: Call, limit_mb: int | None = None) -> Failure:
    """The handler wanted more memory than it may have."""
    allowed = f" ({limit_mb:,} MB)" if limit_mb is not None else ""
    return Failure("MEMORY_LIMIT", Category.RESOURCE, f"{call.type} needs more memory than it may have{allowed}.")


def timed_out(call: Call) -> Failure:
    """The attempt took longer than the node's ``timeout``."""
    return Failure(
        "NODE_TIMEOUT", Category.TIMEOUT, f"The attempt did not end within {call.timeout.total_seconds():g} s."
    )


def silent(call: Call) -> Failure:
    """The handler gave no sign of life for the node's ``heartbeat_timeout``."""
    seconds = call.heartbeat_timeout.total_seconds() if call.heartbeat_timeout else 0.0
    return Failure("HEARTBEAT_TIMEOUT", Category.TIMEOUT, f"The handler gave no sign of life for {seconds:g} s.")
