"""The rules of batches: which folders count, names of outputs, sharing among servers, rate and estimated end."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import Any

import pytest

from flow import batches
from flow.batches import Again, Counts, GiveUp, InputFile, Pace
from flow.errors import Category, Failure, IllegalTransition
from flow.states import after
from flow.tasks import ITEM_TRANSITIONS, TASK_TRANSITIONS, BatchSpec, RunSpec, TaskStatus, TaskStep


@pytest.mark.parametrize(
    ("name", "keywords", "counts"),
    [
        ("anything", (), True),
        ("2024-旅行-照片", ("旅行",), True),
        ("Holiday RAW", ("raw",), True),
        ("STRASSE", ("straße".casefold(),), True),
        ("holiday", ("raw", "旅行"), False),
    ],
)
def test_a_subfolder_counts_if_a_keyword_is_in_its_name(name: str, keywords: tuple[str, ...], counts: bool) -> None:
    """Any of the keywords, whatever the case; without keywords every folder counts."""
    assert batches.folder_counts(name, keywords) is counts


@pytest.mark.parametrize(
    ("patterns", "taken", "left"),
    [
        ((), ["a.jpg", "b"], [".hidden"]),
        (("*.jpg", "*.PNG"), ["a.JPG", "b.png"], ["c.gif", ".d.jpg", "jpg"]),
        ((".*",), [".hidden"], ["a.jpg"]),
        (("图?.jpg",), ["图一.jpg"], ["图.jpg"]),
    ],
)
def test_files_count_by_globs(patterns: tuple[str, ...], taken: list[str], left: list[str]) -> None:
    """Whatever the case; hidden files only where a pattern begins with a dot."""
    matches = batches.file_matcher(patterns)
    assert [name for name in taken + left if matches(name)] == taken


def test_a_hostile_glob_is_matched_in_no_time() -> None:
    """Many stars can't make the matcher go through all the ways to divide a name."""
    matches = batches.file_matcher(("*a" * 30 + "b",))
    assert not matches("a" * 255)


def test_the_workflow_says_which_files_it_takes() -> None:
    """By the media type of its file input; without one, every file."""
    schema = {"properties": {"file_path": {"type": "string", "contentMediaType": "image/*"}}}
    patterns = batches.default_patterns(schema)
    assert {"*.jpg", "*.png", "*.webp"} <= set(patterns)
    assert "*.txt" not in patterns
    assert batches.default_patterns({"properties": {"file_path": {"type": "string"}}}) == ()
    assert batches.default_patterns(None) == ()


FILE = InputFile("/in/a/b.jpg", "a/b.jpg", 7, "/out/.mirrorflow/x")


@pytest.mark.parametrize(
    ("schema", "parameters", "given"),
    [
        (
            None,
            {"prompt": "hi"},
            {"file_path": "/in/a/b.jpg", "filename": "b.jpg", "relative_path": "a/b.jpg",
             "output_dir": "/out/.mirrorflow/x", "prompt": "hi"},
        ),
        (
            {"properties": {"image": {}, "size": {}, "prompt": {}}},
            {"prompt": "hi", "other": 1, "file_path": "/etc/passwd"},
            {"file_path": "/in/a/b.jpg", "image": "/in/a/b.jpg", "size": 7, "prompt": "hi"},
        ),
        (
            {"properties": {"image": {}}, "additionalProperties": False},
            {"file_path": "/etc/passwd"},
            {"image": "/in/a/b.jpg"},
        ),
    ],
    ids=["no schema", "schema", "strict schema"],
)  # fmt: skip
def test_a_run_is_given_its_file_and_what_its_schema_names(
    schema: dict[str, Any] | None, parameters: dict[str, Any], given: dict[str, Any]
) -> None:
    """The path always, the rest by name; parameters fill what has their names and never hide the file."""
    assert batches.run_input(FILE, schema, parameters) == given


def _after(category: Category, **known: Any) -> Again | GiveUp:
    given: dict[str, Any] = {"server_lost": False, "submitted": True, "failures": 0, "losses": 0, "retries": 2}
    return batches.after_failure(Failure("X", category, "no"), **given | known)


def test_passing_failures_are_tried_again_and_others_not() -> None:
    """A connection that broke comes back twice, each time after longer; a wrong file does not."""
    assert _after(Category.CONNECTION) == Again(1.0, "failure")
    assert _after(Category.CONNECTION, failures=1) == Again(2.0, "failure")
    assert isinstance(_after(Category.CONNECTION, failures=2), GiveUp)
    assert isinstance(_after(Category.VALIDATION), GiveUp)


def test_a_lost_server_is_not_the_items_fault_until_it_happens_again_and_again() -> None:
    """Its items go to others at once; an item that loses five servers is given up. One that never began costs it
    nothing.
    """
    assert _after(Category.CONNECTION, server_lost=True, failures=9) == Again(0.0, "loss")
    assert _after(Category.CONNECTION, server_lost=True, submitted=False, losses=9) == Again(0.0, "nothing")
    given_up = _after(Category.CONNECTION, server_lost=True, losses=batches.MAX_LOSSES - 1)
    assert isinstance(given_up, GiveUp)
    assert given_up.failure.code == "SERVER_LOST"


def test_a_server_that_takes_nothing_now_is_asked_later() -> None:
    """That costs the item none of its tries."""
    assert _after(Category.RATE_LIMIT, submitted=False, failures=9) == Again(1.0, "nothing")


def test_progress_reaches_one_only_at_the_end() -> None:
    """Not while folders are still looked through, and not by the shares of what runs."""
    assert batches.progress(Counts(4, 1, 1, 0), True, 0.5) == pytest.approx(0.625)
    assert batches.progress(Counts(4, 4, 0, 0), False) < 1
    assert batches.progress(Counts(4, 2, 1, 1), True) == 1
    assert batches.progress(Counts(0, 0, 0, 0), True) == 0


def test_the_pace_is_that_of_the_last_while() -> None:
    """A slow beginning is forgotten; before anything has ended nobody can tell."""
    pace = Pace(0.0, 0)
    assert pace.rate() is None
    pace.note(10.0, 1)
    for second in range(11, 60):
        pace.note(float(second), 1 + (second - 10) * 2)
    assert pace.rate() == pytest.approx(2.0)
    assert pace.left_s(Counts(200, 99, 0, 0)) == pytest.approx(50.5)


@pytest.mark.parametrize(
    ("counts", "stopped", "step"),
    [
        (Counts(3, 3, 0, 0), False, TaskStep.COMPLETE),
        (Counts(3, 1, 2, 0), False, TaskStep.COMPLETE),
        (Counts(0, 0, 0, 0), False, TaskStep.COMPLETE),
        (Counts(2, 0, 2, 0), False, TaskStep.FAIL),
        (Counts(3, 1, 1, 1), True, TaskStep.FAIL),
    ],
)
def test_a_batch_fails_if_it_was_stopped_or_nothing_was_done(counts: Counts, stopped: bool, step: TaskStep) -> None:
    """A few failed files among others don't make the batch a failure: they are told."""
    assert batches.batch_end(counts, stopped)[0] is step


def test_outputs_with_one_name_get_names_of_their_own() -> None:
    """A number before the suffix; a name of 255 bytes stays one."""
    assert list(islice(batches.distinct_names("a.jpg"), 3)) == ["a.jpg", "a-2.jpg", "a-3.jpg"]
    assert list(islice(batches.distinct_names("noext"), 2)) == ["noext", "noext-2"]
    long = list(islice(batches.distinct_names("长" * 84 + ".jpg"), 12))
    assert len(set(long)) == 12
    assert all(len(name.encode()) <= 255 and name.endswith(".jpg") for name in long)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "output"),
        ("..", "output"),
        (".bashrc", "bashrc"),
        ("a\0b\nc", "a_b_c"),
        ("\udc80.png", "?.png"),
    ],
)
def test_what_a_server_calls_a_file_is_no_path(said: str, name: str) -> None:
    """One component, neither hidden nor a way up, without control characters."""
    assert batches.safe_name(said) == name


def test_folders_inside_of_others_are_walked_once() -> None:
    """Only where folders are looked into; a folder that is named twice counts once."""
    folders = ["/a", "/a/b", "/ab", "/a"]
    assert batches.without_nested(folders, recursive=True) == ("/a", "/ab")
    assert batches.without_nested(folders, recursive=False) == ("/a", "/a/b", "/ab")


def test_every_wrong_number_and_word_is_told() -> None:
    """All problems at once, each at its place."""
    wrong = BatchSpec(
        target_folders=(), folder_keywords=("", "a/b"), file_patterns=("x" * 256,), priority=11, item_retries=-1,
        timeout=timedelta(0), name=" ",
    )  # fmt: skip
    pointers = {problem.pointer for problem in batches.option_problems(wrong)}
    assert pointers == {
        "/targetFolders", "/folderKeywords/0", "/folderKeywords/1", "/filePatterns/0", "/priority", "/itemRetries",
        "/timeout", "/name",
    }  # fmt: skip
    assert [problem.pointer for problem in batches.option_problems(RunSpec(type="x", retries=99))] == ["/retries"]


def test_what_is_completed_is_never_done_again() -> None:
    """An item that is completed has no way back; its task has."""
    assert after(TASK_TRANSITIONS, TaskStatus.COMPLETED, TaskStep.AGAIN) is TaskStatus.PENDING
    for step in TaskStep:
        with pytest.raises(IllegalTransition):
            after(ITEM_TRANSITIONS, TaskStatus.COMPLETED, step)
