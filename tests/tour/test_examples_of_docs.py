"""The examples in docs/control-flow.md are definitions without a problem."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.access import LOCAL
from tests.tour.conftest import Tour

PAGE = Path(__file__).parents[2] / "docs" / "control-flow.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
async def test_the_example_is_valid(tour: Tour, text: str) -> None:
    """With a name and a trigger it can be stored as it stands."""
    whole = f"name: example\ntriggers: [{{id: by-hand, type: manual}}]\n{text}"
    assert await tour.engine.workflows.validate(LOCAL, whole) == []


def test_there_are_examples() -> None:
    """So that a change of the page's form does not go unnoticed."""
    assert len(EXAMPLES) == 4
