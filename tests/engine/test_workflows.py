"""The life of workflows and versions, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, update

from db.models import Instance
from db.session import Database
from db.store import access as access_store
from db.store import changes
from db.store import workflows as store
from db.store.journal import Create, commit
from engine import definitions
from engine.access import DEFAULT_PROJECT, LOCAL, ROLES, Access, Actor
from engine.workflows import DELETE_BATCH, Changed, Workflows
from flow.definition import TypeInfo
from flow.errors import Conflict, Denied, IllegalTransition, Invalid, NotFound
from flow.events import InstanceCreated, Recorded
from flow.states import WORKFLOW_TRANSITIONS, WorkflowStatus, WorkflowStep
from flow.versions import Bump, SemVer

S = WorkflowStatus
TYPES = {"core/noop": TypeInfo("core/noop"), "core/log": TypeInfo("core/log")}
EDITOR = Actor("usr-admin", "editor", DEFAULT_PROJECT, ROLES["editor"])
STRANGER = Actor("usr-admin", "admin", "proj-other", ROLES["admin"])
VIEWER = Actor("usr-admin", "viewer", DEFAULT_PROJECT, ROLES["viewer"])


class House:
    """Workflows on a database, and what they published."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.types = dict(TYPES)
        self.published: list[tuple[str, int]] = []
        self.workflows = Workflows(database, lambda: self.types, lambda *hint: self.published.append(hint))

    async def status(self, workflow_id: str) -> str:
        return (await self.workflows.get(LOCAL, workflow_id)).status

    async def version(self, version_id: str | None) -> store.StoredVersion:
        found = await self.database.read(store.version, DEFAULT_PROJECT, version_id or "")
        assert found is not None
        return found

    async def current(self, workflow_id: str) -> store.StoredVersion:
        return await self.version((await self.workflows.get(LOCAL, workflow_id)).current_version_id)

    async def newest_change(self) -> int:
        return await self.database.read(changes.newest, DEFAULT_PROJECT)


@pytest.fixture
async def house(database: Database) -> House:
    await Access(database).ensure_defaults()
    await database.write(access_store.ensure_project, "proj-other", "other", datetime(2026, 1, 1, tzinfo=UTC))
    return House(database)


def document(*nodes: str, name: str = "photos", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "nodes": [{"id": node, "type": "core/noop"} for node in nodes or ("a",)],
        **fields,
    }


# Creating


async def test_a_workflow_is_created_active_with_version_1_0_0(house: House) -> None:
    """Its row, its version and its place in the project's order are there when the call returns."""
    made = await house.workflows.create(
        LOCAL, document(display_name="照片", scenario="图像处理", tags=["x"]), change_note="first"
    )
    workflow = await house.workflows.get(LOCAL, made.workflow_id)
    assert (workflow.name, workflow.display_name, workflow.scenario) == ("photos", "照片", "图像处理")
    assert (workflow.status, workflow.tags, workflow.created_by) == ("ACTIVE", ("x",), LOCAL.user_id)
    assert workflow.current_version_id == made.version_id
    version = await house.version(made.version_id)
    assert (version.number, version.parent_id, version.problems, version.change_note) == ((1, 0, 0), None, (), "first")
    assert house.published == [(DEFAULT_PROJECT, made.change_seq)]


async def test_an_invalid_definition_is_refused_with_every_problem(house: House) -> None:
    """Nothing is stored, nothing published."""
    wrong = document("a", "a", edges=[{"source": "a", "target": "zzz"}]) | {"triggers": []}
    with pytest.raises(Invalid) as refusal:
        await house.workflows.create(LOCAL, wrong)
    assert {problem.code for problem in refusal.value.problems} >= {"DUPLICATE_ID", "UNKNOWN_NODE", "NO_TRIGGER"}
    assert await house.workflows.named(LOCAL, "photos") is None
    assert house.published == []


async def test_a_draft_keeps_its_problems_and_shows_them(house: House) -> None:
    """It is stored as it was given, so that the pointers of its problems fit."""
    wrong = {"name": "half-done", "nodes": [{"node_id": "a", "node_type": "core/unheard-of"}]}
    made = await house.workflows.create(LOCAL, wrong, status=S.DRAFT)
    version = await house.version(made.version_id)
    assert version.definition == wrong
    assert {problem["code"] for problem in version.problems} >= {"UNKNOWN_TYPE", "NO_TRIGGER"}
    assert await house.status(made.workflow_id) == "DRAFT"
    with pytest.raises(Invalid):
        await house.workflows.version(made.version_id or "")


async def test_a_draft_without_a_name_gets_one(house: House) -> None:
    """Two of them don't collide."""
    first = await house.workflows.create(LOCAL, {"name": "", "nodes": []}, status=S.DRAFT)
    second = await house.workflows.create(LOCAL, {}, status=S.DRAFT)
    names = {(await house.workflows.get(LOCAL, made.workflow_id)).name for made in (first, second)}
    assert len(names) == 2
    assert all(name.startswith("untitled-") for name in names)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "nul \x00", "half \ud800", 2**70, {1: "number as key"}, b"bytes", {"\x00": 1}]
)
async def test_what_no_database_stores_is_refused_even_in_a_draft(house: House, value: Any) -> None:
    """NaN, NUL, lone surrogates and the like are told at their place before they get to the store."""
    with pytest.raises(Invalid) as refusal:
        await house.workflows.create(LOCAL, document() | {"metadata": {"x": value}}, status=S.DRAFT)
    assert refusal.value.problems[0].code == "NOT_JSON"
    assert refusal.value.problems[0].pointer.startswith("/metadata/x")


@pytest.mark.parametrize("given", [None, [], "[]", "just text", "{", 5])
async def test_what_is_no_document_is_refused(house: House, given: Any) -> None:
    """Not even a draft can be made of it."""
    with pytest.raises(Invalid):
        await house.workflows.create(LOCAL, given, status=S.DRAFT)


async def test_a_name_is_taken_once_in_a_project(house: House) -> None:
    """The refusal names the workflow that has it; another project may use it."""
    made = await house.workflows.create(LOCAL, document())
    with pytest.raises(Conflict) as refusal:
        await house.workflows.create(LOCAL, document("b"))
    assert refusal.value.details["workflow_id"] == made.workflow_id
    await house.workflows.create(STRANGER, document())
    await house.workflows.delete(LOCAL, made.workflow_id)
    with pytest.raises(Conflict, match="restore it"):
        await house.workflows.create(LOCAL, document("b"))


async def test_of_many_who_take_a_name_one_gets_it(house: House) -> None:
    """The decision is made in the transaction."""
    results = await asyncio.gather(
        *(house.workflows.create(LOCAL, document()) for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, Changed) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 9


async def test_too_many_nodes_are_refused(house: House) -> None:
    """The limit is the one given."""
    small = Workflows(house.database, lambda: TYPES, lambda *_: None, max_nodes=2)
    await small.create(LOCAL, document("a", "b"))
    with pytest.raises(Invalid) as refusal:
        await small.create(LOCAL, document("a", "b", "c", name="large"))
    assert [problem.code for problem in refusal.value.problems] == ["TOO_MANY_NODES"]


# Versions


async def test_the_kind_of_change_is_derived_unless_it_is_named(house: House) -> None:
    """A new node is MINOR, a label PATCH, a newly required input MAJOR; a named kind wins."""
    made = await house.workflows.create(LOCAL, document("a"))

    async def changed(new: dict[str, Any], bump: Bump | None = None) -> tuple[int, int, int]:
        base = (await house.workflows.get(LOCAL, made.workflow_id)).current_version_id or ""
        result = await house.workflows.update(LOCAL, made.workflow_id, base, new, bump=bump)
        version = await house.version(result.version_id)
        assert version.parent_id == base
        return version.number

    assert await changed(document("a", "b")) == (1, 1, 0)
    assert await changed(document("a", "b", description="words")) == (1, 1, 1)
    needs = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string"}}}
    assert await changed(document("a", "b", input_schema=needs)) == (2, 0, 0)
    assert await changed(document("a", "b", "c", input_schema=needs), Bump.PATCH) == (2, 0, 1)
    for patch in range(2, 12):
        assert await changed(document("a", "b", "c", input_schema=needs, description=f"{patch}")) == (2, 0, patch)


async def test_an_update_from_a_stale_base_overwrites_nothing(house: House) -> None:
    """The second of two editors gets a Conflict with both versions."""
    made = await house.workflows.create(LOCAL, document("a"))
    base = made.version_id or ""
    first = await house.workflows.update(EDITOR, made.workflow_id, base, document("a", "b"))
    before = await house.newest_change()
    with pytest.raises(Conflict) as refusal:
        await house.workflows.update(LOCAL, made.workflow_id, base, document("a", "c"))
    details = refusal.value.details
    assert (details["base_version_id"], details["base_version"]) == (base, "1.0.0")
    assert (details["current_version_id"], details["current_version"]) == (first.version_id, "1.1.0")
    assert details["updated_by"] == EDITOR.user_id
    assert (await house.current(made.workflow_id)).id == first.version_id
    assert await house.newest_change() == before


async def test_of_many_updates_from_one_base_one_wins(house: House) -> None:
    """Racing editors never overwrite each other, and the loser's work leaves no version behind."""
    made = await house.workflows.create(LOCAL, document("a"))
    results = await asyncio.gather(
        *(
            house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document("a", f"n{i}"))
            for i in range(10)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, Changed) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 9
    assert (await house.current(made.workflow_id)).number == (1, 1, 0)


async def test_the_same_definition_again_makes_no_version(house: House) -> None:
    """In whatever spelling it comes; the answer says so, and nothing is published."""
    made = await house.workflows.create(LOCAL, document("a"))
    house.published.clear()
    again = document() | {"nodes": [{"node_id": "a", "node_type": "core/noop", "timeout": "300s"}]}
    result = await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", again)
    assert result == Changed(made.workflow_id, made.version_id, made.change_seq, changed=False)
    assert house.published == []
    assert await house.newest_change() == made.change_seq


async def test_true_is_not_one(house: House) -> None:
    """A parameter that changes from 1 to true is a change, though Python finds them equal."""
    made = await house.workflows.create(LOCAL, document(parameters={"x": 1}))
    result = await house.workflows.update(
        LOCAL, made.workflow_id, made.version_id or "", document(parameters={"x": True})
    )
    assert result.changed


async def test_updating_the_name_renames(house: House) -> None:
    """Unless it is taken."""
    made = await house.workflows.create(LOCAL, document("a"))
    await house.workflows.create(LOCAL, document(name="taken"))
    with pytest.raises(Conflict):
        await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document(name="taken"))
    await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document(name="fresh"))
    assert (await house.workflows.get(LOCAL, made.workflow_id)).name == "fresh"
    await house.workflows.create(LOCAL, document(name="photos"))


async def test_an_active_workflow_takes_no_invalid_update_and_a_draft_does(house: House) -> None:
    """Publishing with the update needs a valid one."""
    wrong = document("a") | {"triggers": []}
    active = await house.workflows.create(LOCAL, document("a"))
    with pytest.raises(Invalid):
        await house.workflows.update(LOCAL, active.workflow_id, active.version_id or "", wrong)
    draft = await house.workflows.create(LOCAL, document("a", name="draft"), status=S.DRAFT)
    worse = await house.workflows.update(LOCAL, draft.workflow_id, draft.version_id or "", wrong | {"name": "draft"})
    assert (await house.current(draft.workflow_id)).problems
    with pytest.raises(Invalid):
        await house.workflows.update(LOCAL, draft.workflow_id, worse.version_id or "", wrong, publish=True)
    good = document("a", "b", name="draft")
    await house.workflows.update(LOCAL, draft.workflow_id, worse.version_id or "", good, publish=True)
    assert await house.status(draft.workflow_id) == "ACTIVE"


async def test_a_base_of_another_workflow_or_project_is_not_found(house: House) -> None:
    """Ids that exist elsewhere are as good as none."""
    mine = await house.workflows.create(LOCAL, document("a"))
    other = await house.workflows.create(LOCAL, document("a", name="other"))
    theirs = await house.workflows.create(STRANGER, document("a"))
    for base in (other.version_id, theirs.version_id, "wfv-nothing", ""):
        with pytest.raises(NotFound):
            await house.workflows.update(LOCAL, mine.workflow_id, base or "", document("b"))


async def test_a_version_can_be_made_beside_the_current_one(house: House) -> None:
    """It does not change what runs; the next change is numbered after it."""
    made = await house.workflows.create(LOCAL, document("a"))
    beside = await house.workflows.version_create(LOCAL, made.workflow_id, document("a", "b"), label="candidate")
    assert (await house.current(made.workflow_id)).id == made.version_id
    version = await house.version(beside.version_id)
    assert (version.number, version.label, version.parent_id) == ((1, 1, 0), "candidate", made.version_id)
    assert (await house.workflows.get(LOCAL, made.workflow_id)).change_seq == beside.change_seq
    after = await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document("a", "c"))
    assert (await house.version(after.version_id)).number == (1, 2, 0)


async def test_restoring_a_version_makes_a_new_one_equal_to_it(house: House) -> None:
    """History grows; with a base given, only if that is still current."""
    made = await house.workflows.create(LOCAL, document("a"))
    second = await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document("a", "b"))
    with pytest.raises(Conflict):
        await house.workflows.version_restore(
            LOCAL, made.workflow_id, made.version_id or "", base_version_id=made.version_id
        )
    back = await house.workflows.version_restore(LOCAL, made.workflow_id, made.version_id or "")
    restored = await house.version(back.version_id)
    assert restored.definition == (await house.version(made.version_id)).definition
    assert restored.number > (await house.version(second.version_id)).number
    assert "1.0.0" in (restored.change_note or "")
    again = await house.workflows.version_restore(LOCAL, made.workflow_id, back.version_id or "")
    assert not again.changed


async def test_a_version_can_be_labelled(house: House) -> None:
    """And the label taken away; the definition stays as it was."""
    made = await house.workflows.create(LOCAL, document("a"))
    version_id = made.version_id or ""
    named = await house.workflows.version_label(LOCAL, version_id, "golden")
    assert (await house.version(version_id)).label == "golden"
    assert named.change_seq > made.change_seq
    assert not (await house.workflows.version_label(LOCAL, version_id, "golden")).changed
    await house.workflows.version_label(LOCAL, version_id, None)
    assert (await house.version(version_id)).label is None
    with pytest.raises(Invalid):
        await house.workflows.version_label(LOCAL, version_id, " ")
    with pytest.raises(NotFound):
        await house.workflows.version_label(STRANGER, version_id, "mine")


async def test_a_first_version_may_be_named(house: House) -> None:
    """Three numbers; a pre-release part is refused."""
    made = await house.workflows.create(LOCAL, document(), version=SemVer(0, 9, 10))
    assert (await house.version(made.version_id)).number == (0, 9, 10)
    with pytest.raises(Invalid):
        await house.workflows.create(LOCAL, document(name="rc"), version=SemVer(1, 0, 0, ("rc", "1")))


# The workflow as a whole


@pytest.mark.parametrize("step", list(WorkflowStep))
async def test_every_step_follows_the_table(house: House, step: WorkflowStep) -> None:
    """From each status the step leads where the table says, or is refused and changes nothing."""
    for status in S:
        made = await house.workflows.create(LOCAL, document(name=f"w-{status}"))
        await house.database.write(store.update_workflow, DEFAULT_PROJECT, made.workflow_id, status=status.value)
        act = getattr(house.workflows, step.value)
        expected = WORKFLOW_TRANSITIONS.get((status, step))
        if expected is None:
            before = await house.workflows.get(LOCAL, made.workflow_id)
            with pytest.raises(IllegalTransition):
                await act(LOCAL, made.workflow_id)
            assert await house.workflows.get(LOCAL, made.workflow_id) == before
        else:
            result = await act(LOCAL, made.workflow_id)
            workflow = await house.workflows.get(LOCAL, made.workflow_id)
            assert workflow.status == expected
            assert workflow.change_seq == result.change_seq
            assert house.published[-1] == (DEFAULT_PROJECT, result.change_seq)
            assert (workflow.deleted_at is not None) == (expected is S.DELETED)


async def test_publishing_needs_no_problems(house: House) -> None:
    """What is wrong today counts: a draft whose node type has come since is published, in canonical form."""
    wanted = document() | {"nodes": [{"node_id": "a", "node_type": "plugin/new"}]}
    made = await house.workflows.create(LOCAL, wanted, status=S.DRAFT)
    with pytest.raises(Invalid, match="plugin/new"):
        await house.workflows.publish(LOCAL, made.workflow_id)
    assert await house.status(made.workflow_id) == "DRAFT"
    house.types["plugin/new"] = TypeInfo("plugin/new")
    await house.workflows.publish(LOCAL, made.workflow_id)
    version = await house.version(made.version_id)
    assert version.problems == ()
    assert version.definition["nodes"] == [{"id": "a", "type": "plugin/new"}]
    assert (await house.workflows.version(version.id)).definition.nodes[0].type == "plugin/new"


async def test_what_has_problems_is_not_made_runnable_by_a_detour(house: House) -> None:
    """Archive and activate, or delete and restore, don't get a broken draft published."""
    wrong = document() | {"triggers": []}
    made = await house.workflows.create(LOCAL, wrong, status=S.DRAFT)
    await house.workflows.archive(LOCAL, made.workflow_id)
    with pytest.raises(Invalid):
        await house.workflows.activate(LOCAL, made.workflow_id)
    await house.workflows.delete(LOCAL, made.workflow_id)
    await house.workflows.restore(LOCAL, made.workflow_id)
    assert await house.status(made.workflow_id) == "DRAFT"


@pytest.mark.parametrize("step", [WorkflowStep.ARCHIVE, WorkflowStep.DELETE])
async def test_archived_and_deleted_workflows_are_read_only(house: House, step: WorkflowStep) -> None:
    """Each change is a Conflict that says what to do; reading and exporting work on."""
    made = await house.workflows.create(LOCAL, document("a"))
    second = await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document("a", "b"))
    id, old, current = made.workflow_id, made.version_id or "", second.version_id or ""
    await getattr(house.workflows, step.value)(LOCAL, id)
    for refused in (
        house.workflows.update(LOCAL, id, current, document("c")),
        house.workflows.version_create(LOCAL, id, document("c")),
        house.workflows.version_restore(LOCAL, id, old),
        house.workflows.version_label(LOCAL, old, "x"),
        house.workflows.import_(LOCAL, document("c"), on_conflict="new_version"),
    ):
        with pytest.raises(Conflict, match="first"):
            await refused
    assert "photos" in await house.workflows.export(LOCAL, id)
    assert (await house.workflows.version(current)).definition.name == "photos"


async def test_permanent_deletion_leaves_nothing_and_frees_the_name(house: House) -> None:
    """Workflow, versions and the memory of them are gone."""
    made = await house.workflows.create(LOCAL, document("a"))
    await house.workflows.version(made.version_id or "")
    result = await house.workflows.delete(LOCAL, made.workflow_id, permanent=True)
    assert house.published[-1] == (DEFAULT_PROJECT, result.change_seq)
    with pytest.raises(NotFound):
        await house.workflows.get(LOCAL, made.workflow_id)
    with pytest.raises(NotFound):
        await house.workflows.version(made.version_id or "")
    await house.workflows.create(LOCAL, document("a"))


# In and out


@pytest.mark.parametrize("format", ["yaml", "json"])
async def test_importing_an_export_changes_nothing(house: House, format: Any) -> None:
    """Text out, text in: the same workflow, no new version."""
    made = await house.workflows.create(
        LOCAL,
        document("a", "b", edges=[{"source": "a", "target": "b", "on": "always"}], description="a: b\n- 'c' 照片\n"),
    )
    text = await house.workflows.export(LOCAL, made.workflow_id, format=format)
    result = await house.workflows.import_(LOCAL, text, on_conflict="new_version")
    assert result == Changed(made.workflow_id, made.version_id, made.change_seq, changed=False)
    if format == "json":
        assert json.loads(text)["description"] == "a: b\n- 'c' 照片\n"


async def test_an_import_meets_an_existing_name(house: House) -> None:
    """Refused by default; as a new version if asked for."""
    made = await house.workflows.create(LOCAL, document("a"))
    with pytest.raises(Conflict):
        await house.workflows.import_(LOCAL, document("a", "b"))
    result = await house.workflows.import_(LOCAL, document("a", "b"), on_conflict="new_version")
    assert result.workflow_id == made.workflow_id
    assert (await house.current(made.workflow_id)).number == (1, 1, 0)


async def test_importing_text_that_cannot_be_read_says_where(house: House) -> None:
    """A problem with a line, not a stack."""
    with pytest.raises(Invalid, match="line 3"):
        await house.workflows.import_(LOCAL, "name: x\nnodes: [")


async def test_an_old_version_can_be_exported(house: House) -> None:
    """Not one of another workflow."""
    made = await house.workflows.create(LOCAL, document("a"))
    other = await house.workflows.create(LOCAL, document("a", name="other"))
    await house.workflows.update(LOCAL, made.workflow_id, made.version_id or "", document("a", "zweite"))
    assert "zweite" in await house.workflows.export(LOCAL, made.workflow_id)
    assert "zweite" not in await house.workflows.export(LOCAL, made.workflow_id, version_id=made.version_id)
    with pytest.raises(NotFound):
        await house.workflows.export(LOCAL, made.workflow_id, version_id=other.version_id)


async def test_a_duplicate_is_a_draft_of_its_own(house: House) -> None:
    """Its triggers don't fire beside the original's before somebody has looked."""
    made = await house.workflows.create(LOCAL, document("a"))
    copy = await house.workflows.duplicate(LOCAL, made.workflow_id, "copy")
    assert await house.status(copy.workflow_id) == "DRAFT"
    version = await house.version(copy.version_id)
    assert (version.definition["name"], version.number) == ("copy", (1, 0, 0))
    with pytest.raises(Conflict):
        await house.workflows.duplicate(LOCAL, made.workflow_id, "copy")
    with pytest.raises(Invalid):
        await house.workflows.duplicate(LOCAL, made.workflow_id, "  ")


async def test_validation_tells_every_problem_and_stores_nothing(house: House) -> None:
    """Of values and of text."""
    assert await house.workflows.validate(VIEWER, document("a")) == []
    assert len(await house.workflows.validate(VIEWER, document("a", "a") | {"triggers": []})) >= 2
    assert [problem.code for problem in await house.workflows.validate(VIEWER, "nodes: [")] == ["BAD_SYNTAX"]
    assert await house.newest_change() == 0


# Who may


async def test_another_projects_workflow_is_not_found(house: House) -> None:
    """For every operation."""
    made = await house.workflows.create(LOCAL, document("a"))
    id, version_id = made.workflow_id, made.version_id or ""
    w = house.workflows
    for attempt in (
        w.get(STRANGER, id),
        w.export(STRANGER, id),
        w.update(STRANGER, id, version_id, document("b")),
        w.version_create(STRANGER, id, document("b")),
        w.version_restore(STRANGER, id, version_id),
        w.version_label(STRANGER, version_id, "x"),
        w.duplicate(STRANGER, id, "mine"),
        w.delete(STRANGER, id),
        w.delete(STRANGER, id, permanent=True),
        *(getattr(w, step.value)(STRANGER, id) for step in WorkflowStep),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await w.named(STRANGER, "photos") is None
    assert await house.status(id) == "ACTIVE"


async def test_a_viewer_changes_nothing(house: House) -> None:
    """Reading is allowed, every change is Denied."""
    made = await house.workflows.create(LOCAL, document("a"))
    id, version_id = made.workflow_id, made.version_id or ""
    w = house.workflows
    await w.export(VIEWER, id)
    for attempt in (
        w.create(VIEWER, document("b", name="b")),
        w.import_(VIEWER, document("b", name="b")),
        w.update(VIEWER, id, version_id, document("b")),
        w.version_create(VIEWER, id, document("b")),
        w.version_restore(VIEWER, id, version_id),
        w.version_label(VIEWER, version_id, "x"),
        w.duplicate(VIEWER, id, "mine"),
        w.delete(VIEWER, id, permanent=True),
        *(getattr(w, step.value)(VIEWER, id) for step in WorkflowStep),
    ):
        with pytest.raises(Denied, match="workflow:write"):
            await attempt
    assert await house.newest_change() == made.change_seq


# What instances run


async def test_a_pinned_version_is_read_once_by_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred instances that start together cost one query, and the next ones none."""
    made = await house.workflows.create(LOCAL, document("a"))
    asked = 0
    read = house.database.read

    async def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return await read(*args, **kwargs)

    monkeypatch.setattr(house.database, "read", counting)
    found = await asyncio.gather(*(house.workflows.version(made.version_id or "") for _ in range(200)))
    assert asked == 1
    assert all(version is found[0] for version in found)
    assert (found[0].project_id, found[0].workflow_id, found[0].workflow_name) == (
        DEFAULT_PROJECT,
        made.workflow_id,
        "photos",
    )


async def test_whoever_waits_for_a_cancelled_reader_reads_it_themselves(house: House) -> None:
    """Cancelling the first of two callers does not cancel the second."""
    made = await house.workflows.create(LOCAL, document("a"))
    first = asyncio.create_task(house.workflows.version(made.version_id or ""))
    second = asyncio.create_task(house.workflows.version(made.version_id or ""))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).workflow_id == made.workflow_id
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_runs_is_not_deleted_for_good(house: House) -> None:
    """Instances that have not ended are named as the reason; when they have, everything goes, in batches."""
    made = await house.workflows.create(LOCAL, document("a"))
    created = InstanceCreated(workflow_id=made.workflow_id, version_id=made.version_id or "")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    starts = [Create(f"inst-{n}", DEFAULT_PROJECT, Recorded(1, at, created)) for n in range(DELETE_BATCH + 1)]
    await house.database.write(commit, starts)
    with pytest.raises(Conflict, match="Cancel them first") as refusal:
        await house.workflows.delete(LOCAL, made.workflow_id, permanent=True)
    assert refusal.value.details["open"] == len(starts)
    assert await house.status(made.workflow_id) == "ACTIVE"
    await house.database.write(lambda conn: conn.execute(update(Instance).values(completed_at=at)))
    await house.workflows.delete(LOCAL, made.workflow_id, permanent=True)
    assert await house.database.read(lambda conn: conn.execute(select(Instance.id)).all()) == []


async def test_the_versions_in_memory_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their nodes together: the one used longest ago goes, and is read again when it is needed."""
    monkeypatch.setattr(definitions, "MAX_NODES_KEPT", 4)
    made = [await house.workflows.create(LOCAL, document("a", "b", name=name)) for name in "xyz"]
    x, y, z = (one.version_id or "" for one in made)
    first = await house.workflows.version(x)
    second = await house.workflows.version(y)
    assert await house.workflows.version(x) is first
    await house.workflows.version(z)
    assert await house.workflows.version(x) is first
    assert await house.workflows.version(y) is not second
