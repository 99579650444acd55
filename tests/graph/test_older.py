"""Workflows of the older batch form, imported and read back over GraphQL."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.graph.conftest import Asker

GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
OLDER: dict[str, Any] = {
    "id": 7,
    "name": "older",
    "description": "of the batch days",
    "scenario": "图像处理",
    "version": "2.3.1",
    "workflow_config": GRAPH,
    "node_config": {"nodes": []},
    "input_mapping": {"1.inputs.image": "file"},
    "output_mapping": {"pictures": "9.images"},
    "parameters": {"seed": 11},
    "parent_id": None,
    "status": "hidden",
}
IMPORT = """
mutation ($input: WorkflowImportInput!) {
  workflowImport(input: $input) {
    ... on UserError { message }
    ... on ValidationFailed { problems { pointer message } }
    ... on WorkflowImportPayload { changed workflow { id status } version {
      id version workflowConfig nodeConfig inputMapping outputMapping parameters scenario
      nodes { id type } problems { code } } }
  }
}
"""
EXPORT = """
mutation ($input: WorkflowExportInput!) {
  workflowExport(input: $input) { ... on WorkflowExportPayload { text } }
}
"""


async def imported(ask: Asker, document: Any, **input: Any) -> dict[str, Any]:
    """What an import answers."""
    given = {"definition": {"text": document if isinstance(document, str) else msgspec.json.encode(document).decode()}}
    return dict((await ask(IMPORT, input=given | input))["workflowImport"])


@pytest.mark.parametrize("status", ["normal", "hidden"])
async def test_an_older_workflow_keeps_its_number_its_status_and_its_fields(ask: Asker, status: str) -> None:
    """Nothing of it is lost, and importing its export makes no new version."""
    made = await imported(ask, {**OLDER, "status": status})
    assert made["workflow"]["status"] == ("HIDDEN" if status == "hidden" else "ACTIVE")
    version = made["version"]
    assert version["problems"] == []
    assert version["version"] == "2.3.1"
    assert [node["type"] for node in version["nodes"]] == ["comfyui/prompt"]
    for key, name in (
        ("workflow_config", "workflowConfig"),
        ("node_config", "nodeConfig"),
        ("input_mapping", "inputMapping"),
        ("output_mapping", "outputMapping"),
        ("parameters", "parameters"),
        ("scenario", "scenario"),
    ):
        assert version[name] == OLDER[key], key
    text = (await ask(EXPORT, input={"id": made["workflow"]["id"], "format": "YAML"}))["workflowExport"]["text"]
    again = await imported(ask, text, onConflict="NEW_VERSION")
    assert (again["changed"], again["version"]["id"]) == (False, version["id"])


async def test_an_older_definition_keeps_what_it_said_within(ask: Asker) -> None:
    """A body that says something else than the fields around it."""
    config = {"nodes": [{"node_id": "a", "node_type": "core/noop"}], "description": "inner", "tags": ["x"]}
    version = (await imported(ask, {**OLDER, "workflow_config": config}))["version"]
    assert version["workflowConfig"]["description"] == "inner"
    assert [node["id"] for node in version["workflowConfig"]["nodes"]] == ["a"]


async def test_an_older_definition_that_is_not_whole_is_a_draft_as_it_was_given(ask: Asker) -> None:
    """The older interface took a body without nodes; here it waits for somebody to mend it."""
    given = {**OLDER, "workflow_config": {"nodes": []}, "node_config": {"nodes": []}}
    version = (await imported(ask, given, status="DRAFT"))["version"]
    assert [problem["code"] for problem in version["problems"]] == ["NO_NODE"]
    assert (version["workflowConfig"], version["nodeConfig"]) == ({"nodes": []}, {"nodes": []})
