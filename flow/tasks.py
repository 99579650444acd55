"""The life of a task, of one of its runs (an execution) and of its items: states, and what may follow what."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

BATCH = "batch"
WORKFLOW = "workflow"


class TaskStatus(StrEnum):
    """The life of a task, of each of its executions, and of each of its items."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"

    @property
    def terminal(self) -> bool:
        """True when nothing more happens unless somebody asks for it."""
        return self in TERMINAL_TASK


class TaskStep(StrEnum):
    """What happens to a task, an execution or an item. AGAIN: somebody lets what has ended run once more."""

    START = "start"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    GIVE_BACK = "give back"
    AGAIN = "again"


T, S = TaskStatus, TaskStep

TERMINAL_TASK = frozenset({T.COMPLETED, T.FAILED, T.CANCELED})

TASK_TRANSITIONS: Mapping[tuple[TaskStatus, TaskStep], TaskStatus] = {
    (T.PENDING, S.START): T.RUNNING,
    (T.PENDING, S.FAIL): T.FAILED,
    (T.PENDING, S.CANCEL): T.CANCELED,
    (T.RUNNING, S.COMPLETE): T.COMPLETED,
    (T.RUNNING, S.FAIL): T.FAILED,
    (T.RUNNING, S.CANCEL): T.CANCELED,
    (T.COMPLETED, S.AGAIN): T.PENDING,
    (T.FAILED, S.AGAIN): T.PENDING,
    (T.CANCELED, S.AGAIN): T.PENDING,
}

#: As a task; besides, a server that is lost gives its items back, and what is completed is never done again.
ITEM_TRANSITIONS: Mapping[tuple[TaskStatus, TaskStep], TaskStatus] = {
    (T.PENDING, S.START): T.RUNNING,
    (T.PENDING, S.FAIL): T.FAILED,
    (T.PENDING, S.CANCEL): T.CANCELED,
    (T.RUNNING, S.GIVE_BACK): T.PENDING,
    (T.RUNNING, S.COMPLETE): T.COMPLETED,
    (T.RUNNING, S.FAIL): T.FAILED,
    (T.RUNNING, S.CANCEL): T.CANCELED,
    (T.FAILED, S.AGAIN): T.PENDING,
    (T.CANCELED, S.AGAIN): T.PENDING,
}

#: An execution is one run: it never runs again, the task gets another one.
EXECUTION_TRANSITIONS: Mapping[tuple[TaskStatus, TaskStep], TaskStatus] = {
    (before, step): after for (before, step), after in TASK_TRANSITIONS.items() if step is not S.AGAIN
}

#: What a runner says about an execution → the step it means.
REPORTED: Mapping[TaskStatus, TaskStep] = {
    T.RUNNING: S.START,
    T.COMPLETED: S.COMPLETE,
    T.FAILED: S.FAIL,
    T.CANCELED: S.CANCEL,
}


class BatchSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a batch is to do: a workflow over the files of folders.

    The workflow is named by id or by name; ``version_id`` None: its current version. ``servers`` are ids or names of
    servers that share the work; none: this engine itself. A folder below a target counts if its name contains one of
    ``folder_keywords``, whatever the case (none given: all do, and the target itself). ``file_patterns`` are globs on
    the file's name; none: what the workflow's input takes. ``item_retries``: how often an item that failed for a
    passing reason is tried again. ``parameters`` overlay the definition's, and fill the inputs that have their names.
    """

    target_folders: tuple[str, ...]
    workflow_id: str | None = None
    workflow_name: str | None = None
    version_id: str | None = None
    folder_keywords: tuple[str, ...] = ()
    file_patterns: tuple[str, ...] = ()
    recursive: bool = True
    servers: tuple[str, ...] = ()
    output_root: str | None = None
    parameters: dict[str, Any] = {}
    on_item_error: Literal["continue", "stop"] = "continue"
    item_retries: int = 2
    priority: int = 5
    timeout: timedelta | None = None
    name: str | None = None
    description: str | None = None


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task of one run is to do.

    ``type`` is ``workflow`` (one run of the workflow named by id or name, with ``input``) or a registered node type
    (one such node, with ``parameters`` and ``input``). ``server``: id or name; None: this engine itself.
    """

    type: str
    workflow_id: str | None = None
    workflow_name: str | None = None
    version_id: str | None = None
    input: Any = None
    parameters: dict[str, Any] = {}
    server: str | None = None
    retries: int = 0
    priority: int = 5
    timeout: timedelta | None = None
    name: str | None = None
    description: str | None = None
