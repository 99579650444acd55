"""Named refusals: every way in which Mirrorflow says no, each with a stable code.

``WorkflowError`` and its children are for callers (they reach a client through
``graph/errors.py``). ``Failure`` is data: why a node or an instance failed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Category(StrEnum):
    """What kind of failure a node met; the retry policy speaks in these words."""

    VALIDATION = "VALIDATION"
    EXPRESSION = "EXPRESSION"
    TIMEOUT = "TIMEOUT"
    CONNECTION = "CONNECTION"
    RATE_LIMIT = "RATE_LIMIT"
    HTTP_CLIENT = "HTTP_CLIENT"
    HTTP_SERVER = "HTTP_SERVER"
    RESOURCE = "RESOURCE"
    CODE = "CODE"
    WORKER_LOST = "WORKER_LOST"
    CANCELED = "CANCELED"
    INTERNAL = "INTERNAL"


#: Trying these again gives the same answer, so they are not retried unless the node says so.
NOT_RETRIED = frozenset(
    {Category.VALIDATION, Category.EXPRESSION, Category.HTTP_CLIENT, Category.CODE, Category.CANCELED}
)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a node's attempt, or an instance, failed.

    ``retryable`` is the handler's own word and overrules the category where it is given.
    ``retry_after_seconds`` is the remote side's wish (HTTP ``Retry-After``).
    ``traceback`` is for the owners of the workflow only.
    """

    code: str
    category: Category
    message: str
    node_id: str | None = None
    attempt: int | None = None
    retryable: bool | None = None
    retry_after_seconds: float | None = None
    details: dict[str, Any] = {}
    traceback: str | None = None


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing wrong with a document: a stable code, a JSON pointer to the place, and a sentence."""

    pointer: str
    code: str
    message: str


class WorkflowError(Exception):
    """A refusal with a stable ``code``, a message that names the remedy, and the ``path`` of the input at fault."""

    code = "REFUSED"

    def __init__(self, message: str, *, path: tuple[str, ...] = (), code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        if code is not None:
            self.code = code


class NotFound(WorkflowError):
    """No such object in the caller's project (another project's object is not found either)."""

    code = "NOT_FOUND"

    def __init__(self, kind: str, id: str, *, path: tuple[str, ...] = ()) -> None:
        super().__init__(f"There is no {kind} {id!r} in this project.", path=path)
        self.kind = kind
        self.id = id


class Invalid(WorkflowError):
    """The input is wrong; ``problems`` lists every place at once."""

    code = "VALIDATION_FAILED"

    def __init__(self, problems: list[Problem], message: str | None = None, *, path: tuple[str, ...] = ()) -> None:
        super().__init__(message or "; ".join(problem.message for problem in problems[:3]), path=path)
        self.problems = problems


class Conflict(WorkflowError):
    """The object is not as the caller believed: ``details`` says how it is."""

    code = "CONFLICT"

    def __init__(self, message: str, *, path: tuple[str, ...] = (), code: str | None = None, **details: Any) -> None:
        super().__init__(message, path=path, code=code)
        self.details = details


class IllegalTransition(Conflict):
    """A state machine does not allow this step; nothing was changed."""

    code = "ILLEGAL_TRANSITION"


class Denied(WorkflowError):
    """The caller may not do this; ``permission`` is what was missing."""

    code = "PERMISSION_DENIED"

    def __init__(self, permission: str, message: str | None = None) -> None:
        super().__init__(message or f"This needs the permission {permission}.")
        self.permission = permission


class QuotaExceeded(WorkflowError):
    """A limit of the project is reached."""

    code = "QUOTA_EXCEEDED"

    def __init__(self, message: str, *, limit: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class StorageUnavailable(WorkflowError):
    """The database can't store or answer now (locked, full, gone); nothing is half done, the call may be repeated."""

    code = "STORAGE_UNAVAILABLE"


class RedisUnavailable(WorkflowError):
    """The Redis of the settings can't be used; the message is one line with the remedy."""

    code = "REDIS_UNAVAILABLE"


class LeaseLost(WorkflowError):
    """This worker no longer holds the instance: another one has taken it. Drop the work, write nothing."""

    code = "LEASE_LOST"

    def __init__(self, instance_id: str, fence: int) -> None:
        super().__init__(f"The lease on {instance_id} (fence {fence}) is held by another worker.")
        self.instance_id = instance_id
        self.fence = fence
