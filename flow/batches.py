"""Batches over files: which folders and files count, what a run is given, how it is shared, paced, and ended. Pure."""

from __future__ import annotations

import fnmatch
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from flow.errors import NOT_RETRIED, Category, Failure, Problem
from flow.problems import ProblemCode, shown
from flow.tasks import BatchSpec, RunSpec, TaskStep

MAX_FOLDERS = 1_000
MAX_WORDS = 1_000  # keywords, and patterns
MAX_WORD = 255  # characters
MAX_NAME = 255  # characters of a task's name; bytes of a file's
MAX_DESCRIPTION = 10_000  # characters
MAX_RETRIES = 10
#: How often an item may lose its server before it is held to be the reason.
MAX_LOSSES = 5
LONGEST = timedelta(days=365)

#: A failed item waits so long before it is tried again: doubled each time, and never longer than the last.
RETRY_BASE_S, RETRY_CAP_S = 1.0, 60.0


# ---- what was asked for


def option_problems(spec: BatchSpec | RunSpec) -> list[Problem]:
    """What is wrong with the numbers and words of a task, whatever they refer to."""
    found: list[Problem] = []

    def wrong(pointer: str, message: str, code: ProblemCode = ProblemCode.OUT_OF_RANGE) -> None:
        found.append(Problem(pointer, code.value, message))

    if not 1 <= spec.priority <= 10:
        wrong("/priority", f"A priority is from 1 to 10, not {spec.priority}.")
    if spec.timeout is not None and not timedelta(0) < spec.timeout <= LONGEST:
        wrong("/timeout", f"A timeout is more than nothing and at most {LONGEST.days} days.")
    found += name_problems(spec.name, spec.description)
    if isinstance(spec, RunSpec):
        if not 0 <= spec.retries <= MAX_RETRIES:
            wrong("/retries", f"There are 0 to {MAX_RETRIES} retries, not {spec.retries}.")
        return found
    if not 0 <= spec.item_retries <= MAX_RETRIES:
        wrong("/itemRetries", f"There are 0 to {MAX_RETRIES} retries, not {spec.item_retries}.")
    if not spec.target_folders:
        wrong("/targetFolders", "Name at least one folder.", ProblemCode.MISSING_KEY)
    if len(spec.target_folders) > MAX_FOLDERS:
        wrong("/targetFolders", f"There are at most {MAX_FOLDERS:,} folders.")
    for key, words in (("folderKeywords", spec.folder_keywords), ("filePatterns", spec.file_patterns)):
        if len(words) > MAX_WORDS:
            wrong(f"/{key}", f"There are at most {MAX_WORDS:,}.")
        for place, word in enumerate(words[:MAX_WORDS]):
            if not 1 <= len(word) <= MAX_WORD:
                wrong(f"/{key}/{place}", f"Each has 1 to {MAX_WORD} characters.")
            elif "/" in word or "\0" in word:
                wrong(f"/{key}/{place}", "A name holds no slash.", ProblemCode.UNKNOWN_VALUE)
    return found


def name_problems(name: str | None, description: str | None) -> list[Problem]:
    """What is wrong with a task's name and description."""
    found = []
    if name is not None and not (name.strip() and len(name) <= MAX_NAME):
        found.append(Problem("/name", ProblemCode.OUT_OF_RANGE.value, f"A name has 1 to {MAX_NAME} characters."))
    if description is not None and len(description) > MAX_DESCRIPTION:
        message = f"A description has at most {MAX_DESCRIPTION:,} characters."
        found.append(Problem("/description", ProblemCode.OUT_OF_RANGE.value, message))
    return found


# ---- which folders and files count


def folder_counts(name: str, keywords: Sequence[str]) -> bool:
    """Whether a subfolder of this name counts: one of the (case-folded) keywords is in it, or there are none."""
    folded = name.casefold()
    return not keywords or any(keyword in folded for keyword in keywords)


def file_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a file of this name counts: any of the globs fits, whatever the case; none given: every file.

    Hidden files count only for a pattern that begins with a dot.
    """
    if not patterns:
        return lambda name: not name.startswith(".")
    plain = _any([pattern for pattern in patterns if not pattern.startswith(".")])
    hidden = _any([pattern for pattern in patterns if pattern.startswith(".")])
    return lambda name: (hidden if name.startswith(".") else plain)(name)


def _any(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda name: False
    # fnmatch makes patterns that can't backtrack for long: each star is an atomic group
    compiled = re.compile("|".join(fnmatch.translate(pattern.casefold()) for pattern in patterns))
    return lambda name: compiled.match(name.casefold()) is not None


def default_patterns(input_schema: Mapping[str, Any] | None) -> tuple[str, ...]:
    """What the workflow's input takes, as globs: the media types that its file property names; empty: anything."""
    properties = (input_schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return ()
    for key in FILE_KEYS:
        schema = properties.get(key)
        wanted = schema.get("contentMediaType") if isinstance(schema, Mapping) else None
        if isinstance(wanted, str):
            types = [each.strip().casefold() for each in wanted.split(",")]
            fits = re.compile("|".join(fnmatch.translate(each) for each in types))
            known = mimetypes.types_map | mimetypes.common_types | _MORE_TYPES
            return tuple(sorted(f"*{suffix}" for suffix, type in known.items() if fits.match(type)))
    return ()


#: Those that old versions of the standard table lack.
_MORE_TYPES = {".webp": "image/webp", ".avif": "image/avif", ".heic": "image/heic", ".heif": "image/heif"}


# ---- what a run is given

#: Names of inputs that mean the path of the file; the first is always given.
FILE_KEYS = ("file_path", "path", "image", "file")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as a run is told of it. ``output_dir`` is a folder of the run's own: what it leaves there is kept."""

    path: str
    relative: str
    size: int
    output_dir: str | None


def run_input(file: InputFile, schema: Mapping[str, Any] | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The input of the run over one file.

    ``file_path`` is always there, and what else of the file the input schema has a property for. Parameters fill the
    properties that have their names, and never hide the file.
    """
    about = dict.fromkeys(FILE_KEYS, file.path) | {
        "filename": file.relative.rpartition("/")[2],
        "relative_path": file.relative,
        "size": file.size,
    }
    if file.output_dir is not None:
        about["output_dir"] = file.output_dir
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        wanted = {"file_path", "filename", "relative_path", "output_dir"}
    elif (schema or {}).get("additionalProperties", True) is False:
        wanted = set(properties)
    else:
        wanted = {"file_path", *properties}
    named = properties if isinstance(properties, Mapping) else parameters
    given = {name: value for name, value in parameters.items() if name in named}
    return given | {name: value for name, value in about.items() if name in wanted}


# ---- what becomes of an item that did not come to its end


@dataclass(frozen=True, slots=True)
class Again:
    """Any server may take it, in so many seconds. ``counts`` as a failure of its own, or as a loss of its server."""

    in_s: float
    counts: Literal["failure", "loss", "nothing"]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The item has failed for good."""

    failure: Failure


def after_failure(
    failure: Failure, *, server_lost: bool, submitted: bool, failures: int, losses: int, retries: int
) -> Again | GiveUp:
    """What to do with an item whose attempt failed; ``failures`` and ``losses`` are those before.

    A lost server is not the item's fault, until it happens to the same item again and again: also if the server only
    answers that it broke when it is handed the item. A server that can't be reached was not handed it; one that takes
    nothing now (RATE_LIMIT on the way in) is asked later.
    """
    if server_lost:
        broke = not submitted and failure.category is Category.HTTP_SERVER
        if not submitted and not broke:
            return Again(0.0, "nothing")
        if losses + 1 >= MAX_LOSSES:
            how = "broke when it was handed it" if broke else "was lost while it ran"
            message = f"Its server {how}, {losses + 1} times: perhaps this file is why. {failure.message}"
            return GiveUp(Failure("SERVER_LOST", Category.WORKER_LOST, message[:2_000]))
        # Others go first: they tell whether it is the server or the file.
        return Again(min(RETRY_CAP_S, RETRY_BASE_S * 2**losses) if broke else 0.0, "loss")
    if failure.category is Category.RATE_LIMIT and not submitted:
        return Again(min(RETRY_CAP_S, failure.retry_after_seconds or RETRY_BASE_S), "nothing")
    passing = failure.retryable if failure.retryable is not None else failure.category not in NOT_RETRIED
    if not passing or failures >= retries:
        return GiveUp(failure)
    wait = max(min(RETRY_CAP_S, RETRY_BASE_S * 2**failures), failure.retry_after_seconds or 0.0)
    return Again(wait, "failure")


# ---- how far, how fast, how it ends


@dataclass(frozen=True, slots=True)
class Counts:
    """A task's items by how they ended."""

    total: int
    done: int
    failed: int
    canceled: int

    @property
    def ended(self) -> int:
        return self.done + self.failed + self.canceled


def progress(counts: Counts, expanded: bool, under_way: float = 0.0) -> float:
    """From 0 to 1; ``under_way`` is the sum of the running items' own. Below 1 until all has ended."""
    if counts.total == 0:
        return 0.0
    share = min(1.0, (counts.ended + under_way) / counts.total)
    return share if expanded and counts.ended >= counts.total else min(share, 0.999)


class Pace:
    """Items a second over the last while, and how long the rest will take. Times are seconds on any one clock."""

    WINDOW_S = 30.0

    def __init__(self, at: float, ended: int) -> None:
        self._samples: list[tuple[float, int]] = [(at, ended)]

    def note(self, at: float, ended: int) -> None:
        """So many had ended at that time."""
        self._samples.append((at, ended))
        while len(self._samples) > 2 and self._samples[1][0] <= at - self.WINDOW_S:
            self._samples.pop(0)

    def rate(self) -> float | None:
        """Items a second; None as long as nobody can tell."""
        (began, before), (at, ended) = self._samples[0], self._samples[-1]
        return (ended - before) / (at - began) if ended > before and at > began else None

    def left_s(self, counts: Counts) -> float | None:
        """Seconds until the rest is done at this pace; None as long as nobody can tell."""
        rate = self.rate()
        return None if rate is None else max(0, counts.total - counts.ended) / rate


def summary(counts: Counts, bare: int = 0) -> str:
    """``12 of 20 done, 3 failed`` as a sentence; ``bare`` of those that are done gave no output, though asked to."""
    if not counts.total:
        return "No file matches its folders, keywords and patterns."
    parts = [f"{counts.done:,} of {counts.total:,} done"]
    parts += [
        f"{number:,} {word}" for number, word in ((counts.failed, "failed"), (counts.canceled, "canceled")) if number
    ]
    said = ", ".join(parts) + "."
    missing = f" {bare:,} of them gave no file: what a run's output names lands in the output root."
    return f"{said}{missing}" if bare else said


def batch_end(counts: Counts, stopped: bool) -> tuple[TaskStep, Failure | None]:
    """How a batch ends when none of its items is left: failed only if it was stopped by one, or all of them failed."""
    if stopped:
        return TaskStep.FAIL, Failure("ITEM_FAILED", Category.CODE, f"Stopped by a failed item: {summary(counts)}")
    if counts.failed and not counts.done:
        return TaskStep.FAIL, Failure("ALL_ITEMS_FAILED", Category.CODE, f"No item was done: {summary(counts)}")
    return TaskStep.COMPLETE, None


# ---- names of outputs

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f/\\]")


def safe_name(said: str) -> str:
    """A file's name made of what somebody else says it is called: one component, no control characters, 255 bytes.

    It never begins with a dot, so it is neither hidden nor a way up.
    """
    name = _FORBIDDEN.sub("_", said.replace("\\", "/").rpartition("/")[2]).encode("utf-8", "replace").decode()
    name = name.strip().lstrip(".") or "output"
    return fitted(name, "")


def fitted(name: str, mark: str) -> str:
    """The name with a mark before its suffix, shortened so that it has at most 255 bytes."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(suffix.encode()) > 32:
        stem, dot, suffix = name, "", ""
    end = f"{mark}{dot}{suffix}"
    room = MAX_NAME - len(end.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + end


def distinct_names(name: str) -> Iterator[str]:
    """``a.jpg``, ``a-2.jpg``, ``a-3.jpg`` … for inputs that would write the same output."""
    yield fitted(name, "")
    number = 2
    while True:
        yield fitted(name, f"-{number}")
        number += 1


def inside(path: str, folder: str) -> bool:
    """Whether a path (both absolute, without ``..``) is the folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def without_nested(folders: Sequence[str], *, recursive: bool) -> tuple[str, ...]:
    """The folders in their order, each once; when folders are looked into, without those inside of another one."""
    kept = list(dict.fromkeys(folders))
    if not recursive:
        return tuple(kept)
    return tuple(one for one in kept if not any(one != other and inside(one, other) for other in kept))


def describe(spec: BatchSpec) -> str:
    """A name for a batch that was given none."""
    first = spec.target_folders[0].rstrip("/").rpartition("/")[2] if spec.target_folders else ""
    more = f" and {len(spec.target_folders) - 1} more" if len(spec.target_folders) > 1 else ""
    return f"{spec.workflow_name or 'batch'}: {shown(first)[1:-1] or '/'}{more}"[:MAX_NAME]
