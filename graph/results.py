"""How a mutation says no: refusals as types of the schema, and the one table from ``flow.errors`` to them."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec
import strawberry
from strawberry import field

from flow import errors
from graph.scalars import JSON


@strawberry.enum(description="What kind of refusal this is; stable, for programs to act upon.")
class ErrorCode(Enum):
    """The codes of the refusals that are answered as results."""

    VALIDATION_FAILED = strawberry.enum_value(
        "VALIDATION_FAILED", description="The input is wrong; `problems` says where."
    )
    NOT_FOUND = strawberry.enum_value("NOT_FOUND", description="There is no such object in your project.")
    CONFLICT = strawberry.enum_value(
        "CONFLICT", description="The object is not as you believed; `details` says how it is."
    )
    ILLEGAL_TRANSITION = strawberry.enum_value(
        "ILLEGAL_TRANSITION", description="The object's state does not allow this step."
    )
    CONCURRENCY_LIMIT = strawberry.enum_value(
        "CONCURRENCY_LIMIT",
        description="As many runs with this concurrency key as its workflow allows are there, and it skips others.",
    )
    PERMISSION_DENIED = strawberry.enum_value("PERMISSION_DENIED", description="Your token does not allow this.")
    QUOTA_EXCEEDED = strawberry.enum_value("QUOTA_EXCEEDED", description="A limit of the project is reached.")


@strawberry.interface(description="A refusal: nothing was changed.")
class UserError:
    """What every refusal has."""

    code: ErrorCode = field(description="What kind of refusal this is.")
    message: str = field(description="A sentence for people; it names the remedy where there is one.")
    path: list[str] | None = field(default=None, description="The input at fault, from the outermost name inwards.")


@strawberry.type(description="One thing that is wrong with an input or a definition.")
class Problem:
    """See ``flow.errors.Problem``."""

    code: str = field(description="A stable name of the mistake, such as EDGE_TARGET_MISSING.")
    pointer: str = field(
        description="A JSON pointer to the place, such as /nodes/3/type; empty for the whole document."
    )
    message: str = field(description="A sentence that says what is wrong.")


@strawberry.type(description="The input is wrong. Every problem is listed at once.")
class ValidationFailed(UserError):
    """See ``flow.errors.Invalid``."""

    problems: list[Problem] = field(description="Everything that is wrong.")


@strawberry.type(
    description="There is no such object in your project (another project's objects are not found either)."
)
class NotFound(UserError):
    """See ``flow.errors.NotFound``."""

    kind: str = field(description="What was looked for, such as workflow.")
    id: strawberry.ID = field(description="The id or name that was looked for.")


@strawberry.type(
    description="The object is not as you believed, or its state does not allow this. Nothing was overwritten."
)
class Conflict(UserError):
    """See ``flow.errors.Conflict``."""

    details: JSON = field(description="How the object is now, such as both versions or its status.")


@strawberry.type(description="Your token does not allow this.")
class PermissionDenied(UserError):
    """See ``flow.errors.Denied``."""

    permission: str = field(description="The permission that is missing.")


@strawberry.type(description="A limit of the project is reached.")
class QuotaExceeded(UserError):
    """See ``flow.errors.QuotaExceeded``."""

    limit: int | None = field(description="The limit.")


def problem(found: errors.Problem) -> Problem:
    """A problem as the schema shows it."""
    return Problem(code=found.code, pointer=found.pointer, message=found.message)


def refusal_as_result(error: errors.WorkflowError) -> UserError | None:
    """The refusal as a result; None for those that a client can't foresee (they are top-level errors)."""
    path = list(error.path) or None
    match error:
        case errors.Invalid(problems=problems):
            shown = [problem(each) for each in problems]
            return ValidationFailed(code=ErrorCode.VALIDATION_FAILED, message=error.message, path=path, problems=shown)
        case errors.NotFound(kind=kind, id=id):
            return NotFound(code=ErrorCode.NOT_FOUND, message=error.message, path=path, kind=kind, id=strawberry.ID(id))
        case errors.Conflict(details=details):
            code = ErrorCode[error.code] if error.code in ErrorCode.__members__ else ErrorCode.CONFLICT
            plain: Any = msgspec.to_builtins(details, enc_hook=str)
            return Conflict(code=code, message=error.message, path=path, details=plain)
        case errors.Denied(permission=permission):
            return PermissionDenied(
                code=ErrorCode.PERMISSION_DENIED, message=error.message, path=path, permission=str(permission)
            )
        case errors.QuotaExceeded(limit=limit):
            return QuotaExceeded(code=ErrorCode.QUOTA_EXCEEDED, message=error.message, path=path, limit=limit)
        case _:
            return None
