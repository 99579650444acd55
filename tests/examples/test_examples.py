"""The examples do what their comments say, with the real planner and handlers."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from engine.nodes.registry import Registry
from engine.placement import Runner
from tests.examples.walk import Walked, definition, walk

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOS = sorted(photo.name for photo in (EXAMPLES / "photos").glob("*.jpg"))


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    files = tmp_path / "files"
    files.mkdir()
    runner = Runner(Registry.load(), data_dir=tmp_path, roots=[files, EXAMPLES], processes=1)
    yield runner
    await runner.close()


def orientation(photo: Path) -> int:
    with Image.open(photo) as image:
        return int(image.getexif().get(0x0112, 1))


def written(path: str) -> Any:
    return json.loads(Path(path).read_text())


async def run(name: str, input: Any, runner: Runner) -> Walked:
    return await walk(definition(EXAMPLES / f"{name}.yaml", runner), input, runner)


def test_every_example_is_commented_and_tried_here() -> None:
    """No example without a comment that says what it shows, and none that no test runs."""
    names = {path.stem for path in EXAMPLES.glob("*.yaml")}
    assert names == {"nas-photo-processing", "order-intake", "planets", "poem"}
    assert all((EXAMPLES / f"{name}.yaml").read_text().startswith("# ") for name in names)


def test_the_photos_lie_in_every_common_orientation_and_have_their_source_listed() -> None:
    """Upright, upside down, and on either side; each with its licence in the README, none over 150 KB."""
    orientations = {orientation(EXAMPLES / "photos" / name) for name in PHOTOS}
    assert orientations == {1, 3, 6, 8}
    listed = (EXAMPLES / "photos" / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in PHOTOS)
    assert all((EXAMPLES / "photos" / name).stat().st_size < 150_000 for name in PHOTOS)


async def test_photos_are_archived_by_day_if_they_are_good_enough(runner: Runner, tmp_path: Path) -> None:
    """Every photo ends COMPLETED; the sharp ones are archived with their metadata, the blurred one is set aside."""
    ended = {name: await run("nas-photo-processing", {"file_path": f"photos/{name}"}, runner) for name in PHOTOS}
    archived = {name for name, walked in ended.items() if walked.output["location"] is not None}
    assert archived == set(PHOTOS) - {"cat-out-of-focus.jpg"}
    assert ended["cat-out-of-focus.jpg"].status("archive-01") == "SKIPPED"
    assert any("is not archived" in line for line in ended["cat-out-of-focus.jpg"].logs)

    astronaut = ended["astronaut.jpg"].output
    assert astronaut["location"] == str(tmp_path / "files/archive/2024-03-09/astronaut.jpg")
    assert astronaut["camera"] == "Mirrorflow Example One"
    assert len(astronaut["faces"]) == 1
    assert ended["deep-field.jpg"].output["location"] == str(tmp_path / "files/archive/2026-11-21/deep-field.jpg")

    with Image.open(EXAMPLES / "photos/astronaut.jpg") as lying, Image.open(astronaut["location"]) as stored:
        upright = ImageOps.exif_transpose(lying)
        assert stored.size == (upright.width * 2, upright.height * 2)
        assert stored.getexif().get(0x0112, 1) == 1
        apart = ImageChops.difference(stored.convert("L").resize(upright.size), upright.convert("L"))
        assert ImageStat.Stat(apart).mean[0] < 10, "it was turned the right way"
    assert written(astronaut["location"] + ".meta.json")["faces"] == astronaut["faces"]


async def test_a_large_order_goes_to_a_person(runner: Runner) -> None:
    """The example order is over the limit: one branch runs, the other is skipped, and the join is not held up."""
    walked = await run("order-intake", written(str(EXAMPLES / "data/order.json")), runner)
    assert walked.status("at-once") == "SKIPPED"
    receipt = written(walked.output["receipt"])
    assert receipt["total"] == 1267.0
    assert receipt["handled_by"] == walked.output["handled_by"] == "a person"


async def test_a_small_order_is_handled_at_once(runner: Runner) -> None:
    """Under the limit the other branch runs."""
    order = {"id": "A-0001", "customer": "A", "lines": [{"article": "Cloth", "quantity": 1, "price": 18}]}
    walked = await run("order-intake", {"order": order}, runner)
    assert walked.status("by-hand") == "SKIPPED"
    assert walked.output["handled_by"] == "the machine"


async def test_a_wrong_order_takes_the_failure_edge(runner: Runner) -> None:
    """The check fails with every mismatch, the failure edge leads on, and the instance is COMPLETED."""
    walked = await run("order-intake", {"order": {"id": "B-1", "lines": []}}, runner)
    assert walked.status("check") == "FAILED"
    assert walked.status("receipt") == "SKIPPED"
    assert walked.status("refusal") == "COMPLETED"
    assert "does not fit the schema" in walked.output["refused"]
    assert any(line.startswith("The order is refused") for line in walked.logs)


async def test_the_planets_are_sorted_into_two_tables(runner: Runner) -> None:
    """Nine rows are read; four planets are rocky, four are giants, and the Moon is none."""
    walked = await run("planets", {}, runner)
    assert walked.output["read"] == 9
    assert walked.output["rocky"] == ["Mercury", "Venus", "Earth", "Mars"]
    assert walked.output["giant"] == ["Jupiter", "Saturn", "Uranus", "Neptune"]
    assert walked.output["largest"] == "Jupiter"
    first, *_ = csv.DictReader(Path(walked.output["files"][0]).read_text().splitlines())  # noqa: ASYNC240
    assert first == {
        "name": "Mercury",
        "diameter_km": "4879",
        "density": "5429",
        "gravity": "3.7",
    }


async def test_four_readers_join_in_one_report(runner: Runner) -> None:
    """The report has what each of the four found, and stands in a file."""
    walked = await run("poem", {}, runner)
    assert walked.output["title"] == "4 lines, 123 characters"
    assert walked.output["longest"] == "Hold Infinity in the palm of your hand"
    report = written(walked.output["location"])
    assert report["backwards"][0] == "And Eternity in an hour"
    assert report["sorted"][0] == "And Eternity in an hour"
