"""Workflows over GraphQL: their whole life, their versions, their lists."""

from __future__ import annotations

from typing import Any

import pytest

from engine.access import LOCAL, ROLES, Actor
from tests.engine.conftest import chain, history, started
from tests.graph.conftest import Asker

RESULT = """
  __typename
  ... on UserError { code message path }
  ... on ValidationFailed { problems { code pointer message } }
  ... on Conflict { details }
"""
VERSIONED = """
  changed changeSeq workflow { id name status viewerCanEdit viewerCanRun } version { id version label changeNote }
"""


async def change(ask: Asker, mutation: str, **input: Any) -> dict[str, Any]:
    """The result of a mutation that makes a version."""
    kind = mutation[0].upper() + mutation[1:]
    text = (
        f"mutation($input: {kind}Input!) {{ {mutation}(input: $input) "
        f"{{ {RESULT} ... on {kind}Payload {{ {VERSIONED} }} }} }}"
    )
    return dict((await ask(text, input=input))[mutation])


async def step(ask: Asker, mutation: str, id: str) -> str:
    """The workflow's status after a step, or the refusal's code."""
    kind = mutation[0].upper() + mutation[1:]
    text = (
        f"mutation($input: {kind}Input!) {{ {mutation}(input: $input) "
        f"{{ ... on UserError {{ code }} ... on {kind}Payload {{ changeSeq workflow {{ status }} }} }} }}"
    )
    found = (await ask(text, input={"id": id}))[mutation]
    return str(found["workflow"]["status"] if "workflow" in found else found["code"])


async def test_a_workflow_is_made_changed_and_restored(ask: Asker) -> None:
    """Versions follow each other; a stale base is a Conflict that names both; going back makes a new version."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")}, changeNote="first")
    assert made["__typename"] == "WorkflowCreatePayload"
    assert (made["version"]["version"], made["workflow"]["status"]) == ("1.0.0", "ACTIVE")
    id, first = made["workflow"]["id"], made["version"]["id"]
    more = chain("core/noop", "core/noop")
    changed = await change(ask, "workflowUpdate", id=id, baseVersion=first, definition={"json": more}, bump="PATCH")
    assert changed["version"]["version"] == "1.0.1"
    stale = await change(ask, "workflowUpdate", id=id, baseVersion=first, definition={"json": chain("core/log")})
    assert stale["__typename"] == "Conflict"
    same = await change(ask, "workflowUpdate", id=id, baseVersion=changed["version"]["id"], definition={"json": more})
    assert same["changed"] is False
    beside = await change(ask, "workflowVersionCreate", workflow=id, definition={"json": chain("core/fail")}, label="x")
    assert beside["version"]["label"] == "x"
    back = await change(ask, "workflowVersionRestore", workflow=id, version=first)
    labeled = await change(ask, "workflowVersionLabel", version=back["version"]["id"], label="good")
    assert labeled["version"]["label"] == "good"
    data = await ask(
        """
        query($id: ID!, $first: ID!, $last: ID!) {
          workflow(id: $id) {
            currentVersion { version parent { version } nodes { id type join retry { max base } timeout }
              edges { source } triggers { id type }
              definition inputMapping nodeConfig workflowConfig outputMapping parameters scenario }
            versions(first: 2) { totalCount nodes { version } pageInfo { hasNextPage endCursor } }
          }
          workflowDiff(from: $first, to: $last) { identical }
          byNumber: workflowVersion(workflow: $id, version: "1.0.1") { version }
          current: workflowVersion(workflow: $id) { label }
        }
        """,
        id=id,
        first=first,
        last=back["version"]["id"],
    )
    current = data["workflow"]["currentVersion"]
    assert current["nodes"] == [
        {"id": "n1", "type": "core/noop", "join": "ALL", "retry": {"max": 3, "base": "PT1S"}, "timeout": "PT5M"}
    ]
    assert current["triggers"] == [{"id": "by-hand", "type": "manual"}]
    assert current["nodeConfig"] == {"n1": {}}
    assert current["workflowConfig"] == current["definition"]
    assert data["workflow"]["versions"]["totalCount"] == 4
    assert data["workflow"]["versions"]["pageInfo"]["hasNextPage"] is True
    assert data["workflowDiff"] == {"identical": True}
    assert data["byNumber"] == {"version": "1.0.1"}
    assert data["current"] == {"label": "good"}


async def test_the_steps_of_a_workflows_life(ask: Asker) -> None:
    """Each step answers with the new status; one that its status does not allow is refused by name."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")}, status="DRAFT")
    id = made["workflow"]["id"]
    steps = [
        ("workflowPublish", "ACTIVE"),
        ("workflowPublish", "ILLEGAL_TRANSITION"),
        ("workflowDeactivate", "INACTIVE"),
        ("workflowActivate", "ACTIVE"),
        ("workflowHide", "HIDDEN"),
        ("workflowShow", "ACTIVE"),
        ("workflowArchive", "ARCHIVED"),
        ("workflowActivate", "ACTIVE"),
    ]
    assert [await step(ask, name, id) for name, _ in steps] == [expected for _, expected in steps]
    assert await step(ask, "workflowHide", "wf-none") == "NOT_FOUND"


async def test_deleting_hides_and_permanent_deleting_removes(ask: Asker) -> None:
    """A deleted workflow can be found by status and restored; deleted for good, it and its runs are gone."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    id = made["workflow"]["id"]
    run = await started(ask.engine, chain("core/noop"))
    await history(ask.engine, run)
    delete = """
      mutation($id: ID!, $permanent: Boolean!) { workflowDelete(input: {id: $id, permanent: $permanent}) {
        __typename ... on WorkflowDeletePayload { id workflow { status } }
      } }
    """
    gone = (await ask(delete, id=id, permanent=False))["workflowDelete"]
    assert gone["workflow"] == {"status": "DELETED"}
    listed = "query($where: WorkflowWhere) { workflows(where: $where) { nodes { id } totalCount } }"
    assert (await ask(listed))["workflows"]["totalCount"] == 0
    assert (await ask(listed, where={"status": {"eq": "DELETED"}}))["workflows"]["nodes"] == [{"id": id}]
    assert await step(ask, "workflowRestore", id) == "INACTIVE"
    gone = (await ask(delete, id=id, permanent=True))["workflowDelete"]
    assert gone == {"__typename": "WorkflowDeletePayload", "id": id, "workflow": None}
    assert (await ask("query($id: ID!) { node(id: $id) { id } }", id=run))["node"] is None


async def test_hidden_workflows_are_listed_only_by_status(ask: Asker) -> None:
    """HIDDEN is left out of lists unless the filter speaks of status."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    await step(ask, "workflowHide", made["workflow"]["id"])
    text = "query($where: WorkflowWhere) { workflows(where: $where) { totalCount } }"
    assert (await ask(text))["workflows"]["totalCount"] == 0
    assert (await ask(text, where={"name": {"contains": "TES"}}))["workflows"]["totalCount"] == 0
    nested = {"or": [{"status": {"in": ["HIDDEN"]}}, {"name": {"eq": "other"}}]}
    assert (await ask(text, where=nested))["workflows"]["totalCount"] == 1


async def test_an_export_imports_unchanged(ask: Asker) -> None:
    """The exported text imported again changes nothing; where the name exists, an import is refused unless told."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    export = """
      mutation($input: WorkflowExportInput!) { workflowExport(input: $input) {
        __typename ... on WorkflowExportPayload { text }
      } }
    """
    for format in ("YAML", "JSON"):
        text = (await ask(export, input={"id": made["workflow"]["id"], "format": format}))["workflowExport"]["text"]
        refused = await change(ask, "workflowImport", definition={"text": text})
        assert refused["code"] == "CONFLICT"
        again = await change(ask, "workflowImport", definition={"text": text}, onConflict="NEW_VERSION")
        assert (again["changed"], again["version"]["id"]) == (False, made["version"]["id"])


async def test_a_copy_is_a_draft(ask: Asker) -> None:
    """workflowDuplicate makes a DRAFT under the new name; a name that is taken is a Conflict."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    copy = await change(ask, "workflowDuplicate", id=made["workflow"]["id"], name="copy")
    assert (copy["workflow"]["name"], copy["workflow"]["status"]) == ("copy", "DRAFT")
    assert copy["workflow"]["viewerCanRun"] is False
    assert (await change(ask, "workflowDuplicate", id=made["workflow"]["id"], name="test"))["code"] == "CONFLICT"


async def test_every_problem_is_told_at_once(ask: Asker) -> None:
    """An invalid definition gives ValidationFailed with each problem; definitionValidate gives the same list."""
    wrong = chain("no/such", "core/noop") | {"triggers": [], "name": ""}
    refused = await change(ask, "workflowCreate", definition={"json": wrong})
    assert refused["__typename"] == "ValidationFailed"
    assert len(refused["problems"]) >= 3
    text = "query($d: DefinitionInput!) { definitionValidate(definition: $d) { code pointer message } }"
    assert (await ask(text, d={"json": wrong}))["definitionValidate"] == refused["problems"]
    assert (await ask(text, d={"text": "{nodes: ["}))["definitionValidate"]
    assert (await ask(text, d={"json": chain("core/noop")}))["definitionValidate"] == []


async def test_a_draft_keeps_its_problems(ask: Asker) -> None:
    """A DRAFT may be wrong: its version shows what is, and publishing it is refused."""
    wrong = chain("core/noop") | {"triggers": []}
    made = await change(ask, "workflowCreate", definition={"json": wrong}, status="DRAFT")
    text = "query($id: ID!) { workflow(id: $id) { currentVersion { problems { code } nodes { id } definition } } }"
    found = (await ask(text, id=made["workflow"]["id"]))["workflow"]["currentVersion"]
    assert found["problems"]
    assert found["definition"]["name"] == "test"
    assert await step(ask, "workflowPublish", made["workflow"]["id"]) == "VALIDATION_FAILED"


async def test_who_may_only_look_changes_nothing(ask: Asker) -> None:
    """Every mutation of workflows but the export is refused to a viewer."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    viewer = ask.as_(Actor("usr-x", "x", LOCAL.project_id, ROLES["viewer"]))
    assert await step(viewer, "workflowHide", made["workflow"]["id"]) == "PERMISSION_DENIED"
    refused = await change(viewer, "workflowCreate", definition={"json": chain("core/noop")})
    assert refused["__typename"] == "PermissionDenied"
    data = await viewer("{ workflows { nodes { viewerCanEdit viewerCanRun } } viewer { permissions } }")
    assert data["workflows"]["nodes"] == [{"viewerCanEdit": False, "viewerCanRun": False}]


async def test_lists_sort_and_filter(ask: Asker) -> None:
    """By name, tag and text; each order pages by key."""
    for name, tags in (("b", ["x"]), ("a", ["x", "y"]), ("c", [])):
        await ask.engine.workflows.create(LOCAL, chain("core/noop") | {"name": name, "tags": tags})
    text = """
      query($where: WorkflowWhere, $order: WorkflowOrder!, $after: String) {
        workflows(where: $where, orderBy: $order, after: $after, first: 2) { nodes { name } pageInfo { endCursor } }
      }
    """
    page = (await ask(text, order="NAME_ASC"))["workflows"]
    assert [node["name"] for node in page["nodes"]] == ["a", "b"]
    rest = (await ask(text, order="NAME_ASC", after=page["pageInfo"]["endCursor"]))["workflows"]
    assert [node["name"] for node in rest["nodes"]] == ["c"]
    tagged = (await ask(text, order="CREATED_DESC", where={"tag": {"contains": "x"}}))["workflows"]
    assert [node["name"] for node in tagged["nodes"]] == ["a", "b"]


async def test_nested_lists_cost_one_statement(ask: Asker) -> None:
    """Versions and runs of a page of workflows are read together."""
    for name in ("a", "b", "c"):
        await history(ask.engine, await started(ask.engine, chain("core/noop") | {"name": name}))
    text = """
      query($n: Int) { workflows(first: $n) { nodes { currentVersion { version }
        versions { totalCount nodes { version } } instances(first: 3) { totalCount nodes { id } } } } }
    """
    counts = []
    for n in (1, 3):
        with ask.statements() as statements:
            await ask(text, n=n)
        counts.append(len(statements))
    assert counts[0] == counts[1]


async def test_node_types_are_listed_with_schemas(ask: Asker) -> None:
    """nodeTypes gives what a form needs, by category and search."""
    text = "query($c: String, $s: String) { nodeTypes(category: $c, search: $s) { name category parametersSchema } }"
    every = (await ask(text))["nodeTypes"]
    assert {"core/noop", "http/request"} <= {kind["name"] for kind in every}
    core = (await ask(text, c="core", s="NOTHING"))["nodeTypes"]
    assert [kind["name"] for kind in core] == ["core/noop"]
    assert isinstance(core[0]["parametersSchema"], dict)


async def test_strangers_see_only_that_the_server_works(ask: Asker) -> None:
    """viewer is null, health is told, everything else needs a token."""
    stranger = ask.as_(None)
    assert await stranger("{ viewer { id } health { status } }") == {"viewer": None, "health": {"status": "OK"}}
    for text in ("{ workflows { totalCount } }", '{ node(id: "wf-x") { id } }', "{ nodeTypes { name } }"):
        assert await stranger.code(text) == "UNAUTHENTICATED"


@pytest.mark.parametrize("arguments", ["", '(id: "wf-x", name: "x")'])
async def test_a_look_up_wants_one_key(ask: Asker, arguments: str) -> None:
    """workflow needs an id or a name, not both and not neither."""
    assert await ask.code(f"{{ workflow{arguments} {{ id }} }}") == "BAD_INPUT"


async def test_nodes_come_in_the_order_asked_for(ask: Asker) -> None:
    """nodes(ids) gives null for what is not there."""
    made = await change(ask, "workflowCreate", definition={"json": chain("core/noop")})
    ids = [made["version"]["id"], "junk", "node-x", made["workflow"]["id"]]
    found = (await ask("query($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }", ids=ids))["nodes"]
    assert [each and each["__typename"] for each in found] == ["WorkflowVersion", None, None, "Workflow"]
