"""Batches in the hands of a holder: shared among servers, resumed, cancelled, stopped, and each file done once."""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from db.store import items as ledger
from db.store import tasks as store
from engine.access import LOCAL
from engine.batch.run import FULL
from engine.engine import Engine
from engine.servers.contract import Failed
from flow.errors import Category, Conflict, Denied, Failure
from flow.tasks import RunSpec, TaskStatus
from tests.engine.batch.doubles import (
    Double,
    ended,
    failed,
    item_rows,
    project,
    serving,
    statuses,
    task_row,
    until,
)  # fmt: skip
from tests.engine.conftest import document, engine_on
from tests.live.server import wait_until


def names(count: int) -> list[str]:
    return [f"f{number:02d}.txt" for number in range(count)]


async def test_servers_share_a_batch_each_with_its_own_slots(engine: Engine, tmp_path: Path) -> None:
    """Each takes at most ``batchSize`` items at once, both work, every file is done once, and no slot stays taken."""
    one, two = Double(), Double()
    one.hold = two.hold = True
    spec = await project(engine, tmp_path, names(10), servers=tuple(await serving(engine, one, two)))
    started = await engine.tasks.batch_start(LOCAL, spec)
    await asyncio.gather(one.has(2), two.has(2))
    await asyncio.gather(one.let_go(), two.let_go())
    row = await ended(engine, started)
    assert (row.status, row.total, row.done, row.failed, row.progress) == ("COMPLETED", 10, 10, 0, 1.0)
    assert one.most_at_once == two.most_at_once == 2
    assert sorted(work.file.name for work in [*one.works.values(), *two.works.values()] if work.file) == names(10)
    servers = (await engine.servers.named(LOCAL, "double-0"), await engine.servers.named(LOCAL, "double-1"))
    ids = [server.id for server in servers if server is not None]
    assert await engine.database.read(store.running_by_server, ids) == dict.fromkeys(ids, 0)


async def test_a_server_that_is_lost_gives_its_items_to_the_others(engine: Engine, tmp_path: Path) -> None:
    """What ran there runs elsewhere, and counts once."""
    one, two = Double(), Double()
    one.hold = True
    spec = await project(engine, tmp_path, names(6), servers=tuple(await serving(engine, one, two)))
    started = await engine.tasks.batch_start(LOCAL, spec)
    await one.has(2)
    await one.die()
    row = await ended(engine, started)
    assert (row.status, row.done, row.failed) == ("COMPLETED", 6, 0)
    assert sorted(work.file.name for work in two.works.values() if work.file) == names(6)
    assert sum(item.losses for item in await item_rows(engine, started)) == 2


async def test_a_batch_waits_with_a_message_until_a_server_returns(engine: Engine, tmp_path: Path) -> None:
    """Its only server goes away in the middle: the task says what it waits for, and goes on when it is back."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double)
    started = await engine.tasks.batch_start(LOCAL, await project(engine, tmp_path, names(3), servers=(server,)))
    await double.has(2)
    await engine.servers.update(LOCAL, server, enabled=False)
    await double.die()
    row = await until(engine, started, lambda row: row.message and "disabled" in row.message)
    assert row.status == "RUNNING"
    double.dead = double.hold = False
    await engine.servers.update(LOCAL, server, enabled=True)
    row = await ended(engine, started)
    assert (row.status, row.done) == ("COMPLETED", 3)


async def test_a_deleted_server_hands_its_items_back(engine: Engine, tmp_path: Path) -> None:
    """Deleting is refused while it runs items, and with ``force`` the other server gets them."""
    one, two = Double(), Double()
    one.hold = True
    first, second = await serving(engine, one, two)
    started = await engine.tasks.batch_start(LOCAL, await project(engine, tmp_path, names(5), servers=(first, second)))
    await one.has(2)
    with pytest.raises(Conflict):
        await engine.servers.delete(LOCAL, first)
    await engine.servers.delete(LOCAL, first, force=True)
    assert (await ended(engine, started)).done == 5


async def test_failed_files_are_told_and_the_others_go_on(engine: Engine, tmp_path: Path) -> None:
    """A wrong file fails at once, one that failed for a passing reason is tried again, as often as was asked."""
    double = Double()
    double.fails = {
        "f00.txt": [failed(Category.VALIDATION)],
        "f01.txt": [failed(Category.CONNECTION, retry_after_seconds=0.01)],
        "f02.txt": [failed(Category.CONNECTION)] * 9,
    }
    spec = await project(engine, tmp_path, names(4), servers=tuple(await serving(engine, double)), item_retries=1)
    row = await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    assert (row.status, row.done, row.failed, row.result["failed"]) == ("COMPLETED", 2, 2, 2)
    items = {item.relative: item for item in await item_rows(engine, started)}
    assert [items[name].attempts for name in names(4)] == [1, 2, 2, 1]
    assert items["f00.txt"].error["category"] == "VALIDATION"


async def test_only_what_failed_is_done_again(engine: Engine, tmp_path: Path) -> None:
    """A retry runs the failed files under new ids and leaves the others; a second one finds nothing to do."""
    double = Double()
    double.fails = {"f01.txt": [failed(Category.VALIDATION)]}
    spec = await project(engine, tmp_path, names(3), servers=tuple(await serving(engine, double)))
    await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    retried = await engine.tasks.items_retry(LOCAL, started.task_id)
    assert retried.items == 1
    row = await ended(engine, started)
    assert (row.done, row.failed, len(double.submits)) == (3, 0, 4)
    with pytest.raises(Conflict):
        await engine.tasks.items_retry(LOCAL, started.task_id)


async def test_a_batch_that_is_to_stop_stops_at_the_first_failure(engine: Engine, tmp_path: Path) -> None:
    """Nothing new is begun, what has not gone out is CANCELED, and the task is FAILED."""
    double = Double()
    double.fails = {"f00.txt": [failed(Category.VALIDATION)]}
    [server] = await serving(engine, double, batch_size=1)
    spec = await project(engine, tmp_path, names(5), servers=(server,), on_item_error="stop")
    row = await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    assert (row.status, row.error["code"], row.failed, row.canceled) == ("FAILED", "ITEM_FAILED", 1, 4)
    assert double.submits == [f"{item.id}-1" for item in await item_rows(engine, started) if item.status == "FAILED"]


async def test_cancelling_stops_what_runs_and_begins_nothing(engine: Engine, tmp_path: Path) -> None:
    """The running items are cancelled at their server, the rest never goes out; done files stay done."""
    double = Double()
    double.hold = True
    spec = await project(engine, tmp_path, names(5), servers=tuple(await serving(engine, double)))
    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(2)
    await engine.tasks.cancel(LOCAL, started.task_id)
    row = await ended(engine, started)
    assert (row.status, row.canceled, len(double.cancelled)) == ("CANCELED", 5, 2)
    with pytest.raises(Conflict):
        await engine.tasks.cancel(LOCAL, started.task_id)


async def test_a_batch_that_is_out_of_time_is_stopped(engine: Engine, tmp_path: Path) -> None:
    """Its running items are cancelled, and it FAILED with its timeout."""
    double = Double()
    double.hold = True
    servers = tuple(await serving(engine, double))
    spec = await project(engine, tmp_path, names(3), servers=servers, timeout=timedelta(seconds=0.3))
    row = await ended(engine, await engine.tasks.batch_start(LOCAL, spec))
    assert (row.status, row.error["code"], row.canceled) == ("FAILED", "TASK_TIMEOUT", 3)
    assert sorted(double.cancelled) == sorted(double.works), "all that the server was given"


async def test_another_engine_goes_on_where_the_first_was(tmp_path: Path) -> None:
    """What was submitted is followed and not sent again; the rest is done; the counts add up."""
    double = Double()
    double.hold = True
    async with engine_on(tmp_path) as engine:
        servers = await serving(engine, double)
        spec = await project(engine, tmp_path, names(6), servers=tuple(servers))
        started = await engine.tasks.batch_start(LOCAL, spec)
        await double.has(2)
        await until(engine, started, lambda row: row.expanded)
        await wait_until(lambda: submitted(engine, started.task_id), 10)
    double.hold = False
    async with engine_on(tmp_path) as engine:
        engine.servers.__dict__["doubles"] = {"double-0": double}
        await serving(engine)
        row = await ended(engine, started)
        assert (row.status, row.done, row.total) == ("COMPLETED", 6, 6)
        assert sorted(double.submits) == sorted(set(double.submits))
        assert len(double.submits) == 6


async def submitted(engine: Engine, task_id: str) -> bool:
    """Whether every running item's reference is stored."""
    return all(item.ref is not None for item in await engine.database.read(ledger.running, task_id))


async def test_what_a_dead_engine_left_of_its_staging_is_removed(engine: Engine, tmp_path: Path) -> None:
    """It died between the ledger and the tidying up: the next end of the task removes it, and nothing of others'."""
    servers = tuple(await serving(engine, Double()))
    spec = await project(engine, tmp_path, names(2), servers=servers, output_root="out")
    await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    root = tmp_path / "files" / "out" / ".mirrorflow"
    for id in ((await item_rows(engine, started))[0].id, "item-of-somebody-else"):
        (root / id / "1" / "fetched").mkdir(parents=True)
    await engine.tasks.execute(LOCAL, started.task_id)
    await ended(engine, started)
    assert [path.name for path in root.iterdir()] == ["item-of-somebody-else"]


async def test_outputs_land_beside_their_inputs_places_under_names_of_their_own(engine: Engine, tmp_path: Path) -> None:
    """Two servers' words for files are only names; two inputs with one output get two; staging is gone after."""
    double = Double()
    double.outputs = {"../result.png": b"picture"}
    servers = tuple(await serving(engine, double))
    spec = await project(engine, tmp_path, ["a/x.txt", "a/y.txt", "z.txt"], servers=servers, output_root="out")
    await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    root = tmp_path / "files" / "out"
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "a/result-2.png", "a/result.png", "result.png",
    ]  # fmt: skip
    assert not (root / ".mirrorflow").exists()
    [output] = (await item_rows(engine, started))[0].outputs
    assert output["size"] == len(b"picture")


async def test_outputs_that_nobody_gives_are_missed(engine: Engine, tmp_path: Path) -> None:
    """Where an output root was given, the task says how many items left nothing there."""
    nodes = [{"id": "n", "type": "core/transform", "parameters": {"output": "{{ filename }}"}}]
    spec = await project(engine, tmp_path, ["x.txt", "y.txt"], nodes=nodes, output_root="out")
    row = await ended(engine, await engine.tasks.batch_start(LOCAL, spec))
    assert row.message.startswith("2 of 2 done. 2 of them gave no file")


async def test_the_engines_own_nodes_do_a_batch(engine: Engine, tmp_path: Path) -> None:
    """Without a server named, the project's own takes it; what the run's output names lands; the item says which
    instance it was.
    """
    nodes = [{"id": "n", "type": "storage/file", "parameters": {"path": "{{ output_dir }}/{{ filename }}.copy"}}]
    spec = await project(engine, tmp_path, ["a/x.txt", "y.txt"], nodes=nodes, output_root="out")
    row = await ended(engine, started := await engine.tasks.batch_start(LOCAL, spec))
    assert (row.status, row.done) == ("COMPLETED", 2), [item.error for item in await item_rows(engine, started)]
    assert (tmp_path / "files/out/a/x.txt.copy").read_text() == "a/x.txt"
    assert (tmp_path / "files/out/y.txt.copy").read_text() == "y.txt"
    for item in await item_rows(engine, started):
        assert item.instance_id.startswith("inst-")
        assert [output["name"] for output in item.outputs] == [f"{item.relative.rpartition('/')[2]}.copy"]


async def test_a_workflow_runs_as_a_task_and_gives_its_result(engine: Engine) -> None:
    """Its output is the task's result; run again it is another execution."""
    definition = document(
        [{"id": "n", "type": "core/transform", "parameters": {"output": "{{ n + `1` }}"}}],
        output_mapping={"sum": '$.nodes."n".output'},
    )
    definition["nodes"][0]["parameters"] = {"output": "{{ n }}"}
    made = await engine.workflows.create(LOCAL, definition)
    spec = RunSpec(type="workflow", workflow_id=made.workflow_id, input={"n": 41})
    row = await ended(engine, started := await engine.tasks.create(LOCAL, spec))
    assert (row.status, row.result, row.progress) == ("COMPLETED", {"sum": 41}, 1.0)
    again = await engine.tasks.execute(LOCAL, started.task_id)
    assert again.execution_id != started.execution_id
    assert (await ended(engine, started)).status == "COMPLETED"
    items = await item_rows(engine, started)
    assert [item.attempts for item in items] == [2]


async def test_tasks_that_only_wait_keep_nobody_waiting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks than a process holds wait for one busy server: one for another server runs at once, one that is
    cancelled meanwhile ends, and the waiting ones are all done in the end."""
    monkeypatch.setattr("engine.batch.driver.MOST", 3)
    busy, idle = Double(), Double()
    busy.hold = True
    first, second = await serving(engine, busy, idle, batch_size=1)
    waiting = [await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=first)) for _ in range(6)]
    await busy.has(1)
    row = await ended(engine, await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=second)))
    assert row.status == "COMPLETED"
    await until(engine, waiting[-1], lambda row: row.message == FULL)
    await engine.tasks.cancel(LOCAL, waiting[-1].task_id)
    assert (await ended(engine, waiting[-1])).status == "CANCELED"
    monkeypatch.setattr(store, "ASIDE_S", 0.1)
    await busy.let_go()
    assert {(await ended(engine, task)).status for task in waiting[:-1]} == {"COMPLETED"}


async def test_the_most_urgent_task_does_not_step_aside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more waiting tasks than a process holds it is held, so that the next free place is its own."""
    monkeypatch.setattr("engine.batch.driver.MOST", 3)
    double = Double()
    double.hold = True
    [server] = await serving(engine, double, batch_size=1)
    await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server))
    await double.has(1)
    many = [await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server, priority=1)) for _ in range(6)]
    urgent = await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server, priority=10))
    for task in (*many, urgent):
        await until(engine, task, lambda row: row.message == FULL)
    await double.let_go()
    await ended(engine, urgent)
    assert [work.priority for work in double.works.values()][1] == 10


async def test_what_has_all_it_wants_keeps_no_place_from_others(engine: Engine) -> None:
    """An urgent run on a server with two places leaves the other one to whoever comes."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double, batch_size=2)
    await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server, priority=10))
    await double.has(1)
    other = await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server, priority=1))
    await double.has(2)
    assert (await task_row(engine, other)).message is None


async def test_the_most_urgent_task_gets_the_free_place(engine: Engine) -> None:
    """Of tasks that wait for one server, whenever they came; what one of them said while it waited is not its end."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double, batch_size=1)
    first = await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server))
    await double.has(1)
    waiting = {
        priority: await engine.tasks.create(LOCAL, RunSpec(type="core/noop", server=server, priority=priority))
        for priority in (3, 1, 10, 7, 2, 9)
    }
    for task in waiting.values():
        await until(engine, task, lambda row: row.message == FULL)
    await double.let_go()
    rows = {priority: await ended(engine, task) for priority, task in waiting.items()}
    await ended(engine, first)
    assert FULL not in {row.message for row in rows.values()}
    asked = [work.priority for work in double.works.values()]
    assert asked[1:] == sorted(waiting, reverse=True)


async def test_a_task_whose_servers_are_all_deleted_fails(engine: Engine, tmp_path: Path) -> None:
    """It would wait for ever; it says how to go on."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double)
    started = await engine.tasks.batch_start(LOCAL, await project(engine, tmp_path, names(3), servers=(server,)))
    await double.has(2)
    await engine.servers.delete(LOCAL, server, force=True)
    row = await ended(engine, started)
    assert (row.status, row.error["code"], row.canceled) == ("FAILED", "SERVER_DELETED", 3)
    await engine.tasks.execute(LOCAL, started.task_id, server="local")
    assert (await ended(engine, started)).done == 3


async def test_a_file_that_breaks_its_server_does_not_hold_up_the_others(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers it with an error of its own, and does the others; in the end the file is held to be why."""
    monkeypatch.setattr("engine.batch.sharing.SHUN_S", 0.01)
    monkeypatch.setattr("flow.batches.RETRY_BASE_S", 0.01)
    double = Double()
    broken = Failed(Failure("SERVER_ANSWER_INVALID", Category.HTTP_SERVER, "it answered 500"), server_lost=True)
    double.breaks = {"f00.txt": broken}
    [server] = await serving(engine, double, batch_size=1)
    row = await ended(
        engine,
        started := await engine.tasks.batch_start(LOCAL, await project(engine, tmp_path, names(4), servers=(server,))),
    )
    assert (row.status, row.done, row.failed) == ("COMPLETED", 3, 1)
    [item] = [item for item in await item_rows(engine, started) if item.status == "FAILED"]
    assert (item.relative, item.error["code"], item.attempts) == ("f00.txt", "SERVER_LOST", 5)
    assert "it answered 500" in item.error["message"]
    relative = {item.id: item.relative for item in await item_rows(engine, started)}
    assert [relative[id.rpartition("-")[0]] for id in double.submits] == [*names(4), *["f00.txt"] * 4]


async def test_an_output_root_that_breaks_ends_the_task_as_its_items_did(engine: Engine, tmp_path: Path) -> None:
    """A file took the folder's place meanwhile: the items say so, and tidying up is no error of the engine."""
    double = Double()
    double.hold = True
    double.outputs = {"a.txt": b"x"}
    spec = await project(engine, tmp_path, names(3), servers=tuple(await serving(engine, double)), output_root="out")
    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(2)
    shutil.rmtree(tmp_path / "files" / "out")
    (tmp_path / "files" / "out").write_text("a file")
    await double.let_go()
    row = await ended(engine, started)
    assert (row.done, row.failed) == (0, 3)
    assert {item.error["code"] for item in await item_rows(engine, started)} == {"OUTPUT_NOT_WRITTEN"}


async def test_an_error_of_the_engine_is_told(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever watches the task sees its end."""

    async def break_(*_: object) -> None:
        raise ZeroDivisionError("our own fault")

    monkeypatch.setattr("engine.batch.run.TaskRun._drive", break_)
    row = await ended(engine, await engine.tasks.batch_start(LOCAL, await project(engine, tmp_path, names(2))))
    assert (row.status, row.error["code"]) == ("FAILED", "INTERNAL")


async def test_a_workflow_in_use_stays(engine: Engine, tmp_path: Path) -> None:
    """It can't be deleted or archived under a batch, whose items would all fail; and what is gone is not started."""
    double = Double()
    double.hold = True
    spec = await project(engine, tmp_path, names(3), servers=tuple(await serving(engine, double)))
    started = await engine.tasks.batch_start(LOCAL, spec)
    await double.has(2)
    assert spec.workflow_id is not None
    for permanent in (False, True):
        with pytest.raises(Conflict, match=started.task_id):
            await engine.workflows.delete(LOCAL, spec.workflow_id, permanent=permanent)
    double.fails = {name: [failed(Category.VALIDATION)] for name in names(3)}
    await double.let_go()
    assert (await ended(engine, started)).failed == 3
    await engine.workflows.delete(LOCAL, spec.workflow_id)
    for again in (engine.tasks.execute, engine.tasks.items_retry):
        with pytest.raises(Conflict, match="restore it"):
            await again(LOCAL, started.task_id)
    assert (await task_row(engine, started)).failed == 3


async def test_a_node_runs_as_a_task(engine: Engine) -> None:
    """Its output is the result, its failure the error; the workflow that is made for it is not listed."""
    spec = RunSpec(type="core/transform", parameters={"output": {"x": 1}})
    assert (await ended(engine, await engine.tasks.create(LOCAL, spec))).result == {"x": 1}
    failing = RunSpec(type="storage/file", parameters={"path": "a", "source": "nowhere"})
    row = await ended(engine, await engine.tasks.create(LOCAL, failing))
    assert (row.status, row.error["code"]) == ("FAILED", "FILE_NOT_FOUND")
    hidden = await engine.workflows.named(LOCAL, "task: core/transform")
    assert hidden is not None
    assert hidden.status == "HIDDEN"


async def test_a_runner_reports_the_end_of_an_execution(engine: Engine) -> None:
    """With the token that its server was given; once. What still ran there is told to stop."""
    double = Double()
    double.hold = True
    [server] = await serving(engine, double)
    spec = RunSpec(type="core/noop", server=server)
    started = await engine.tasks.create(LOCAL, spec)
    await double.has(1)
    [work] = double.works.values()
    assert work.callback is not None
    token = work.callback["token"]
    execution = work.callback["execution"]
    assert started.execution_id == execution
    with pytest.raises(Denied):
        await engine.tasks.execution_status_set(LOCAL, execution, "wrong", TaskStatus.COMPLETED)
    await engine.tasks.execution_status_set(LOCAL, execution, token, TaskStatus.RUNNING, progress=0.5, message="half")
    await engine.tasks.execution_status_set(LOCAL, execution, token, TaskStatus.COMPLETED, result={"n": 9})
    row = await task_row(engine, started)
    assert (row.status, row.result, row.done) == ("COMPLETED", {"n": 9}, 1)
    with pytest.raises(Conflict):
        await engine.tasks.execution_status_set(LOCAL, execution, token, TaskStatus.FAILED)

    async def told() -> bool:
        return bool(double.cancelled)

    await wait_until(told, 10)
    assert await statuses(engine, started) == {"": "COMPLETED"}
