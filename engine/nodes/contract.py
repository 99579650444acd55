"""The handler contract: everything that the author of a node type meets.

A node type is a function with metadata::

    @node("text/shout", title="Shout", category="text", parameters=Shout)
    async def shout(ctx: Context[Shout]) -> dict[str, str]:
        return {"text": ctx.parameters.text.upper()}

``async def`` handlers run on the event loop, plain functions in a thread, or, with
``placement=Placement.PROCESS``, in a child process that can be killed, limited and measured.
A handler returns JSON, or raises ``NodeError``.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from engine import clock
from engine.artifacts import ArtifactStore
from engine.calls import Beat, Call, Level, LogLine, Progress, Report
from engine.files import Files, PathRefused
from engine.outbound import Outbound
from flow.definition import Resources
from flow.errors import Category, WorkflowError
from flow.events import Artifact

if TYPE_CHECKING:
    import httpx

    from engine.servers.contract import ServerAddress

P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., Any])

MAX_LOG_LINES = 1_000  # an attempt's log lines, after which further ones are dropped
MAX_LOG_CHARACTERS = 8_000
PROGRESS_INTERVAL = 0.1  # seconds between two progress reports that are kept
_NAME = re.compile(r"[a-z][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)+\Z")


class Placement(StrEnum):
    """Where a handler runs: on the event loop, in a thread, or in a child process.

    FLOW: nowhere. The node is a decision of the flow itself, it has no handler and holds no worker.
    """

    ASYNC = "async"
    THREAD = "thread"
    PROCESS = "process"
    FLOW = "flow"


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node: what the designer needs to draw its form, the engine to run it, and the docs to explain it.

    ``unavailable`` is the reason why it can't run here (a missing extra, say), None where it can.
    """

    name: str
    title: str
    description: str
    category: str
    icon: str
    version: str
    parameters_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    placement: Placement
    resources: Resources
    handler: Callable[..., Any]
    parameters_type: type[Any] | None = None
    unavailable: str | None = None


class NodeError(Exception):
    """A handler's own word on why it failed.

    ``category`` says what kind of failure it is (the retry policy speaks in these words), ``code``
    is stable for programs, ``retryable`` overrules the category, ``retry_after_seconds`` is the
    least wait before the next attempt, ``details`` is JSON.
    """

    def __init__(
        self,
        message: str,
        *,
        category: Category = Category.CODE,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = str(message)
        self.category = Category(category)
        self.code = str(code or "NODE_FAILED")
        self.retryable = retryable
        self.retry_after_seconds = _seconds(retry_after_seconds)
        self.details = dict(details or {})


def _seconds(given: float | None) -> float | None:
    """A wait of up to a day; None for what is no wait."""
    return min(float(given), 86_400.0) if given is not None and given >= 0 else None


def node(
    name: str,
    *,
    title: str,
    description: str | None = None,
    category: str | None = None,
    icon: str = "box",
    version: str = "1.0.0",
    parameters: type[Any] | Mapping[str, Any] | None = None,
    output: type[Any] | Mapping[str, Any] | None = None,
    placement: Placement | None = None,
    resources: Resources | None = None,
    unavailable: str | None = None,
) -> Callable[[F], F]:
    """Make a function the handler of the node type ``name`` (``family/kind``, lower case).

    ``parameters`` is a msgspec.Struct (the handler gets an instance) or a JSON Schema (it gets a
    dict); None: anything goes. ``description`` defaults to the function's docstring, ``category``
    to the first part of the name, ``placement`` to the loop for ``async def`` and a thread for a
    plain function. Raises ValueError where the declaration contradicts itself.
    """
    if not _NAME.match(name):
        raise ValueError(f"{name!r} is no name for a node type: it is 'family/kind' in lower case, digits and dashes.")

    def declare(handler: F) -> F:
        is_async = inspect.iscoroutinefunction(handler)
        where = placement or (Placement.ASYNC if is_async else Placement.THREAD)
        if is_async != (where is Placement.ASYNC):
            raise ValueError(
                f"{name}: an 'async def' handler runs on the loop, a plain function in a thread or a process; "
                f"this one can't be placed {where.value!r}."
            )
        if where is Placement.PROCESS and "<locals>" in handler.__qualname__:
            raise ValueError(f"{name}: a handler for a child process must be importable, at the top of its module.")
        kind = NodeType(
            name=name,
            title=title,
            description=inspect.cleandoc(description or handler.__doc__ or title),
            category=category or name.partition("/")[0],
            icon=icon,
            version=version,
            parameters_schema=_schema(parameters) or {"type": "object"},
            output_schema=_schema(output),
            placement=where,
            resources=resources or Resources(),
            handler=handler,
            parameters_type=parameters if isinstance(parameters, type) else None,
            unavailable=unavailable,
        )
        handler.__node_type__ = kind  # type: ignore[attr-defined]
        return handler

    return declare


def node_type(handler: object) -> NodeType | None:
    """The node type that a function was declared to be with ``@node``."""
    kind = getattr(handler, "__node_type__", None)
    return kind if isinstance(kind, NodeType) else None


def _schema(declared: type[Any] | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON Schema of a declaration, with the type itself at the top rather than behind a ``$ref``."""
    if declared is None:
        return None
    if not isinstance(declared, type):
        return dict(declared)
    (_,), components = msgspec.json.schema_components([declared], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = components.pop(declared.__name__)
    schema.pop("title", None)
    if components:
        schema["$defs"] = components
    return schema


class Log:
    """A node's log: lines with a level and fields, seen live by whoever watches the instance."""

    __slots__ = ("_lines", "_report")

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report
        self._lines = 0

    def debug(self, message: str, **fields: Any) -> None:
        self.write("debug", message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self.write("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self.write("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self.write("error", message, fields)

    def write(self, level: Level, message: str, fields: dict[str, Any]) -> None:
        """Add a line. After 1,000 lines an attempt's further ones are dropped, with one line that says so."""
        self._lines += 1
        if self._lines > MAX_LOG_LINES:
            if self._lines == MAX_LOG_LINES + 1:
                self._report(LogLine("warning", f"The log ends here: an attempt keeps {MAX_LOG_LINES} lines."))
            return
        self._report(LogLine(level, plain_text(str(message), MAX_LOG_CHARACTERS), plain_fields(fields)))


class Keeping(ArtifactStore):
    """The artifact store, as one attempt sees it: ``kept`` is what the attempt put, for the journal to record."""

    __slots__ = ("kept",)

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__(store.root)
        self.kept: list[Artifact] = []

    def put_bytes(self, content: bytes, media_type: str = "application/octet-stream") -> Artifact:
        self.kept.append(artifact := super().put_bytes(content, media_type))
        return artifact

    def put_file(self, source: Path, media_type: str = "application/octet-stream") -> Artifact:
        self.kept.append(artifact := super().put_file(source, media_type))
        return artifact


class Stop:
    """Whether the attempt is to stop; shared between whoever asks and the handler that looks."""

    __slots__ = ("requested",)

    def __init__(self) -> None:
        self.requested = False


class Cancelled(BaseException):
    """The attempt was cancelled or ran out of time: clean up in ``finally``, and let it go on."""


@dataclass(slots=True)
class Surroundings:
    """What all attempts in one process share."""

    files: Files
    artifacts: ArtifactStore
    outbound: Outbound
    #: The ComfyUI server of a project that has this name; without a name its only one. Raises WorkflowError.
    #: None in a child process, and where no engine is around.
    comfyui: Callable[[str, str | None], Awaitable[ServerAddress]] | None = None


class Context(Generic[P]):
    """What a handler gets: its parameters and input, and the ways to speak to the engine and the world."""

    __slots__ = (
        "_artifacts",
        "_call",
        "_log",
        "_next_progress",
        "_report",
        "_started",
        "_stop",
        "_surroundings",
        "input",
        "parameters",
    )

    parameters: P
    input: Any

    def __init__(
        self, call: Call, parameters: P, surroundings: Surroundings, report: Callable[[Report], None], stop: Stop
    ) -> None:
        self.parameters = parameters
        self.input = call.input
        self._call = call
        self._surroundings = surroundings
        self._report = report
        self._stop = stop
        self._started = clock.monotonic()
        self._next_progress = 0.0
        self._log: Log | None = None
        self._artifacts: Keeping | None = None

    @property
    def log(self) -> Log:
        """The node's log."""
        if self._log is None:
            self._log = Log(self._report)
        return self._log

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the work is. At most ten a second are kept, and the one that reaches ``total`` always.

        A number that is none (NaN, infinity) is only a sign of life.
        """
        if not math.isfinite(done) or (total is not None and not math.isfinite(total)):
            self._report(Beat())
            return
        at = clock.monotonic()
        if at < self._next_progress and not (total is not None and done >= total):
            self._report(Beat())
            return
        self._next_progress = at + PROGRESS_INTERVAL
        said = None if message is None else plain_text(str(message), 500)
        self._report(Progress(float(done), None if total is None else float(total), said))

    def heartbeat(self) -> None:
        """A sign of life, for a node with a ``heartbeat_timeout``. Log lines and progress count as well."""
        self._report(Beat())

    @property
    def cancelled(self) -> bool:
        """Whether the work is no longer wanted. A handler in a thread looks here; the others are stopped."""
        return self._stop.requested

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if the work is no longer wanted."""
        if self._stop.requested:
            raise Cancelled

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this node in this instance: hand it to whatever must act only once."""
        return self._call.idempotency_key

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self._call.attempt

    @property
    def remaining(self) -> timedelta:
        """How much time this attempt has left."""
        left = self._call.timeout.total_seconds() - (clock.monotonic() - self._started)
        return timedelta(seconds=max(0.0, left))

    @property
    def deadline(self) -> datetime:
        """When this attempt is stopped (UTC)."""
        return clock.now() + self.remaining

    @property
    def instance_id(self) -> str:
        """The instance that the node runs in."""
        return self._call.instance_id

    @property
    def project_id(self) -> str:
        """The project of the instance."""
        return self._call.project_id

    @property
    def node_id(self) -> str:
        """The node's id in the definition."""
        return self._call.node_id

    @property
    def path(self) -> str:
        """The node's place in this run: its id, with the iteration in a loop, ``resize[3]/encode``."""
        return self._call.path

    @property
    def artifacts(self) -> Keeping:
        """The store for large values. It does file I/O: on the loop, call it through ``asyncio.to_thread``."""
        if self._artifacts is None:
            self._artifacts = Keeping(self._surroundings.artifacts)
        return self._artifacts

    @property
    def kept(self) -> tuple[Artifact, ...]:
        """The artifacts that this attempt has put so far."""
        return tuple(self._artifacts.kept) if self._artifacts is not None else ()

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that nodes may touch."""
        return self._surroundings.files.roots

    def reading(self, path: str) -> Path:
        """The existing file that ``path`` names within the allowed folders; a relative path is looked for in each.

        Raises NodeError VALIDATION with code PATH_NOT_ALLOWED or FILE_NOT_FOUND.
        """
        return self._resolved(self._surroundings.files.reading, path)

    def writing(self, path: str) -> Path:
        """Where ``path`` is to be written; a relative path lies in the first allowed folder that can be written.

        Raises NodeError VALIDATION with code PATH_NOT_ALLOWED or NO_WRITABLE_FOLDER.
        """
        return self._resolved(self._surroundings.files.writing, path)

    @staticmethod
    def _resolved(resolve: Callable[[str], Path], path: str) -> Path:
        try:
            return resolve(path)
        except PathRefused as refused:
            raise NodeError(str(refused), category=refused.category, code=refused.code) from None

    async def comfyui(self, name: str | None) -> ServerAddress:
        """The project's ComfyUI server of this name; without a name its only one.

        Raises NodeError VALIDATION with code COMFYUI_SERVER_UNKNOWN.
        """
        try:
            if self._surroundings.comfyui is not None:
                return await self._surroundings.comfyui(self.project_id, name)
            message = "There are no registered servers here."
        except WorkflowError as problem:
            message = problem.message
        raise NodeError(message, category=Category.VALIDATION, code="COMFYUI_SERVER_UNKNOWN")

    @property
    def server_http(self) -> httpx.AsyncClient:
        """The HTTP client for servers that execute work, on the loop: it has connections of its own."""
        return self._surroundings.outbound.server_client

    @property
    def http(self) -> httpx.AsyncClient:
        """The HTTP client for handlers on the loop: guarded, pooled, without the environment's proxies."""
        return self._surroundings.outbound.client

    @property
    def http_sync(self) -> httpx.Client:
        """The HTTP client for handlers in threads and processes."""
        return self._surroundings.outbound.sync_client


def plain_text(text: str, limit: int) -> str:
    """Text that any database takes: no NUL, no lone surrogate, at most ``limit`` characters."""
    if len(text) > limit:
        text = text[:limit] + "…"
    if "\0" in text:
        text = text.replace("\0", "�")
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def plain_fields(fields: Mapping[str, Any], limit: int = 16_384) -> dict[str, Any]:
    """The fields as JSON; what is not JSON is written as its ``repr``, and too much of it is left out."""
    if not fields:
        return {}
    try:
        encoded = msgspec.json.encode(fields, enc_hook=repr)
        if len(encoded) > limit:
            return {"truncated": plain_text(encoded[:1_000].decode("utf-8", "ignore"), 1_000)}
        if b"\\u0000" in encoded:
            encoded = encoded.replace(b"\\u0000", b"\\ufffd")
        plain: dict[str, Any] = msgspec.json.decode(encoded)
        return plain
    except (TypeError, ValueError, RecursionError, OverflowError):
        return {"repr": plain_text(repr(fields), 1_000)}
