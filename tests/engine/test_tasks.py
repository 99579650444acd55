"""Tasks as callers see them: what is refused and why, dry runs, and what may be done to a task when."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.access import LOCAL, ROLES
from engine.engine import Engine
from engine.tasks import Unavailable
from flow.errors import Conflict, Denied, IllegalTransition, Invalid, NotFound
from flow.servers import ServerStatus
from flow.tasks import BatchSpec, RunSpec, TaskStatus
from tests.engine.batch.doubles import Double, ended, item_rows, project, serving, task_row
from tests.engine.conftest import document

change = msgspec.structs.replace


def codes(refusal: pytest.ExceptionInfo[Invalid]) -> dict[str, str]:
    return {problem.pointer: problem.code for problem in refusal.value.problems}


async def test_a_dry_run_tells_and_stores_nothing(engine: Engine, tmp_path: Path) -> None:
    """How many files, how large, the first of them, what would be left out, on which servers."""
    spec = await project(engine, tmp_path, ["a.txt", "b.txt", "sub/c.txt", "d.jpg"], file_patterns=("*.txt",))
    (tmp_path / "files/in/out").symlink_to("/etc")
    (tmp_path / "files/in/z.txt").symlink_to("/etc/passwd")
    plan = await engine.tasks.batch_plan(LOCAL, spec, first=3)
    assert (plan.files, plan.bytes, plan.more) == (4, len("a.txt") * 2 + len("sub/c.txt"), False)
    assert [file.relative for file in plan.first] == ["a.txt", "b.txt", "z.txt"]
    assert plan.first[2].refusal is not None
    assert plan.warnings == {"LINK_OUTSIDE_ROOTS": 1}
    local = await engine.servers.named(LOCAL, "local")
    assert local is not None
    assert plan.servers == (local.id,)
    assert await engine.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM tasks").scalar()) == 0


async def test_folders_and_outputs_are_confined(engine: Engine, tmp_path: Path) -> None:
    """Every wrong place is told at once: not there, outside, by a link, a file, and an output among the inputs."""
    spec = await project(engine, tmp_path, ["a.txt"])
    (tmp_path / "files/link").symlink_to("/etc")
    wrong = change(spec, target_folders=("in", "gone", "/etc", "link", "in/a.txt", "", "a\0b"), output_root="in/sub")
    with pytest.raises(Invalid) as refusal:
        await engine.tasks.batch_start(LOCAL, wrong)
    assert codes(refusal) == {
        "/targetFolders/1": "FILE_NOT_FOUND", "/targetFolders/2": "PATH_NOT_ALLOWED",
        "/targetFolders/3": "PATH_NOT_ALLOWED", "/targetFolders/4": "NOT_A_FOLDER",
        "/targetFolders/5": "PATH_NOT_ALLOWED", "/targetFolders/6": "PATH_NOT_ALLOWED",
        "/outputRoot": "OUTPUT_IN_TARGET",
    }  # fmt: skip
    outputs = {
        "in": "OUTPUT_IN_TARGET", "../up": "PATH_NOT_ALLOWED", "in/../in/x": "OUTPUT_IN_TARGET",
        "x" * 256: "PATH_TOO_LONG", "file:///zz": "PATH_NOT_ALLOWED",
    }  # fmt: skip
    for output, code in outputs.items():
        with pytest.raises(Invalid) as refusal:
            await engine.tasks.batch_start(LOCAL, change(spec, output_root=output))
        assert codes(refusal) == {"/outputRoot": code}


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": 0},
        {"timeout": timedelta(seconds=-1)},
        {"parameters": {"x": float("nan")}},
        {"parameters": {"x": "\ud800"}},
        {"folder_keywords": ("a/b",)},
        {"item_retries": 11},
        {"name": "x" * 256},
        {"name": "\0"},
        {"description": "\ud800"},
        {"target_folders": ()},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_wrong_values_are_refused(engine: Engine, tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Before anything is stored, each with its place."""
    spec = await project(engine, tmp_path, ["a.txt"])
    with pytest.raises(Invalid) as refusal:
        await engine.tasks.batch_start(LOCAL, change(spec, **wrong))
    assert len(refusal.value.problems) == 1


async def test_unknown_things_are_not_found(engine: Engine, tmp_path: Path) -> None:
    """A workflow, a version, a server, a task, an item, an execution."""
    spec = await project(engine, tmp_path, ["a.txt"])
    other = await engine.workflows.create(LOCAL, document([{"id": "n", "type": "core/noop"}], name="other"))
    tasks = engine.tasks
    started = await tasks.create(LOCAL, RunSpec(type="core/noop"))
    await ended(engine, started)
    for call in (
        tasks.batch_start(LOCAL, change(spec, workflow_id="wf-x")),
        tasks.batch_start(LOCAL, change(spec, workflow_id=None, workflow_name="nobody")),
        tasks.batch_start(LOCAL, change(spec, version_id=other.version_id)),
        tasks.batch_start(LOCAL, change(spec, servers=("nobody",))),
        tasks.check(LOCAL, change(spec, servers=("nobody",))),
        tasks.create(LOCAL, RunSpec(type="core/noop", server="nobody")),
        tasks.update(LOCAL, "task-x", name="n"),
        tasks.delete(LOCAL, "task-x"),
        tasks.cancel(LOCAL, "task-x"),
        tasks.execute(LOCAL, "task-x"),
        tasks.items_retry(LOCAL, "task-x"),
        tasks.items_retry(LOCAL, started.task_id, items=["item-x"]),
        tasks.execution_status_set(LOCAL, "exec-x", "t", TaskStatus.RUNNING),
    ):
        with pytest.raises(NotFound):
            await call


async def test_a_server_that_can_not_take_it_says_why(engine: Engine, tmp_path: Path) -> None:
    """Disabled, not online (with its status), busy (with its task), no such workflow; starting is refused the same."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double, batch_size=1)
    spec = await project(engine, tmp_path, ["a.txt"], servers=("double-0",))
    check = await engine.tasks.check(LOCAL, spec)
    assert (check.available, check.server_name, check.batch_size) == (True, "double-0", 1)
    missing = await engine.tasks.check(LOCAL, change(spec, workflow_id=None, workflow_name="nobody"))
    assert (missing.available, missing.reason) == (False, Unavailable.WORKFLOW_NOT_FOUND)

    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(1)
    busy = await engine.tasks.check(LOCAL, spec)
    assert (busy.reason, busy.task_id) == (Unavailable.BUSY, started.task_id)
    with pytest.raises(Conflict) as refusal:
        await engine.tasks.batch_start(LOCAL, spec)
    assert refusal.value.code == "SERVER_UNAVAILABLE"
    assert refusal.value.details["task"] == started.task_id
    await double.let_go()
    await ended(engine, started)

    await engine.servers.status_set(LOCAL, server, ServerStatus.MAINTENANCE)
    away = await engine.tasks.check(LOCAL, spec)
    assert (away.reason, away.status) == (Unavailable.NOT_ONLINE, "MAINTENANCE")
    await engine.servers.update(LOCAL, server, enabled=False)
    assert (await engine.tasks.check(LOCAL, spec)).reason is Unavailable.DISABLED
    with pytest.raises(Conflict):
        await engine.tasks.execute(LOCAL, started.task_id)


async def test_only_a_task_that_has_not_started_can_be_changed(engine: Engine, tmp_path: Path) -> None:
    """Name, description, parameters, priority; afterwards it is a Conflict."""
    double = Double()
    await serving(engine, double)
    spec = await project(engine, tmp_path, ["a.txt"], servers=("double-0",))
    started = await engine.tasks.create(LOCAL, spec, start=False)
    assert started.execution_id is None
    await engine.tasks.update(LOCAL, started.task_id, name="new", description="why", parameters={"p": 1}, priority=9)
    row = await task_row(engine, started)
    assert (row.status, row.name, row.description, row.priority) == ("PENDING", "new", "why", 9)
    with pytest.raises(Invalid):
        await engine.tasks.update(LOCAL, started.task_id, priority=11)
    await engine.tasks.execute(LOCAL, started.task_id)
    await ended(engine, started)
    [work] = double.works.values()
    assert (work.parameters, work.priority) == ({"p": 1}, 9)
    with pytest.raises(Conflict):
        await engine.tasks.update(LOCAL, started.task_id, name="late")


async def test_a_task_of_a_node_is_checked_when_it_is_made_and_changed(engine: Engine) -> None:
    """Unknown types and parameters that don't fit are told at their places."""
    with pytest.raises(Invalid):
        await engine.tasks.create(LOCAL, RunSpec(type="no/such"))
    with pytest.raises(Invalid) as refusal:
        await engine.tasks.create(LOCAL, RunSpec(type="storage/file", parameters={"path": 7}))
    assert "/parameters/path" in codes(refusal)
    started = await engine.tasks.create(LOCAL, RunSpec(type="core/transform", parameters={"output": 1}), start=False)
    await engine.tasks.update(LOCAL, started.task_id, parameters={"output": 2})
    await engine.tasks.execute(LOCAL, started.task_id)
    assert (await ended(engine, started)).result == 2


async def test_an_input_that_does_not_fit_is_refused(engine: Engine) -> None:
    """A workflow task's input is checked as a run's is."""
    definition = document([{"id": "n", "type": "core/noop"}], input_schema={"type": "object", "required": ["n"]})
    made = await engine.workflows.create(LOCAL, definition)
    with pytest.raises(Invalid):
        await engine.tasks.create(LOCAL, RunSpec(type="workflow", workflow_id=made.workflow_id, input={}))


async def test_a_finished_task_can_be_deleted_and_a_running_one_not(engine: Engine, tmp_path: Path) -> None:
    """It must be cancelled first; what it wrote stays."""
    double = Double()
    double.hold, double.outputs = True, {"o.txt": b"made"}
    await serving(engine, double)
    spec = await project(engine, tmp_path, ["a.txt"], servers=("double-0",), output_root="out")
    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(1)
    with pytest.raises(Conflict):
        await engine.tasks.delete(LOCAL, started.task_id)
    await double.let_go()
    await ended(engine, started)
    await engine.tasks.delete(LOCAL, started.task_id)
    with pytest.raises(NotFound):
        await engine.tasks.delete(LOCAL, started.task_id)
    assert await item_rows(engine, started) == []
    assert (tmp_path / "files/out/o.txt").read_bytes() == b"made"


async def test_a_task_that_has_not_started_is_cancelled_at_once(engine: Engine) -> None:
    """Nobody holds it; later it can be executed all the same."""
    started = await engine.tasks.create(LOCAL, RunSpec(type="core/noop"), start=False)
    await engine.tasks.cancel(LOCAL, started.task_id, "changed my mind")
    row = await task_row(engine, started)
    assert (row.status, row.message, row.canceled) == ("CANCELED", "changed my mind", 1)
    await engine.tasks.execute(LOCAL, started.task_id)
    assert (await ended(engine, started)).status == "COMPLETED"


async def test_executed_again_a_batch_does_what_is_new_or_was_not_done(engine: Engine, tmp_path: Path) -> None:
    """Completed files are not done again; files that came since are; on another server if one is named."""
    one, two = Double(), Double()
    await serving(engine, one, two)
    spec = await project(engine, tmp_path, ["a.txt", "b.txt"], servers=("double-0",))
    started = await engine.tasks.batch_start(LOCAL, spec)
    await ended(engine, started)
    (tmp_path / "files/in/c.txt").write_text("new")
    again = await engine.tasks.execute(LOCAL, started.task_id, "double-1")
    row = await ended(engine, started)
    assert (row.total, row.done) == (3, 3)
    assert [work.file.name for work in two.works.values() if work.file] == ["c.txt"]
    execution = await engine.database.read(
        lambda c: c.exec_driver_sql("SELECT number, status FROM task_executions ORDER BY number").all()
    )
    assert [tuple(each) for each in execution] == [(1, "COMPLETED"), (2, "COMPLETED")]
    assert again.execution_id != started.execution_id


async def test_an_execution_that_runs_can_not_be_begun_again(engine: Engine, tmp_path: Path) -> None:
    """Nor can its items be retried."""
    double = Double()
    double.hold = True
    await serving(engine, double)
    started = await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server="double-0"))
    await double.has(1)
    with pytest.raises(IllegalTransition):
        await engine.tasks.execute(LOCAL, started.task_id)
    with pytest.raises(Conflict):
        await engine.tasks.items_retry(LOCAL, started.task_id)
    await double.let_go()
    await ended(engine, started)


async def test_a_report_must_make_sense(engine: Engine) -> None:
    """A status that is none of a report's, a progress out of range, a result that is no JSON."""
    started = await engine.tasks.create(LOCAL, RunSpec(type="core/noop"), start=True)
    assert started.execution_id is not None
    assert started.token is not None
    for report in (
        {"status": TaskStatus.PENDING},
        {"status": TaskStatus.RUNNING, "progress": 2.0},
        {"status": TaskStatus.COMPLETED, "result": float("inf")},
        {"status": TaskStatus.FAILED, "error": "\0"},
    ):
        with pytest.raises(Invalid):
            await engine.tasks.execution_status_set(LOCAL, started.execution_id, started.token, **report)
    await ended(engine, started)


async def test_permissions_are_asked_for(engine: Engine, tmp_path: Path) -> None:
    """A viewer may look whether a batch could start, and start none."""
    viewer = replace(LOCAL, permissions=ROLES["viewer"])
    spec = await project(engine, tmp_path, ["a.txt"])
    assert (await engine.tasks.check(viewer, spec)).available
    for call in (
        engine.tasks.batch_start(viewer, spec),
        engine.tasks.batch_plan(viewer, spec),
        engine.tasks.create(viewer, RunSpec(type="core/noop")),
        engine.tasks.cancel(viewer, "task-x"),
        engine.tasks.delete(viewer, "task-x"),
    ):
        with pytest.raises(Denied):
            await call


def no_encoding(folder: Path) -> None:
    """A file whose name is no UTF-8."""
    Path(os.fsdecode(os.fsencode(folder) + b"/bad-\xff.txt")).touch()


async def test_files_that_can_not_be_read_fail_with_a_reason(engine: Engine, tmp_path: Path) -> None:
    """One that went away, one that became a link out of the roots, names in Chinese, with newlines, of 255 bytes and
    of no encoding: the batch goes on.
    """
    double = Double()
    double.hold = True
    await serving(engine, double, batch_size=1)
    good = ["0.txt", "照片.txt", "two\nlines.txt", "长" * 83 + ".txt"]
    spec = await project(engine, tmp_path, [*good, "gone.txt", "link.txt"], servers=("double-0",), output_root="out")
    no_encoding(tmp_path / "files/in")
    double.outputs = {"o.txt": b"x"}
    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(1)
    (tmp_path / "files/in/gone.txt").unlink()
    (tmp_path / "files/in/link.txt").unlink()
    (tmp_path / "files/in/link.txt").symlink_to("/etc/passwd")
    await double.let_go()
    row = await ended(engine, started)
    items = {item.relative: item for item in await item_rows(engine, started)}
    failed = {name: item.error["code"] for name, item in items.items() if item.status == "FAILED"}
    assert failed == {
        "bad-\\xff.txt": "NAME_NOT_UTF8", "gone.txt": "FILE_NOT_FOUND", "link.txt": "FILE_UNREADABLE",
    }  # fmt: skip
    assert (row.status, row.done, row.failed) == ("COMPLETED", 4, 3)
    assert len(list((tmp_path / "files/out").glob("o*.txt"))) == 4


def test_a_spec_is_stored_as_json_and_read_back() -> None:
    """A timeout too."""
    spec = BatchSpec(target_folders=("a",), timeout=timedelta(seconds=90), parameters={"x": [1]})
    assert msgspec.convert(msgspec.to_builtins(spec), BatchSpec, strict=False) == spec
