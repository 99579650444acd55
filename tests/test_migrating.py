"""``docs/migrating.md`` leaves nobody behind: every older operation has its place, and what it names is there."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLInputObjectType, GraphQLObjectType, GraphQLUnionType, parse, validate

from graph.schema import build_schema
from tests.graph.conftest import Asker, ask

__all__ = ["ask"]

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "migrating.md").read_text()
SCHEMA = build_schema()._schema

OLDER = {
    "Servers": {
        "POST /servers/register",
        "GET /servers",
        "GET /servers/{server_id}",
        "PUT /servers/{server_id}",
        "DELETE /servers/{server_id}",
        "PUT /servers/{server_id}/status",
        "GET /servers/{server_id}/health",
        "GET /servers/available",
    },
    "Batches and tasks": {
        "POST /batch/check-server",
        "POST /batch/process",
        "GET /batch/tasks/{task_id}",
        "GET /batch/tasks",
        "POST /batch",
        "GET /batch/{task_id}",
        "PUT /batch/{task_id}",
        "DELETE /batch/{task_id}",
        "POST /batch/{task_id}/execute",
        "GET /batch/{task_id}/executions",
        "GET /batch/executions/{execution_id}",
        "PUT /batch/executions/{execution_id}/status",
    },
    "Workflows": {
        "POST /workflows/",
        "GET /workflows/",
        "GET /workflows/{workflow_id}",
        "POST /workflows/{workflow_id}/versions",
        "GET /workflows/{workflow_id}/versions",
        "PUT /workflows/{workflow_id}/hide",
        "PUT /workflows/{workflow_id}/show",
        "PUT /workflows/{workflow_id}",
        "DELETE /workflows/{workflow_id}",
        "PUT /workflows/{workflow_id}/archive",
        "PUT /workflows/{workflow_id}/activate",
    },
}


def section(title: str) -> str:
    """What stands under a heading."""
    return TEXT.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in it, without their heads."""
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    heads = {index for index, cells in enumerate(found) if set("".join(cells)) <= {"-"}}
    return [cells for index, cells in enumerate(found) if index not in heads and index + 1 not in heads]


def operations(title: str) -> list[tuple[str, str]]:
    """The older operation and the GraphQL field of each row."""
    found = []
    for cells in rows(section(title)):
        if older := re.fullmatch(r"`([A-Z]+ /\S*)`", cells[0]):
            link = re.fullmatch(r"\[`(\w+)`\]\(operations/(\w+)\.graphql\)", cells[1])
            assert link is not None, cells
            assert link[1] == link[2], cells
            found.append((older[1], link[1]))
    return found


def test_it_names_every_older_operation() -> None:
    """All 31 of them, each in one row of its own."""
    assert sum(map(len, OLDER.values())) == 31
    for title, older in OLDER.items():
        assert Counter(name for name, _ in operations(title)) == Counter(older), title


@pytest.mark.parametrize("title", OLDER)
def test_what_it_names_exists(title: str) -> None:
    """Each GraphQL operation is in the schema, and has an example (which a test of its own runs)."""
    roots = {
        name
        for root in (SCHEMA.query_type, SCHEMA.mutation_type, SCHEMA.subscription_type)
        if root
        for name in root.fields
    }
    for _, name in operations(title):
        assert name in roots
    for name in re.findall(r"\]\(operations/(\w+)\.graphql\)", section(title)):
        text = (DOCS / "operations" / f"{name}.graphql").read_text()
        assert re.search(rf"^  {name}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("older", ["GET /batch/{task_id}/executions", "GET /workflows/{workflow_id}/versions"])
def test_the_fields_that_stand_for_operations_exist(older: str) -> None:
    """Where a field of an object takes the place of an operation, the row says which."""
    [(cells, kind)] = [
        (cells, {"task": "Task", "workflow": "Workflow"}[cells[1].split("`")[1]])
        for title in OLDER
        for cells in rows(section(title))
        if cells[0] == f"`{older}`"
    ]
    [field] = re.findall(r"the field `(\w+)`", cells[2])
    found = SCHEMA.type_map[kind]
    assert isinstance(found, GraphQLObjectType)
    assert field in found.fields


def test_every_refusal_exists() -> None:
    """The results that stand for status codes are in the schema, with the fields that the table names."""
    named = {}
    for cells in rows(section("Errors")):
        status, result, besides = cells
        if refusal := re.match(r"`(\w+)`", result):
            named[refusal[1]] = status
            kind = SCHEMA.type_map[refusal[1]]
            assert isinstance(kind, GraphQLObjectType)
            first = re.match(r"`(\w+)", besides)
            assert first is not None
            assert first[1] in kind.fields
    said = " ".join(named.values())
    assert all(code in said for code in ("400", "404", "409", "503"))
    union = SCHEMA.type_map["BatchStartResult"]
    assert isinstance(union, GraphQLUnionType)
    assert named.keys() <= {kind.name for kind in union.types}


def test_the_fields_of_a_batch_exist() -> None:
    """What the older batch input is called now is what the schema calls it."""
    given = SCHEMA.type_map["BatchStartInput"]
    assert isinstance(given, GraphQLInputObjectType)
    older = {
        cells[0].strip("`"): cells[1]
        for cells in rows(section("Batches and tasks"))
        if "_" in cells[0] and " " not in cells[0]
    }
    assert set(older) == {"workflow_name", "target_folders", "folder_keywords", "selected_server", "output_root"}
    for words in older.values():
        found = re.match(r"`(\w+)", words)
        assert found is not None
        assert found[1] in given.fields


def test_the_examples_in_it_are_valid() -> None:
    """Every GraphQL block fits the schema."""
    blocks = re.findall(r"```graphql\n(.*?)```", TEXT, re.DOTALL)
    assert blocks
    for block in blocks:
        assert validate(SCHEMA, parse(block)) == []


@pytest.mark.parametrize(
    ("mutation", "version", "status"), [("workflowCreate", "1.0.0", "ACTIVE"), ("workflowImport", "2.3.0", "HIDDEN")]
)
async def test_a_workflow_of_the_older_shape_is_taken_as_it_stands(
    ask: Asker, mutation: str, version: str, status: str
) -> None:
    """Its body is a definition as it is, and every field of it can be read back; an import keeps number and status."""
    nodes = [{"node_id": "shout", "node_type": "core/transform", "parameters": {"output": {"said": "{{ what }}"}}}]
    body: dict[str, Any] = {
        "name": "older",
        "description": "of the batch days",
        "scenario": "image processing",
        "version": "2.3.0",
        "status": "hidden",
        "workflow_config": {"nodes": nodes},
        "node_config": {"shout": {"gpu": 1}},
        "input_mapping": {"image": "3.inputs.image"},
        "output_mapping": {"said": "$.nodes.shout.said"},
        "parameters": {"loud": True},
    }
    data = await ask(
        """
        mutation ($body: JSON!) { MUTATION(input: {definition: {json: $body}}) {
          ... on UserError { message }
          ... on ValidationFailed { problems { pointer message } }
          ... on PAYLOAD { workflow { name description scenario status currentVersion {
            version workflowConfig nodeConfig inputMapping outputMapping parameters scenario problems { code } } } } } }
        """.replace("MUTATION", mutation).replace("PAYLOAD", f"W{mutation[1:]}Payload"),
        body=body,
    )
    made = data[mutation]["workflow"]
    kept = made.pop("currentVersion")
    assert made == {
        "name": "older",
        "description": "of the batch days",
        "scenario": "image processing",
        "status": status,
    }
    assert kept["problems"] == []
    assert kept["version"] == version
    assert [node["id"] for node in kept["workflowConfig"]["nodes"]] == ["shout"]
    for older, now in (
        ("node_config", "nodeConfig"),
        ("input_mapping", "inputMapping"),
        ("output_mapping", "outputMapping"),
        ("parameters", "parameters"),
        ("scenario", "scenario"),
    ):
        assert kept[now] == body[older], now
