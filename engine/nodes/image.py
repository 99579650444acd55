"""Nodes that bring pictures into shape."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from engine.nodes import pictures
from engine.nodes.contract import Context, NodeError, Placement, node
from engine.nodes.storage import input_path
from flow.errors import Category

Describe = msgspec.Meta
_SIZE = re.compile(r"([1-9]\d{0,4})\s*[x×]\s*([1-9]\d{0,4})\Z")
_SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[
        str | None, Describe(description="The picture. Left out: `path`, `image` or `file_path` of the input.")
    ] = None
    format: Annotated[Literal["jpeg", "png", "webp"], Describe(description="The format to write.")] = "jpeg"
    max_size: Annotated[
        str, Describe(description="Width and height to fit into, `4096x4096`; smaller pictures are not enlarged.")
    ] = "4096x4096"
    auto_rotate: Annotated[bool, Describe(description="Turn the picture as its EXIF orientation says.")] = True
    quality: Annotated[int, Describe(ge=1, le=100, description="Of JPEG and WebP.")] = 90
    keep_location: Annotated[bool, Describe(description="Keep, and tell, where the picture was taken.")] = False


@node(
    "image/preprocess",
    title="Prepare a picture",
    icon="image",
    parameters=Preprocess,
    placement=Placement.PROCESS,
    resources=pictures.RESOURCES,
    unavailable=pictures.missing(),
)
def preprocess(ctx: Context[Preprocess]) -> dict[str, Any]:
    """Turns a picture upright, fits it into a size, writes it as JPEG, PNG or WebP, and tells what its metadata says.

    The output has `path`, `filename`, `width`, `height`, `format`, `size` (bytes) of the copy, the same of
    the `original`, and `exif`: camera, lens, date, exposure. The copy lies in the work folder of the instance.
    """
    from PIL import Image, ImageOps

    asked = ctx.parameters
    bounds = _bounds(asked.max_size)
    path = ctx.reading(asked.path or input_path(ctx.input, "path"))
    with pictures.opened(path) as image:
        original = {
            "path": str(path),
            "width": image.width,
            "height": image.height,
            "format": (image.format or "").lower(),
            "size": path.stat().st_size,
        }
        exif = pictures.about(image, location=asked.keep_location)
        turned = asked.auto_rotate and pictures.turned(pictures.orientation(image))
        profile = image.info.get("icc_profile")
        # a JPEG can be decoded at an eighth, a quarter or half of its size, many times faster
        image.draft(None, bounds[::-1] if turned else bounds)
        ctx.progress(0, 3, "decode")
        pictures.decode(image, path)
        ctx.progress(1, 3, "resize")
        kept = pictures.without_place_and_turn(image, location=asked.keep_location, upright=asked.auto_rotate)
        upright = ImageOps.exif_transpose(image) if asked.auto_rotate else image.copy()
    upright = pictures.in_mode_for(upright, asked.format)
    upright.thumbnail(bounds, Image.Resampling.LANCZOS)
    ctx.progress(2, 3, "write")
    more: dict[str, Any] = {"exif": kept} if kept else {}
    if isinstance(profile, bytes) and upright.mode == "RGB":
        more["icc_profile"] = profile
    name = path.stem[:100] + _SUFFIX[asked.format]
    result = pictures.written(ctx, upright, name, asked.format, asked.quality, **more)
    ctx.progress(3, 3)
    return result | {"original": original, "exif": exif}


def _bounds(text: str) -> tuple[int, int]:
    found = _SIZE.match(text.strip())
    if found is None:
        raise NodeError(
            f"{text!r} is not a size; write it like '4096x4096'.",
            category=Category.VALIDATION,
            code="PARAMETERS_INVALID",
            details={"pointer": "/parameters/max_size"},
        )
    return int(found[1]), int(found[2])
