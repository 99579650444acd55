"""What only another Mirrorflow has: the workflow must be there too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from db.store import lists
from engine.access import LOCAL
from engine.engine import Engine
from engine.servers.contract import Done, OutputFile, ServerFailed, Work
from engine.servers.outputs import files, suffix
from flow.servers import CheckOutcome
from tests.engine.servers.places import DOCUMENT, MirrorflowPlace, ignored, mirrorflow


@pytest.fixture
async def place(engine: Engine, tmp_path: Path) -> AsyncIterator[MirrorflowPlace]:
    async with AsyncExitStack() as stack:
        yield await mirrorflow(engine, tmp_path, stack)


async def versions_there(place: MirrorflowPlace) -> list[str]:
    """The numbers of the workflow's versions there, and the current one marked."""
    found = await place.runs_on.workflows.named(LOCAL, "decided")
    if found is None:
        return []
    from db.store import keyset

    part = keyset.Slice("VERSION", limit=100)
    page = (await place.runs_on.database.read(keyset.pages, lists.VERSIONS, [found.id], keyset.EVERY, part))[found.id]
    return [
        f"{row.major}.{row.minor}.{row.patch}{'*' if row.id == found.current_version_id else ''}" for row in page.rows
    ]


async def test_a_workflow_that_is_missing_is_imported(place: MirrorflowPlace) -> None:
    """A token that may write workflows brings it there, once for many works at the same time."""
    assert await versions_there(place) == []
    client = place.client()
    await asyncio.gather(*(client.submit(place.work(f"w{number}")) for number in range(5)))
    assert await versions_there(place) == ["1.0.0*"]


async def test_triggers_of_an_imported_workflow_are_off(place: MirrorflowPlace) -> None:
    """What starts by itself here does not start there too; work given there runs all the same."""
    daily = DOCUMENT | {"triggers": [{"id": "daily", "type": "schedule", "config": {"cron": "0 6 * * *"}}]}
    work = place.work("w1")
    definition = (await place.engine.workflows.version(await updated(place, daily))).definition
    ref = await place.client().submit(replace(work, definition=definition))
    found = await place.runs_on.workflows.named(LOCAL, "decided")
    assert found is not None
    assert found.status == "INACTIVE"
    await place.finish("w1", ref)
    assert isinstance(await place.client().follow(ref, ignored), Done)


async def updated(place: MirrorflowPlace, document: dict[str, Any]) -> str:
    made = await place.engine.workflows.update(LOCAL, place.workflow_id, place.version_id, document)
    return made.version_id or ""


async def test_an_equal_version_is_used(place: MirrorflowPlace) -> None:
    """Whether it is the current one there or an older one: nothing is imported."""
    there = place.runs_on.workflows
    made = await there.create(LOCAL, DOCUMENT)
    await there.update(LOCAL, made.workflow_id, made.version_id or "", DOCUMENT | {"description": "newer"})
    ref = await place.client().submit(place.work("w1"))
    row = (await place.runs_on.database.read(lists.instances, LOCAL.project_id, [ref]))[ref]
    assert row.version_id == made.version_id
    assert await versions_there(place) == ["1.0.0", "1.0.1*"]


async def test_a_workflow_that_is_gone_there_is_brought_again(place: MirrorflowPlace) -> None:
    """Its database was replaced while this process remembers the version: the next work brings it there anew."""
    client, there = place.client(), place.runs_on
    ref = await client.submit(place.work("w1"))
    await place.finish("w1", ref)
    assert isinstance(await client.follow(ref, ignored), Done)
    found = await there.workflows.named(LOCAL, "decided")
    assert found is not None
    await there.workflows.delete(LOCAL, found.id, permanent=True)
    ref = await client.submit(place.work("w2"))
    await place.finish("w2", ref)
    assert isinstance(await client.follow(ref, ignored), Done)


async def test_another_version_there_stays_current(place: MirrorflowPlace) -> None:
    """Ours comes to stand beside it, once: what others start there by name is what it was."""
    await place.runs_on.workflows.create(LOCAL, DOCUMENT | {"description": "theirs"})
    client = place.client()
    await asyncio.gather(*(client.submit(place.work(f"w{number}")) for number in range(5)))
    assert await versions_there(place) == ["1.0.0*", "1.0.1"]


async def test_without_the_right_to_import_it_says_what_to_do(place: MirrorflowPlace) -> None:
    """A token that may only run gets WORKFLOW_MISSING, which is not the server's fault; with the workflow it runs."""
    token = await place.runs_on.access.token_create(LOCAL, "runs", ["operator"])
    with pytest.raises(ServerFailed, match="Import it there") as refusal:
        await place.client(token.text).submit(place.work("w1"))
    assert (refusal.value.failed.failure.code, refusal.value.failed.server_lost) == ("WORKFLOW_MISSING", False)
    await place.runs_on.workflows.create(LOCAL, DOCUMENT)
    assert await place.client(token.text).submit(place.work("w1"))


async def test_a_wrong_token_is_found_by_the_check(place: MirrorflowPlace) -> None:
    """Before any work is given there."""
    checked = await place.client("x" * 30).check()
    assert checked.outcome is CheckOutcome.WRONG_ANSWER
    assert "token" in (checked.message or "")
    with pytest.raises(ServerFailed) as refusal:
        await place.client("x" * 30).submit(place.work("w1"))
    assert refusal.value.failed.server_lost


async def test_a_token_that_may_run_nothing_is_found_by_the_check(place: MirrorflowPlace) -> None:
    """Its server would refuse every item; the message names the scope that it needs."""
    token = await place.runs_on.access.token_create(LOCAL, "onlooker", ["viewer"])
    checked = await place.client(token.text).check()
    assert checked.outcome is CheckOutcome.WRONG_ANSWER
    assert "operator" in (checked.message or "")


async def test_parameters_and_large_outputs_cross(place: MirrorflowPlace) -> None:
    """Parameters overlay the definition's there, and an output too large for an answer is fetched."""
    definition = {
        "name": "large",
        "triggers": [{"id": "by-hand", "type": "manual"}],
        "parameters": {"size": 1},
        "nodes": [{"id": "a", "type": "test/large", "parameters": {"size": "{{ parameters.size }}"}}],
    }
    made = await place.engine.workflows.create(LOCAL, definition)
    version = await place.engine.workflows.version(made.version_id or "")
    work = Work("w1", LOCAL.project_id, made.workflow_id, version.version_id, version.definition)
    client = place.client()
    ref = await client.submit(replace(work, parameters={"size": 2_000_000}))
    ended = await client.follow(ref, ignored)
    assert isinstance(ended, Done)
    assert len(ended.output["a"]["text"]) == 2_000_000


async def test_a_file_in_a_shared_folder_is_read(place: MirrorflowPlace, tmp_path: Path) -> None:
    """A path of the other one's is read where it lies in a folder of ours, and nowhere else."""
    shared = tmp_path / "files" / "out.txt"
    shared.write_text("made there")
    client = place.client()
    pieces = [piece async for piece in client.fetch("inst-1", OutputFile("out.txt", {"path": str(shared)}))]
    assert pieces == [b"made there"]
    with pytest.raises(ServerFailed, match="ALLOWED_ROOTS"):
        [piece async for piece in client.fetch("inst-1", OutputFile("x", {"path": str(tmp_path / "mirrorflow.db")}))]


def test_files_in_an_output() -> None:
    """Artifacts and written files are found wherever they are, each once; what was only read is not among them."""
    picture = {"path": "/work/a.jpg", "filename": "a.jpg", "size": 3, "original": {"path": "/in/a.png", "size": 9}}
    artifact = {"artifact": "art-1", "sha256": "0" * 64, "size": 2, "media_type": "image/png"}
    stored = {"location": "/store/b.txt", "filename": "b.txt"}
    table = {"location": "/store/c.csv", "count": 3, "size": 7}
    elsewhere = {"location": "https://example.org/d.png"}, {"location": {"lat": 1}}
    found = files({"first": picture, "list": [picture, {"deep": artifact}, stored], "t": table, "not": elsewhere})
    assert [(each.name, dict(each.locator), each.size) for each in found] == [
        ("a.jpg", {"path": "/work/a.jpg"}, 3),
        ("art-1.png", {"artifact": "art-1"}, 2),
        ("b.txt", {"path": "/store/b.txt"}, None),
        ("c.csv", {"path": "/store/c.csv"}, 7),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.PNG", None, ".png"),
        ("../../etc/passwd", None, ""),
        ("a.png/..\\..\\b.exe\0", None, ""),
        ("no", "image/png", ".png"),
        ("a." + "x" * 50, None, ""),
        ("..", None, ""),
    ],
)
def test_only_the_suffix_of_a_servers_name_is_used(name: str, kind: str | None, expected: str) -> None:
    """A few plain characters, or nothing."""
    assert suffix(OutputFile(name, {}, kind)) == expected
