"""The picture nodes on real photos, and on files that are none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFilter, ImageOps, ImageStat

from engine.calls import Progress
from tests.engine.nodes_bench import Bench, bench

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, EXAMPLES) as made:
        yield made


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of brightness, 0..255."""
    return float(ImageStat.Stat(ImageChops.difference(one.convert("L"), other.convert("L"))).mean[0])


def picture(path: Path, size: tuple[int, int] = (60, 40), **options: Any) -> Path:
    """A small picture, dark at the left and light at the right, light blue in the upper half."""
    mode = options.pop("mode", "RGB")
    image = Image.linear_gradient("L").rotate(90).resize(size).convert(mode)
    image.paste("lightblue" if mode == "RGB" else 200, (0, 0, size[0], size[1] // 2))
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_picture_is_turned_upright(nodes: Bench, orientation: int) -> None:
    """For each of the eight EXIF orientations the copy looks as a viewer shows the original, and says it is upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    original = picture(nodes.files / "in.jpg", exif=exif, quality=95)
    output = await nodes.done("image/preprocess", {"file_path": "in.jpg"})
    with Image.open(original) as lying, Image.open(output["path"]) as copy:
        upright = ImageOps.exif_transpose(lying)
        assert copy.size == upright.size == (output["width"], output["height"])
        assert difference(copy, upright) < 3
        assert copy.getexif().get(0x0112, 1) == 1
    assert output["exif"]["orientation"] == orientation


async def test_a_picture_is_fitted_and_tells_its_metadata(nodes: Bench) -> None:
    """The longer side decides, small pictures stay; camera, date and exposure are told; progress is reported."""
    output = await nodes.done("image/preprocess", {"file_path": "photos/coffee.jpg"}, max_size="100x300", format="png")
    assert (output["width"], output["height"], output["format"], output["filename"]) == (100, 67, "png", "coffee.png")
    assert output["size"] == Path(output["path"]).stat().st_size  # noqa: ASYNC240
    assert output["original"]["width"] == 400
    assert output["exif"] == {
        "orientation": 8,
        "camera": "Mirrorflow Example Two",
        "date": "2024-05-17",
        "taken_at": "2024-05-17T08:02:11",
        "exposure_seconds": 0.033333,
        "f_number": 2,
        "iso": 800,
        "focal_length_mm": 35,
    }
    assert isinstance(nodes.said[-1], Progress)
    assert nodes.said[-1].done == nodes.said[-1].total


@pytest.mark.parametrize("keep", [False, True])
async def test_where_a_picture_was_taken_is_told_only_if_asked(nodes: Bench, keep: bool) -> None:
    """By default neither the output nor the copy knows the place."""
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 36.0), 3: "E", 4: (151.0, 12.0, 36.0)})
    picture(nodes.files / "in.jpg", exif=exif)
    output = await nodes.done("image/preprocess", {"path": "in.jpg"}, keep_location=keep)
    place = {"latitude": -33.86, "longitude": 151.21}
    assert output["exif"].get("location") == (place if keep else None)
    with Image.open(output["path"]) as copy:
        assert bool(copy.getexif().get_ifd(0x8825)) is keep


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
async def test_every_kind_of_pixel_can_be_written(nodes: Bench, mode: str, format: str) -> None:
    """Palettes, transparency, inks and sixteen bits become what the format can hold."""
    name = "in.tif" if mode == "CMYK" else "in.png"
    grey = Image.linear_gradient("L")
    if mode == "I;16":
        grey = grey.convert("I").point(lambda sample: sample * 257)
    elif mode in ("CMYK", "P", "RGBA"):
        grey = grey.convert("RGB")
    grey.convert(mode).save(nodes.files / name)
    output = await nodes.done("image/preprocess", {"path": name}, format=format)
    with Image.open(output["path"]) as copy:
        assert copy.size == (256, 256)
        assert 60 < ImageStat.Stat(copy.convert("L")).mean[0] < 200


@pytest.mark.parametrize("type", ["image/preprocess", "ai/image-enhance", "ai/image-analyze"])
@pytest.mark.parametrize("damage", ["cut", "noise", "text", "empty"])
async def test_a_corrupt_photo_is_refused(nodes: Bench, type: str, damage: str) -> None:
    """Cut off, full of noise, no picture at all: IMAGE_CORRUPT, which is not tried again."""
    whole = (EXAMPLES / "photos/cat.jpg").read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "noise": whole[:2] + b"\x55" * 5_000, "text": b"hello", "empty": b""}
    (nodes.files / "bad.jpg").write_bytes(damaged[damage])
    code, category, broke = await nodes.broke(type, {"path": "bad.jpg"})
    assert (code, category) == ("IMAGE_CORRUPT", "VALIDATION")
    assert damage not in ("text", "empty") or "none of JPEG" in broke.failure.message
    assert not (nodes.files / "work").exists()


@pytest.mark.parametrize("type", ["image/preprocess", "ai/image-enhance", "ai/image-analyze"])
async def test_a_bomb_is_refused_before_it_is_decoded(nodes: Bench, type: str) -> None:
    """A few kilobytes that claim 400 million pixels are IMAGE_TOO_LARGE."""
    Image.new("1", (20_000, 20_000)).save(nodes.files / "bomb.png")
    assert (await nodes.broke(type, {"path": "bomb.png"}))[:2] == ("IMAGE_TOO_LARGE", "VALIDATION")


@pytest.mark.parametrize(
    ("type", "parameters", "code"),
    [
        ("image/preprocess", {"path": "/etc/passwd"}, "PATH_NOT_ALLOWED"),
        ("image/preprocess", {"path": "nowhere.jpg"}, "FILE_NOT_FOUND"),
        ("image/preprocess", {}, "FILE_NOT_NAMED"),
        ("image/preprocess", {"path": "photos/cat.jpg", "max_size": "big"}, "PARAMETERS_INVALID"),
        ("ai/image-enhance", {"path": "photos/cat.jpg", "model": "realesrgan-x4plus"}, "MODEL_NOT_CONFIGURED"),
        ("ai/image-enhance", {"path": "photos/cat.jpg", "scale_factor": 9}, "PARAMETERS_INVALID"),
        ("ai/image-analyze", {"path": "photos/cat.jpg", "tasks": ["classification"]}, "MODEL_NOT_CONFIGURED"),
        ("ai/image-analyze", {"path": "photos/cat.jpg", "tasks": []}, "PARAMETERS_INVALID"),
    ],
)
async def test_what_can_not_be_done_is_refused_clearly(nodes: Bench, type: str, parameters: Any, code: str) -> None:
    """A model that isn't there is never imitated."""
    assert (await nodes.broke(type, **parameters))[:2] == (code, "VALIDATION")


async def test_enhancing_enlarges_and_takes_noise_away(nodes: Bench) -> None:
    """A noisy photo comes out nearer to the clean one than it went in; the output says how it was made."""
    with Image.open(EXAMPLES / "photos/cat.jpg") as clean:
        noise = Image.effect_noise(clean.size, 40)
        noisy = Image.blend(clean.convert("L"), noise, 0.5)
        truth = Image.blend(clean.convert("L"), Image.new("L", clean.size, 128), 0.5)
    noisy.save(nodes.files / "noisy.png")
    output = await nodes.done("ai/image-enhance", {"path": "noisy.png"}, scale_factor=2, denoise_strength=1)
    assert (output["width"], output["height"], output["model"]) == (902, 600, "lanczos-denoise")
    with Image.open(output["path"]) as better:
        assert difference(better.resize(truth.size), truth) < 0.6 * difference(noisy, truth)


async def test_quality_tells_sharp_from_blurred_and_lit_from_dark(nodes: Bench) -> None:
    """The score falls when a photo is blurred, and exposure when it is darkened."""
    with Image.open(EXAMPLES / "photos/coffee.jpg") as photo:
        photo.filter(ImageFilter.GaussianBlur(4)).save(nodes.files / "blurred.jpg")
        photo.point([value // 8 for value in range(256)] * 3).save(nodes.files / "dark.jpg")
    good = (await nodes.done("ai/image-analyze", {"path": "photos/coffee.jpg"}))["quality"]
    blurred = (await nodes.done("ai/image-analyze", {"path": "blurred.jpg"}))["quality"]
    dark = (await nodes.done("ai/image-analyze", {"path": "dark.jpg"}))["quality"]
    assert blurred["sharpness"] < 0.5 * good["sharpness"]
    assert dark["exposure"] < 0.5 * good["exposure"]
    assert max(blurred["score"], dark["score"]) < good["score"]
    assert all(0 <= each["score"] <= 1 for each in (good, blurred, dark))


async def test_a_face_is_found_where_it_is(nodes: Bench) -> None:
    """The astronaut's face is found, upright and in the photo's own pixels; a cat and a rocket have none."""
    found = await nodes.done("ai/image-analyze", {"path": "photos/astronaut.jpg"}, tasks=["face-detection"])
    (face,) = found["faces"]
    assert 160 < face["x"] < 200
    assert 40 < face["y"] < 90
    assert 80 < face["width"] < 120
    for name in ("cat", "rocket"):
        found = await nodes.done("ai/image-analyze", {"path": f"photos/{name}.jpg"}, tasks=["face-detection"])
        assert found["faces"] == []
