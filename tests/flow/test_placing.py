"""Where a node may run, and how many of a wide fan-out are shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow import events as e
from flow import placing
from flow.definition import Join, Node, Resources
from tests.flow.runs import Run

NUMBERS = st.integers(0, 20_000)


@pytest.mark.parametrize(
    ("node", "labels", "stays"),
    [
        (Node("a", "core/noop"), [], True),
        (Node("a", "core/noop"), ["gpu"], True),
        (Node("a", "core/noop", runs_on=("gpu",)), [], False),
        (Node("a", "core/noop", runs_on=("gpu",)), ["eu", "gpu"], True),
        (Node("a", "core/noop", runs_on=("gpu", "eu")), ["gpu"], False),
        (Node("a", "core/noop", resources=Resources(gpu=1)), ["gpu"], False),
        (Node("a", "core/noop", resources=Resources(gpu=0)), [], True),
    ],
)
def test_a_node_stays_where_its_labels_are(node: Node, labels: list[str], stays: bool) -> None:
    """All its labels must be there; graphics cards are always asked for by an offer, so that somebody counts them."""
    assert placing.stays(node, labels) is stays


def test_the_nodes_own_word_on_graphics_cards_beats_its_types() -> None:
    """A type may need a card by default; the node can say otherwise."""
    assert placing.gpus(Node("a", "x"), 2) == 2
    assert placing.gpus(Node("a", "x", resources=Resources(gpu=0)), 2) == 0


@given(NUMBERS, st.floats(0, 10_000), NUMBERS, st.integers(0, 50))
def test_only_what_would_wait_long_is_shared(waiting: int, rate: float, elsewhere: int, workers: int) -> None:
    """Nothing is offered that gets a place soon, nothing without others; of a wide fan-out all the rest is."""
    shared = placing.shared(waiting, rate, elsewhere, workers)
    rest = max(0, waiting - int(rate * placing.SOON_S))
    assert 0 <= shared <= rest
    if workers == 0:
        assert shared == 0
    elif waiting > placing.WIDE:
        assert shared == rest
    else:
        assert shared <= elsewhere


def test_a_second_live_edge_does_not_offer_a_node_again() -> None:
    """A join that starts at its first live edge is settled once it is offered, though nobody has taken it yet."""
    run = Run("a>c b>c", {"c": {"join": Join.ANY}})
    run.finish("a")
    assert run.starts() == {"b", "c"}
    run.record(e.NodeScheduled("c", 1))
    run.finish("b")
    assert run.starts() == set()
    assert run.status("c") == "PENDING"
