"""What the pages ask for exists in the schema, and stays within its limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graph.documents import Documents
from graph.limits import Limits
from graph.schema import build_schema
from mirrorflow.server import STATIC

STARTERS = Path(__file__).parents[2] / "web" / "graphiql" / "starters.js"


def texts(file: Path) -> list[str]:
    """The GraphQL documents in a script: its template literals, with the constants of the script put in."""
    source = file.read_text()
    constants = dict(re.findall(r"^const (\w+) = `?(\d+|fragment [^`]*)`?;", source, re.MULTILINE))
    found = re.findall(r"`([^`]*\b(?:query|mutation|subscription)\b[^`]*)`", source)
    while any("${" in text for text in found):  # a fragment may hold constants too
        found = [re.sub(r"\$\{(\w+)\}", lambda match: constants[match[1]], text) for text in found]
    return found


@pytest.fixture(scope="module")
def documents() -> Documents:
    return Documents(build_schema()._schema, Limits())


@pytest.mark.parametrize(
    ("file", "number"),
    [(STATIC / "live.js", 7), (STATIC / "tasks.js", 6), (STARTERS, 5)],
    ids=lambda value: str(getattr(value, "stem", value)),
)
def test_the_documents_of_the_pages_are_valid(documents: Documents, file: Path, number: int) -> None:
    """Every document is valid against the schema and affordable with its defaults."""
    found = texts(file)
    assert len(found) == number
    for text in found:
        assert documents.operation(text, None).cost({}) <= documents.limits.cost
