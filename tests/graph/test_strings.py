"""No text with the character NUL gets past the door, wherever it stands in a request."""

from __future__ import annotations

import pytest

from graph.documents import Documents, Refused
from graph.limits import Limits
from tests.graph.wire import schema


@pytest.mark.parametrize(
    "literal", [r'"a\u0000b"', r'"\u{0}"', r'"\u{000000}"'], ids=["short escape", "long escape", "padded escape"]
)
@pytest.mark.parametrize(
    "document",
    [
        "{ hello(name: %s) }",
        "query($name: String = %s) { hello(name: $name) }",
        "{ ...F } fragment F on Query { hello(name: %s) }",
    ],
    ids=["argument", "default", "fragment"],
)
def test_a_literal_with_nul_is_refused_where_it_stands(document: str, literal: str) -> None:
    """PostgreSQL would refuse it in the middle of the work; SQLite would keep what nobody can move elsewhere."""
    text = document % literal
    with pytest.raises(Refused, match="NUL") as refusal:
        Documents(schema._schema, Limits()).operation(text, None)
    [error] = refusal.value.errors
    assert error.extensions == {"code": "GRAPHQL_VALIDATION_FAILED"}
    assert error.locations is not None
    assert error.locations[0].column == text.index(literal) + 1


def test_a_literal_that_spells_an_escape_passes() -> None:
    """A backslash before it makes it ordinary text."""
    assert Documents(schema._schema, Limits()).operation(r'{ hello(name: "\\u0000") }', None)
