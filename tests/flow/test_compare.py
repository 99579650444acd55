"""Two runs side by side."""

from __future__ import annotations

from typing import Any

import pytest

from flow import events as e
from flow.compare import NodeDiff, compare, value_diff
from flow.versions import ChangeKind
from tests.flow.runs import Run


def diffs(a: Run, b: Run) -> dict[str, NodeDiff]:
    return {diff.path: diff for diff in compare(a.run.snapshot.nodes, b.run.snapshot.nodes)}


def listed(a: Any, b: Any) -> list[tuple[str, str]]:
    return [(change.key, str(change.kind)) for change in value_diff(a, b).changes]


def test_equal_runs_do_not_differ() -> None:
    """The same outputs are no difference, however long they took."""
    a, b = Run("a>b").finish("a", {"x": 1}), Run("a>b").finish("a", {"x": 1.0})
    assert [diff.kind for diff in diffs(a, b).values()] == [None]


def test_an_output_differs_at_its_paths() -> None:
    """Each place that is not the same is named once, with both values."""
    a = Run("a").finish("a", {"kept": 1, "gone": 2, "list": [1, 2], "deep": {"x": True}})
    b = Run("a").finish("a", {"kept": 1, "new": 3, "list": [1, 5, 6], "deep": {"x": 1}})
    found = diffs(a, b)["a"]
    assert found.kind is ChangeKind.CHANGED
    assert not found.status
    assert {(change.key, str(change.kind)) for change in found.output.changes} == {
        ("/gone", "REMOVED"), ("/new", "ADDED"), ("/list/1", "CHANGED"), ("/list/2", "ADDED"), ("/deep/x", "CHANGED"),
    }  # fmt: skip


def test_a_node_that_only_one_run_has() -> None:
    """ADDED is only in the second, REMOVED only in the first."""
    found = diffs(Run("a").finish("a"), Run("b").finish("b"))
    assert {path: diff.kind for path, diff in found.items()} == {"a": ChangeKind.REMOVED, "b": ChangeKind.ADDED}


def test_another_status_is_a_difference() -> None:
    """Completed here, failed there."""
    found = diffs(Run("a").finish("a"), Run("a").fail("a"))["a"]
    assert (found.kind, found.status, found.output.changes) == (ChangeKind.CHANGED, True, ())


def test_durations_are_told_and_are_no_difference() -> None:
    """How much longer the second run's node took."""
    slow = Run("a b").start("a").finish("b").finish("a")
    found = diffs(Run("a").finish("a"), slow)["a"]
    assert found.kind is None
    assert found.slower_by is not None
    assert found.slower_by.total_seconds() == 2.0


def test_large_outputs_are_compared_by_their_hash() -> None:
    """Two artifacts of the same content are the same; others differ as a whole."""

    def large(sha256: str) -> Run:
        run = Run("a").start("a")
        artifact = e.Artifact(id=f"art-{sha256}", sha256=sha256, size=9, media_type="application/json", preview="")
        return run.record(e.NodeCompleted("a", 1, artifact=artifact))

    assert diffs(large("x"), large("x"))["a"].kind is None
    assert diffs(large("x"), large("y"))["a"].output.more
    assert diffs(large("x"), Run("a").finish("a", 1))["a"].kind is ChangeKind.CHANGED


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, True, [("", "CHANGED")]),
        (None, {}, [("", "CHANGED")]),
        ({"a/b": 1}, {"a/b": 2}, [("/a~1b", "CHANGED")]),
        ([], [None], [("/0", "ADDED")]),
        ({"x": None}, {}, [("/x", "REMOVED")]),
    ],
)
def test_values_differ_as_json_does(a: Any, b: Any, expected: list[tuple[str, str]]) -> None:
    """true is not 1, null is not nothing, and pointers are escaped."""
    assert listed(a, b) == expected


def test_many_differences_are_cut() -> None:
    """More than a hundred are not listed, and the answer says so."""
    found = value_diff(list(range(500)), list(range(1, 501)))
    assert len(found.changes) == 100
    assert found.more
