"""The generated pages are up to date, and a breaking change of the schema is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests import docs
from tests.schema_changes import untold

ROOT = Path(__file__).parents[1]
BEFORE = """
directive @old on FIELD
interface Thing { id: ID }
type Query { a(x: Int): Int  b: String  things: Both }
type Boat implements Thing { id: ID }
type Car { id: ID }
union Both = Boat | Car
enum Color { RED GREEN }
"""
AFTER = """
interface Thing { id: ID }
type Query { a(x: Int!): Int  things: Both }
type Boat { id: ID }
type Car { id: ID }
union Both = Boat
enum Color { RED }
"""


def test_generated_pages_are_up_to_date() -> None:
    """``docs/`` says what the code says; ``make docs`` mends it."""
    assert docs.outdated() == []


@pytest.mark.parametrize(
    "name", ["Query.b", "Query.a", "Color.GREEN", "Boat", "Both", "@old"], ids=lambda name: f"without {name}"
)
def test_a_breaking_change_must_be_told(name: str) -> None:
    """A breaking change that the changelog's Unreleased section does not name is found; a named one passes."""
    every = ["Query.b", "Query.a", "Color.GREEN", "Boat", "Both", "@old"]
    told = "# Changelog\n\n## [Unreleased]\n\n- Gone: " + ", ".join(f"`{each}`" for each in every) + "\n"
    assert untold(BEFORE, AFTER, told) == []
    [missing] = untold(BEFORE, AFTER, told.replace(f"`{name}`", ""))
    assert name.split(".")[-1] in missing


def test_old_sections_of_the_changelog_do_not_count() -> None:
    """What an earlier release broke does not excuse what this one breaks."""
    told = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0]\n\n- `Query.b`\n"
    assert any("Query.b" in change for change in untold(BEFORE, AFTER, told))


def test_the_lock_names_no_registry() -> None:
    """``requirements.lock`` holds pins only, so that it works with every index."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines
    assert all("==" in line and "://" not in line for line in lines)


def test_compose_file_is_valid() -> None:
    """``docker-compose.yml`` is a compose file whose services have an image or a build."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert all({"image", "build"} & set(service) for service in compose["services"].values())
