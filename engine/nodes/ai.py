"""Nodes that judge and improve pictures, with what can be computed locally.

Each model is named for what it is. A model that isn't there is refused, never imitated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine.nodes import pictures
from engine.nodes.contract import Context, NodeError, Placement, node
from engine.nodes.storage import input_path
from flow.errors import Category

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Describe = msgspec.Meta

LANCZOS_DENOISE = "lanczos-denoise"
QUALITY_SIDE = 512  # pixels: pictures are compared at one size, because sharpness depends on it
FACES_SIDE = 400
#: What part of the shorter side a face must measure, and how many windows must agree (with fewer, cats have faces).
SMALLEST_FACE, AGREEING = 0.1, 12
#: Variance of the Laplacian (8 bits a pixel) at which sharpness counts half, and the spread that is full contrast.
HALF_SHARP, FULL_CONTRAST = 120.0, 0.22


class Enhance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[
        str | None, Describe(description="The picture. Left out: `path`, `image` or `file_path` of the input.")
    ] = None
    model: Annotated[
        str, Describe(description="`lanczos-denoise`: total-variation denoising, then Lanczos resampling.")
    ] = LANCZOS_DENOISE
    scale_factor: Annotated[float, Describe(ge=1, le=4, description="How much larger the picture becomes.")] = 2.0
    denoise_strength: Annotated[float, Describe(ge=0, le=1, description="0: none, 1: strong.")] = 0.3
    quality: Annotated[int, Describe(ge=1, le=100, description="Of the JPEG that is written.")] = 92


@node(
    "ai/image-enhance",
    title="Enhance a picture",
    icon="sparkles",
    parameters=Enhance,
    placement=Placement.PROCESS,
    resources=pictures.RESOURCES,
    unavailable=pictures.missing(),
)
def enhance(ctx: Context[Enhance]) -> dict[str, Any]:
    """Takes noise from a picture and enlarges it, by classical means: total-variation denoising and Lanczos resampling.

    No neural model is built in: any other `model` fails with MODEL_NOT_CONFIGURED. The output has `path`,
    `filename`, `width`, `height`, `format`, `size`, the `model` and its settings, and the `original`'s size.
    """
    from PIL import Image

    asked = ctx.parameters
    if asked.model != LANCZOS_DENOISE:
        raise _no_model(asked.model)
    path, image = _picture(ctx, asked.path)
    width, height = round(image.width * asked.scale_factor), round(image.height * asked.scale_factor)
    if width * height > pictures.MAX_PIXELS:
        raise NodeError(
            f"The result would have {width * height:,} pixels, more than {pictures.MAX_PIXELS:,}.",
            category=Category.VALIDATION,
            code="IMAGE_TOO_LARGE",
        )
    ctx.progress(0, 3, "denoise")
    clean = _denoised(image, asked.denoise_strength) if asked.denoise_strength > 0 else image
    ctx.progress(1, 3, "resample")
    larger = clean.resize((width, height), Image.Resampling.LANCZOS) if asked.scale_factor > 1 else clean
    ctx.progress(2, 3, "write")
    result = pictures.written(ctx, larger, path.stem[:100] + ".jpg", "jpeg", asked.quality)
    ctx.progress(3, 3)
    return result | {
        "model": asked.model,
        "scale_factor": asked.scale_factor,
        "denoise_strength": asked.denoise_strength,
        "original": {"path": str(path), "width": image.width, "height": image.height},
    }


Task = Literal["quality-assessment", "face-detection", "classification"]


class Analyze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Annotated[
        str | None, Describe(description="The picture. Left out: `path`, `image` or `file_path` of the input.")
    ] = None
    tasks: Annotated[
        tuple[Task, ...],
        Describe(description="What to find out. No model for `classification` is built in: it fails.", min_length=1),
    ] = ("quality-assessment",)


@node(
    "ai/image-analyze",
    title="Analyse a picture",
    icon="scan-eye",
    parameters=Analyze,
    placement=Placement.PROCESS,
    resources=pictures.RESOURCES,
    unavailable=pictures.missing(),
)
def analyze(ctx: Context[Analyze]) -> dict[str, Any]:
    """Measures a picture's quality and finds faces in it.

    `quality-assessment` gives `quality`: `score` 0..1, from `sharpness` (variance of the Laplacian), `exposure`
    and `contrast`, each 0..1, with what was measured. `face-detection` gives `faces`, each `x`, `y`, `width`,
    `height` in pixels (frontal faces, by local binary patterns). `classification` fails with
    MODEL_NOT_CONFIGURED. The output has `path`, `filename`, `width` and `height` too.
    """
    tasks = list(dict.fromkeys(ctx.parameters.tasks))
    if "classification" in tasks:
        raise _no_model("classification")
    path, image = _picture(ctx, ctx.parameters.path)
    found: dict[str, Any] = {
        "path": str(path),
        "filename": path.name,
        "width": image.width,
        "height": image.height,
        "tasks": tasks,
    }
    for done, task in enumerate(tasks):
        ctx.progress(done, len(tasks), task)
        match task:
            case "quality-assessment":
                found["quality"] = quality(image)
            case "face-detection":
                found["faces"] = faces(image)
    ctx.progress(len(tasks), len(tasks))
    return found


def _no_model(name: str) -> NodeError:
    return NodeError(
        f"No model {name!r} is configured on this server.", category=Category.VALIDATION, code="MODEL_NOT_CONFIGURED"
    )


def _picture(ctx: Context[Any], named: str | None) -> tuple[Path, Image.Image]:
    """The picture upright and in eight bits a colour, decoded."""
    from PIL import ImageOps

    path = ctx.reading(named or input_path(ctx.input, "path"))
    with pictures.opened(path) as image:
        pictures.decode(image, path)
        return path, pictures.in_mode_for(ImageOps.exif_transpose(image), "jpeg")


def _denoised(image: Image.Image, strength: float) -> Image.Image:
    import numpy as np
    from PIL import Image
    from skimage.restoration import denoise_tv_chambolle

    samples = np.asarray(image, dtype=np.float32) / 255
    weight = 0.15 * strength  # beyond 0.15, skin and sky turn to plastic
    colours = -1 if samples.ndim == 3 else None
    clean = denoise_tv_chambolle(samples, weight=weight, channel_axis=colours)  # type: ignore[no-untyped-call]
    return Image.fromarray((np.clip(clean, 0, 1) * 255 + 0.5).astype(np.uint8))


def _grey(image: Image.Image, side: int) -> NDArray[np.float64]:
    """Brightness 0..255, at most ``side`` pixels wide and high."""
    import numpy as np
    from PIL import Image

    small = image.convert("L")
    small.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64)


def quality(image: Image.Image) -> dict[str, Any]:
    """How sharp, well exposed and rich in contrast a picture is: each 0..1, and all together as ``score``."""
    import numpy as np

    grey = _grey(image, QUALITY_SIDE)
    laplacian = np.zeros(1)
    if min(grey.shape) >= 3:
        inner = grey[1:-1, 1:-1]
        laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    edges = float(laplacian.var())
    mean, spread = float(grey.mean()) / 255, float(grey.std()) / 255
    clipped = float(((grey <= 2) | (grey >= 253)).mean())
    sharpness = edges / (edges + HALF_SHARP)
    # best in the middle; losing half of the pixels to black or white halves it again
    exposure = max(0.0, 1 - (2 * abs(mean - 0.5)) ** 2) * (1 - clipped)
    contrast = min(1.0, spread / FULL_CONTRAST)
    return {
        "score": round(0.5 * sharpness + 0.25 * exposure + 0.25 * contrast, 4),
        "sharpness": round(sharpness, 4),
        "exposure": round(exposure, 4),
        "contrast": round(contrast, 4),
        "laplacian_variance": round(edges, 2),
        "mean_brightness": round(mean, 4),
        "clipped_share": round(clipped, 4),
    }


def faces(image: Image.Image) -> list[dict[str, int]]:
    """The frontal faces in a picture, by scikit-image's cascade on local binary patterns; the largest first."""
    import numpy as np
    from PIL import Image
    from skimage import data
    from skimage.feature import Cascade

    small = image.convert("RGB")
    small.thumbnail((FACES_SIDE, FACES_SIDE), Image.Resampling.BOX)
    back = image.width / small.width
    shorter = min(small.size)
    smallest = max(24, round(shorter * SMALLEST_FACE))  # the cascade was trained on 24 pixels
    if shorter <= smallest:
        return []
    trained = data.lbp_frontal_face_cascade_filename()  # type: ignore[no-untyped-call]
    boxes = Cascade(trained).detect_multi_scale(
        img=np.asarray(small),
        scale_factor=1.05,
        step_ratio=1,
        min_size=(smallest, smallest),
        max_size=(shorter, shorter),
        min_neighbor_number=AGREEING,
    )
    found = [
        {
            "x": round(int(box["c"]) * back),
            "y": round(int(box["r"]) * back),
            "width": round(int(box["width"]) * back),
            "height": round(int(box["height"]) * back),
        }
        for box in boxes
    ]
    return sorted(found, key=lambda box: (-box["width"] * box["height"], box["x"], box["y"]))
