"""What one request may ask for."""

from __future__ import annotations

import time
from typing import Any

import pytest
from graphql import get_introspection_query

from graph.documents import Documents, Refused
from graph.limits import Limits
from tests.graph.wire import World, client, schema

NODE = "nodes { id }"


@pytest.fixture
def documents() -> Documents:
    return Documents(schema._schema, Limits())


def refused(documents: Documents, text: str) -> dict[str, dict[str, Any]]:
    """The extensions of the errors that the document gets, by code."""
    with pytest.raises(Refused) as caught:
        documents.operation(text, None)
    return {error.extensions["code"]: error.extensions for error in caught.value.errors if error.extensions}


def cost(documents: Documents, text: str, **variables: Any) -> int:
    return documents.operation(text, None).cost(variables)


def nested(depth: int) -> str:
    """A valid query, that many fields deep (odd)."""
    levels = (depth - 1) // 2
    return "{ " + "things(first: 1) { nodes { " * levels + "id" + " } }" * levels + " }"


def test_depth(documents: Documents) -> None:
    """Twelve fields deep at most, fragments followed."""
    assert documents.operation(nested(11), None)
    assert refused(documents, nested(13))["DEPTH_LIMIT_EXCEEDED"] == {
        "code": "DEPTH_LIMIT_EXCEEDED", "limit": 12, "actual": 13,
    }  # fmt: skip
    split = "{ things(first: 1) { nodes { ...F } } } fragment F on Thing " + nested(11)
    assert refused(documents, split)["DEPTH_LIMIT_EXCEEDED"]["actual"] == 13
    assert "DEPTH_LIMIT_EXCEEDED" in refused(documents, "{ a " * 500 + "}" * 500)


def test_aliases(documents: Documents) -> None:
    """Thirty aliases, each counted wherever its fragment is spread."""
    assert documents.operation("{ things { " + " ".join(f"a{n}: nodes {{ id }}" for n in range(30)) + " } }", None)
    assert refused(documents, "{ things { nodes { " + "id " * 32 + "} } }")["ALIAS_LIMIT_EXCEEDED"]["actual"] == 31
    text = "{ things { " + " ".join(f"a{n}: nodes {{ id }}" for n in range(31)) + " } }"
    assert refused(documents, text)["ALIAS_LIMIT_EXCEEDED"]["actual"] == 31
    spread = "{ things { nodes { ...F things { nodes { ...F } } } } } fragment F on Thing { "
    spread += " ".join(f"a{n}: id" for n in range(16)) + " }"
    assert refused(documents, spread)["ALIAS_LIMIT_EXCEEDED"]["actual"] == 32


def test_root_fields(documents: Documents) -> None:
    """Twenty fields at the root of an operation."""
    assert documents.operation("{ " + "hello " * 20 + "}", None)
    assert refused(documents, "{ " + "hello " * 21 + "}")["ROOT_FIELD_LIMIT_EXCEEDED"]["actual"] == 21


def test_directives(documents: Documents) -> None:
    """Fifty directives in a document."""
    assert documents.operation("{ " + "hello @skip(if: false) " * 20 + "}", None)
    text = "{ things { nodes { " + "id @skip(if: false) " * 51 + "} } }"
    assert refused(documents, text)["DIRECTIVE_LIMIT_EXCEEDED"]["actual"] == 51


def test_tokens(documents: Documents) -> None:
    """Two thousand tokens; the rest is not even read."""
    assert refused(documents, "{ " + "hello " * 2000 + "}") == {
        "TOKEN_LIMIT_EXCEEDED": {"code": "TOKEN_LIMIT_EXCEEDED", "limit": 2000}
    }


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("{ hello }", {}, 0),
        (f"{{ things {{ {NODE} }} }}", {}, 21),
        (f"{{ things(first: 100) {{ {NODE} }} }}", {}, 101),
        (f"{{ things(last: 7) {{ {NODE} }} }}", {}, 8),
        (f"{{ things(first: 10) {{ nodes {{ things(first: 5) {{ {NODE} }} }} }} }}", {}, 71),
        (f"query($n: Int) {{ things(first: $n) {{ {NODE} }} }}", {"n": 50}, 51),
        (f"query($n: Int) {{ things(first: $n) {{ {NODE} }} }}", {}, 21),
        (f"query($n: Int = 3) {{ things(first: $n) {{ {NODE} }} }}", {}, 4),
        (f"query($n: Int = 3) {{ things(first: $n) {{ {NODE} }} }}", {"n": None}, 21),
        ("query($n: Int) { things(first: $n) { ...F } } fragment F on ThingConnection { nodes { id } }", {"n": 2}, 3),
    ],
)
def test_cost(documents: Documents, text: str, variables: dict[str, Any], expected: int) -> None:
    """A connection costs itself and its page size times its children; scalars cost nothing."""
    assert cost(documents, text, **variables) == expected


async def test_cost_is_answered_and_limited() -> None:
    """The cost stands in the answer's extensions; above 5,000 nothing runs."""
    world = World()
    async with client(world) as http:
        query = f"query($n: Int) {{ things(first: 10) {{ nodes {{ things(first: $n) {{ {NODE} }} }} }} }}"
        answer = (await http.post("/", json={"query": query, "variables": {"n": 3}})).json()
        assert answer["extensions"] == {"cost": 51}
        answer = (await http.post("/", json={"query": query, "variables": {"n": 500}})).json()
        [error] = answer["errors"]
        assert error["extensions"] == {"code": "COST_LIMIT_EXCEEDED", "limit": 5000, "actual": 5021}
        assert "5,000" in error["message"]
        assert "5,021" in error["message"]
        assert world.contexts == 1


async def test_the_whole_introspection_query_passes() -> None:
    """GraphiQL's own query is deeper than any other and is let through."""
    query = get_introspection_query(
        specified_by_url=True, directive_is_repeatable=True, schema_description=True, input_value_deprecation=True
    )
    async with client(World()) as http:
        answer = (await http.post("/", json={"query": query})).json()
        assert answer["data"]["__schema"]["types"]
        assert "errors" not in answer


BOMBS = {
    "doubling fragments": "query($n: Int) { ...F0 } "
    + " ".join(f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(120))
    + " fragment F120 on Query { things(first: $n) { nodes { id } } }",
    "doubling with pages": "query($n: Int) { things { nodes { ...F0 } } } "
    + " ".join(
        f"fragment F{n} on Thing {{ things(first: $n) {{ nodes {{ ...F{n + 1} }} a: nodes {{ ...F{n + 1} }} }} }}"
        for n in range(50)
    )
    + " fragment F50 on Thing { id }",
    "cycle": "{ ...A } fragment A on Query { ...B ...B } fragment B on Query { ...A ...A }",
    "same field 1,900 times": "{ things { nodes { " + "id " * 1900 + "} } }",
    "same object 600 times": "{ things { " + "nodes { id } " * 480 + "} }",
    "same object in inline fragments": "{ things { " + "... { nodes { id } } " * 240 + "} }",
    "deep inline fragments": "{ " + "... { " * 600 + "hello" + " }" * 600 + " }",
    "chain of fragments": "{ ...F0 } "
    + " ".join(f"fragment F{n} on Query {{ ...F{n + 1} }}" for n in range(240))
    + " fragment F240 on Query { hello }",
    "introspection": "{ __schema { types { " + "fields { type { " * 30 + "name" + " } }" * 30 + " } } }",
}


@pytest.mark.parametrize("name", BOMBS)
def test_hostile_documents_cost_little(documents: Documents, name: str) -> None:
    """Whatever a document of 2,000 tokens does, it is judged in the time that its length deserves."""
    text = BOMBS[name]
    started = time.process_time()
    with pytest.raises(Refused):
        documents.operation(text, None)
    # Exponential walks take minutes or for ever here; this only tells them apart, it times nothing.
    assert time.process_time() - started < 2


def test_a_cost_that_doubles_with_each_fragment_is_found_at_once(documents: Documents) -> None:
    """A fragment's cost is worked out once per request, however often it is spread."""
    text = "query($n: Int) { things(first: 1) { nodes { ...F0 } } } "
    text += " ".join(f"fragment F{n} on Thing {{ ...F{n + 1} ...F{n + 1} }}" for n in range(60))
    text += " fragment F60 on Thing { things(first: $n) { nodes { id } } }"
    assert cost(documents, text, n=1) == 2 + 2 * 2**60


def test_documents_are_remembered_up_to_a_number() -> None:
    """The same text is parsed and validated once; the least used is forgotten first."""
    documents = Documents(schema._schema, Limits(cached_documents=2))
    first = documents.operation("{ hello }", None)
    documents.operation("{ user }", None)
    assert documents.operation("{ hello }", None) is first
    documents.operation("{ square(n: 2) }", None)
    assert documents.operation("{ hello }", None) is first
    documents.operation("{ user }", None)
    documents.operation("{ square(n: 2) }", None)
    assert documents.operation("{ hello }", None) is not first
