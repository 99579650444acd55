"""How a mutation says no: refusals as types of the schema, and the one table from ``flow.errors`` to them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import strawberry
from strawberry import field

from engine.tasks import Unavailable
from flow import errors
from flow.servers import ServerStatus
from graph.objects import derived
from graph.scalars import JSON

if TYPE_CHECKING:
    from graph.servers import Server
    from graph.tasks import Task


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
    SERVER_UNAVAILABLE = strawberry.enum_value(
        "SERVER_UNAVAILABLE", description="No server can take this now; `reason` says why."
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


strawberry.enum(
    ServerStatus,
    description="Where a server is in its life. Health checks move it among all but MAINTENANCE, which is set and left "
    "by people.",
)
strawberry.enum(
    Unavailable,
    name="ServerUnavailableReason",
    description="DISABLED: somebody took it out of use. NOT_ONLINE: `status` says how it is. BUSY: all its slots are "
    "taken. WORKFLOW_NOT_FOUND: the project has no such workflow.",
)


@strawberry.type(description="No server can take this now. Nothing was stored; try again, or name another server.")
class ServerUnavailable(UserError):
    """See ``engine.tasks.Unavailable``."""

    reason: Unavailable = field(description="Why.")
    status: ServerStatus | None = field(description="How the server is, if it is NOT_ONLINE.")
    server_id: strawberry.Private[str | None]
    task_id: strawberry.Private[str | None]

    @derived("The server.")
    async def server(self, info: strawberry.Info) -> Annotated[Server, strawberry.lazy("graph.servers")] | None:
        """By loader."""
        from graph.servers import server

        row = await info.context.load.server.load(self.server_id) if self.server_id else None
        return None if row is None else server(row, info.context.actor)

    @derived("A task that it works on, if it is BUSY.")
    async def busy_with(self, info: strawberry.Info) -> Annotated[Task, strawberry.lazy("graph.tasks")] | None:
        """By loader."""
        from graph.tasks import task

        row = await info.context.load.task.load(self.task_id) if self.task_id else None
        return None if row is None else task(row, info.context.actor)


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
        case errors.Conflict(code="SERVER_UNAVAILABLE", details=details):
            return ServerUnavailable(
                code=ErrorCode.SERVER_UNAVAILABLE,
                message=error.message,
                path=path,
                reason=Unavailable(details["reason"]),
                status=ServerStatus(details["status"]) if details.get("status") else None,
                server_id=details.get("server"),
                task_id=details.get("task"),
            )
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
