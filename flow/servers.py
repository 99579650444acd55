"""Servers, which execute work: their types, their states, and what a health check makes of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from flow.errors import Problem
from flow.problems import ProblemCode, shown
from flow.states import after

MAX_NAME = 255
MAX_URL = 2_000
MAX_TOKEN = 4_096
MAX_BATCH_SIZE = 10_000

#: So many failed checks one after the other take a server out of service.
FAILURES_IN_A_ROW = 3
#: So many results of checks are kept for each server.
CHECKS_KEPT = 100


class ServerType(StrEnum):
    """What a server speaks."""

    LOCAL = "local"
    HTTP = "http"
    MIRRORFLOW = "mirrorflow"
    COMFYUI = "comfyui"


class ServerStatus(StrEnum):
    """Where a server is in its life."""

    OFFLINE = "OFFLINE"
    ONLINE = "ONLINE"
    BUSY = "BUSY"
    MAINTENANCE = "MAINTENANCE"
    ERROR = "ERROR"


class CheckOutcome(StrEnum):
    """What came of asking a server how it is."""

    OK = "OK"
    #: It answers, and says itself that it takes no work now.
    BUSY = "BUSY"
    #: Nobody answers at that address, or the connection broke.
    REFUSED = "REFUSED"
    TIMEOUT = "TIMEOUT"
    #: It answers, but not as a server of its type does.
    WRONG_ANSWER = "WRONG_ANSWER"

    @property
    def failed(self) -> bool:
        """True when the server could not be relied on at that moment."""
        return self not in (CheckOutcome.OK, CheckOutcome.BUSY)


class ServerStep(StrEnum):
    """What moves a server from state to state: what checks find, and what people say."""

    FOUND_WELL = "found well"
    FOUND_BUSY = "found busy"
    FOUND_GONE = "found gone three times"
    FOUND_WRONG = "found answering wrongly three times"
    SET_ONLINE = "set ONLINE"
    SET_OFFLINE = "set OFFLINE"
    SET_BUSY = "set BUSY"
    SET_MAINTENANCE = "set MAINTENANCE"


S, T = ServerStatus, ServerStep

_CHECKED = {
    T.FOUND_WELL: S.ONLINE,
    T.FOUND_BUSY: S.BUSY,
    T.FOUND_GONE: S.OFFLINE,
    T.FOUND_WRONG: S.ERROR,
}
_SAID = {
    T.SET_ONLINE: S.ONLINE,
    T.SET_OFFLINE: S.OFFLINE,
    T.SET_BUSY: S.BUSY,
    T.SET_MAINTENANCE: S.MAINTENANCE,
}

#: Checks never touch MAINTENANCE; people leave it by saying what the server is, and the next check looks for itself.
SERVER_TRANSITIONS: Mapping[tuple[ServerStatus, ServerStep], ServerStatus] = {
    **{(at, step): to for at in S if at is not S.MAINTENANCE for step, to in _CHECKED.items()},
    **{(at, step): to for at in S for step, to in _SAID.items()},
}


def checked(status: ServerStatus, failures: int, outcome: CheckOutcome) -> tuple[ServerStatus, int]:
    """The status after a check, and how many have failed in a row by then.

    ``failures`` is their number before it. Up to the second failure in a row a server keeps its status.
    """
    failures = failures + 1 if outcome.failed else 0
    if status is S.MAINTENANCE:
        return status, failures
    match outcome:
        case CheckOutcome.OK:
            step = T.FOUND_WELL
        case CheckOutcome.BUSY:
            step = T.FOUND_BUSY
        case _ if failures < FAILURES_IN_A_ROW:
            return status, failures
        case CheckOutcome.REFUSED | CheckOutcome.TIMEOUT:
            step = T.FOUND_GONE
        case CheckOutcome.WRONG_ANSWER:
            step = T.FOUND_WRONG
    return after(SERVER_TRANSITIONS, status, step), failures


#: What people may set; ERROR is for checks to find.
SETTABLE: Mapping[ServerStatus, ServerStep] = {to: step for step, to in _SAID.items()}


def url_problem(url: str) -> str | None:
    """Why a server can't be at this address, in a sentence; None if it can be."""
    if not url:
        return "A server needs a URL such as http://host:8188."
    if len(url) > MAX_URL:
        return f"A URL has at most {MAX_URL:,} characters, not {len(url):,}."
    if any(character.isspace() or not character.isprintable() for character in url):
        return "A URL holds no white space and no control characters."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{shown(url)} is no URL: {error}."
    if parts.scheme.lower() not in ("http", "https"):
        begun = shown(f"{parts.scheme}:") if parts.scheme else shown(url)
        return f"A server's URL begins with http:// or https://, not {begun}."
    if not parts.hostname:
        return f"{shown(url)} names no host."
    if parts.username is not None or parts.password is not None:
        return "A URL holds no user name or password; give a `token` instead."
    if "#" in url:
        return "A server's URL has no fragment (#…)."
    if "?" in url:
        return "A server's URL has no query (?…)."
    if "\\" in url:
        return "A URL holds no backslash."
    if port == 0:
        return "Port 0 can't be connected to."
    return None


def settings_problems(
    *, name: str | None = None, url: str | None = None, batch_size: int | None = None, token: str | None = None
) -> list[Problem]:
    """Everything that is wrong with what a server is registered or updated with; None is not looked at."""
    problems = []
    if name is not None:
        if not name.strip() or len(name) > MAX_NAME:
            said = f"A server's name has 1 to {MAX_NAME} characters."
            problems.append(Problem("/name", ProblemCode.OUT_OF_RANGE, said))
        elif not name.isprintable() or name != name.strip():
            said = "A server's name holds no control characters, and no white space at its ends."
            problems.append(Problem("/name", ProblemCode.OUT_OF_RANGE, said))
    if url is not None and (wrong := url_problem(url)) is not None:
        problems.append(Problem("/url", "BAD_URL", wrong))
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        said = f"`batchSize` is how many items the server takes at once: 1 to {MAX_BATCH_SIZE:,}, not {batch_size}."
        problems.append(Problem("/batchSize", ProblemCode.OUT_OF_RANGE, said))
    if token is not None and (not token or len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable()):
        said = f"A token has 1 to {MAX_TOKEN:,} visible ASCII characters."
        problems.append(Problem("/token", ProblemCode.OUT_OF_RANGE, said))
    return problems


class Unavailability(StrEnum):
    """Why a server can't take work now."""

    DISABLED = "DISABLED"
    NOT_ONLINE = "NOT_ONLINE"
    BUSY = "BUSY"


@dataclass(frozen=True, slots=True)
class Load:
    """What a server works on by the tasks' ledger: how many items, and one of the tasks they belong to."""

    running: int = 0
    task_id: str | None = None


def unavailable(
    name: str, enabled: bool, status: ServerStatus, batch_size: int, load: Load
) -> tuple[Unavailability, str] | None:
    """Why the server can't take work now, with a sentence; None if it can."""
    if not enabled:
        return Unavailability.DISABLED, f"The server {name!r} is disabled. Enable it first."
    if status is not S.ONLINE:
        remedy = "People took it out of service." if status is S.MAINTENANCE else "Its health checks say why."
        return Unavailability.NOT_ONLINE, f"The server {name!r} is {status}, not ONLINE. {remedy}"
    if load.running >= batch_size:
        works = f" It works on {load.task_id}." if load.task_id is not None else ""
        return Unavailability.BUSY, f"All {batch_size} places of the server {name!r} are taken.{works}"
    return None
