"""What every server can do, whatever it speaks: be checked, take a piece of work, be followed, cancelled, fetched from.

One suite of tests (``tests/engine/servers/test_contract.py``) runs on every client. What a server answers is never
trusted: bodies are bounded in size and time, redirects are not followed, names of files are only names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from flow.definition import Definition
from flow.errors import Category, Failure
from flow.servers import CheckOutcome, ServerType

#: Seconds that a health check may take.
CHECK_S = 3.0
#: The largest answer that is read, other than a file that is fetched.
MAX_ANSWER = 1 << 20

#: What ``follow`` says on the way: how much is done from 0 to 1 (None: unknown), and a sentence ("" for none).
#: Never blocks, never raises.
Report = Callable[[float | None, str], None]


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """All that a client must know of its server. ``url`` has no slash at its end."""

    id: str
    project_id: str
    name: str
    type: ServerType
    url: str
    batch_size: int
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work. The same ``id`` submitted again is the same work, never a second one.

    ``definition`` is version ``version_id`` of the workflow. ``input`` is the instance's input and names ``file`` where
    the workflow wants it; a client that must upload the file itself (ComfyUI) reads it from ``file``. ``output_dir`` is
    where the caller will put what is fetched, for a server that shares our file system and wants to know.
    ``parameters`` overlay the definition's. ``timeout`` is the server's to know; the caller bounds ``follow`` by it and
    then calls ``cancel``. ``callback`` is where an ``http`` server may report the end, with its one-time token.
    """

    id: str
    project_id: str
    workflow_id: str
    version_id: str
    definition: Definition
    input: Any = None
    file: Path | None = None
    output_dir: Path | None = None
    timeout: timedelta | None = None
    priority: int = 5
    parameters: Mapping[str, Any] = field(default_factory=dict)
    created_by: str | None = None
    callback: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """How a server is. ``latency_ms`` is None where nothing came back; ``message`` says what was wrong."""

    outcome: CheckOutcome
    latency_ms: float | None = None
    capabilities: Mapping[str, Any] | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that the work made, still at the server.

    ``name`` is the server's word: shown, and taken apart for its suffix, but **never** a path of ours. ``size`` is its
    word too. ``locator`` is what the client needs to fetch it: JSON values, to be stored and handed back as they are.
    """

    name: str
    locator: Mapping[str, Any]
    media_type: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The work is done."""

    output: Any = None
    files: tuple[OutputFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed, or (``server_lost``) its server did: then another server may be given the work.

    Category CANCELED: it was cancelled there. RATE_LIMIT: the server takes nothing now; try it again, after
    ``retry_after_seconds`` if that is given.
    """

    failure: Failure
    server_lost: bool = False


class ServerFailed(Exception):
    """A server did not do what it was asked; ``failed`` says why, and whether the server itself is lost."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.failure.message)
        self.failed = failed


class ServerClient(Protocol):
    """Speaks with one server. Safe to use from many tasks of one event loop at once.

    Every method but ``check`` may take long and is cancellable; cancelling ``follow`` leaves the work running.
    """

    async def check(self) -> Checked:
        """How the server is, within ``CHECK_S`` seconds; never raises for what the server does."""

    async def submit(self, work: Work) -> str:
        """Hand over the work; the server's reference to it, which the caller stores before it follows.

        Submitting again, after a reply that was lost or a restart, gives the same reference and starts nothing new.
        Raises ServerFailed.
        """

    async def follow(self, ref: str, report: Report) -> Done | Failed:
        """Wait for the end, in any process, also after a restart and for work that ended long ago."""

    async def cancel(self, ref: str) -> None:
        """Ask the server to stop the work; returns when it has been told. Work that has ended, or that it doesn't
        know (any more), is no error. Raises ServerFailed if the server can't be told.
        """

    def fetch(self, ref: str, file: OutputFile) -> AsyncIterator[bytes]:
        """The file's content in pieces. Raises ServerFailed; the caller bounds the size."""

    async def close(self) -> None:
        """Give back connections; the client is not used any more."""


def lost(code: str, message: str, *, category: Category = Category.CONNECTION, **details: Any) -> Failed:
    """The server can't be reached or relied on: the work may go to another one."""
    return Failed(Failure(code=code, category=category, message=message, details=details), server_lost=True)


def refused(code: str, message: str, *, category: Category = Category.VALIDATION, **details: Any) -> Failed:
    """The work itself is at fault: another server would say the same."""
    return Failed(Failure(code=code, category=category, message=message, details=details))
