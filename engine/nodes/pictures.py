"""Reading and writing pictures with Pillow, for the nodes of the image and AI families.

Pillow, numpy and scikit-image come with the extra ``mirrorflow[image]`` and are imported only where a picture
is worked on: in a child process.
"""

from __future__ import annotations

import importlib.util
import warnings
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.files import whole
from engine.nodes.contract import Context, NodeError, plain_text
from flow.definition import Resources
from flow.errors import Category

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 120_000_000  # a picture of more is refused before it is decoded
RESOURCES = Resources(cpu=1_000, memory=2_048)
_READ = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
_MAIN, _DETAILS, _GPS = 0, 0x8769, 0x8825  # EXIF directories
_ORIENTATION = 0x0112


def missing() -> str | None:
    """Why pictures can't be worked on here, None if they can."""
    lacking = [name for name in ("PIL", "numpy", "skimage") if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    return f"This node needs {', '.join(lacking)}: pip install 'mirrorflow[image]'"


def opened(path: Path) -> Image.Image:
    """The picture, not yet decoded. Raises NodeError VALIDATION: IMAGE_CORRUPT or IMAGE_TOO_LARGE."""
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        message = f"{path.name!r} is a folder, not a picture."
        raise NodeError(message, category=Category.VALIDATION, code="IMAGE_CORRUPT")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_READ)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except UnidentifiedImageError:
        raise _corrupt(path, ValueError(f"it is none of {', '.join(_READ)}")) from None
    except Exception as problem:
        raise _corrupt(path, problem) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path)
    return image


def decode(image: Image.Image, path: Path) -> None:
    """Decode the picture in place. Raises NodeError VALIDATION, IMAGE_CORRUPT, if its data is damaged or cut off."""
    try:
        image.load()
    except Exception as problem:
        raise _corrupt(path, problem) from None


def _corrupt(path: Path, problem: Exception) -> NodeError:
    if isinstance(problem, MemoryError) or (isinstance(problem, OSError) and problem.errno is not None):
        raise problem  # the disk's failure, not the picture's
    return NodeError(
        f"{path.name!r} is not a readable picture: {plain_text(str(problem) or type(problem).__name__, 300)}",
        category=Category.VALIDATION,
        code="IMAGE_CORRUPT",
    )


def _too_large(path: Path) -> NodeError:
    return NodeError(
        f"{path.name!r} has more than {MAX_PIXELS:,} pixels.", category=Category.VALIDATION, code="IMAGE_TOO_LARGE"
    )


def turned(orientation: int) -> bool:
    """Whether an EXIF orientation swaps width and height."""
    return orientation >= 5


def orientation(image: Image.Image) -> int:
    """The picture's EXIF orientation, 1..8; 1 if it says none, or nonsense."""
    said = image.getexif().get(_ORIENTATION)
    return said if isinstance(said, int) and 1 <= said <= 8 else 1


def in_mode_for(image: Image.Image, format: str) -> Image.Image:
    """The picture in a mode that the format can hold; transparency becomes white where there is none."""
    from PIL import Image

    if image.mode in ("I;16", "I", "F"):
        # 16 bits a sample: keep the upper eight, Pillow's own conversion would clip
        image = image.point(lambda sample: sample / 256).convert("L") if image.mode != "F" else image.convert("L")
    see_through = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if format == "jpeg" and see_through:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    kept = ("L", "RGB") if format == "jpeg" else ("L", "RGB", "RGBA")
    if image.mode in kept:
        return image
    return image.convert("RGBA" if see_through else "RGB")


def written(ctx: Context[Any], image: Image.Image, name: str, format: str, quality: int, **more: Any) -> dict[str, Any]:
    """Save the picture into the work folder of this node, whole or not at all; what an output says of it."""
    target = ctx.writing(str(work_folder(ctx) / name))
    with whole(target) as file:
        options: dict[str, Any] = {"quality": quality} if format in ("jpeg", "webp") else {"compress_level": 6}
        image.save(file, format=format.upper(), **options, **more)
    return {
        "path": str(target),
        "filename": target.name,
        "width": image.width,
        "height": image.height,
        "format": format,
        "size": target.stat().st_size,
    }


def work_folder(ctx: Context[Any]) -> Path:
    """Where a node leaves its files, relative to the writable root: the same over retries, apart from every other's."""
    return Path("work") / ctx.instance_id / "".join(c if c.isalnum() or c in "-_." else "_" for c in ctx.path)


def about(image: Image.Image, *, location: bool) -> dict[str, Any]:
    """What the EXIF data tells: camera, lens, instant, exposure; where it was taken only if asked. Never raises."""
    try:
        exif = image.getexif()
        details = exif.get_ifd(_DETAILS)
    except Exception:  # a damaged block of metadata is no reason to refuse a picture
        return {}
    said: dict[str, Any] = {"orientation": orientation(image)}
    make, model = _said(exif.get(0x010F)), _said(exif.get(0x0110))
    if model or make:
        said["camera"] = model if not make or model.startswith(make) else f"{make} {model}".strip()
    if lens := _said(details.get(0xA434)):
        said["lens"] = lens
    taken = _said(details.get(0x9003)) or _said(exif.get(0x0132))
    if len(taken) >= 19 and taken[:19].replace(":", "").replace(" ", "").isdigit():
        said["date"] = taken[:10].replace(":", "-")
        said["taken_at"] = f"{said['date']}T{taken[11:19]}"
    for key, tag in (("exposure_seconds", 0x829A), ("f_number", 0x829D), ("iso", 0x8827), ("focal_length_mm", 0x920A)):
        if (number := _number(details.get(tag))) is not None:
            said[key] = number
    if location and (where := _location(exif)) is not None:
        said["location"] = where
    return said


def _said(value: Any) -> str:
    return plain_text(value.replace("\0", "").strip(), 200) if isinstance(value, str) else ""


def _number(value: Any) -> float | int | None:
    if isinstance(value, tuple):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if number != number or abs(number) > 1e9:
        return None
    return int(number) if number == int(number) else round(number, 6)


def _location(exif: Image.Exif) -> dict[str, float] | None:
    try:
        gps = exif.get_ifd(_GPS)
        degrees = [
            float(sum(Fraction(str(float(part))) / 60**place for place, part in enumerate(gps[tag]))) for tag in (2, 4)
        ]
        latitude = -degrees[0] if gps.get(1) == "S" else degrees[0]
        longitude = -degrees[1] if gps.get(3) == "W" else degrees[1]
    except Exception:  # no position, or a damaged one
        return None
    return {"latitude": round(latitude, 6), "longitude": round(longitude, 6)}


def without_place_and_turn(image: Image.Image, *, location: bool, upright: bool) -> bytes:
    """The picture's EXIF data to write with a copy: without where it was taken, and what was already turned."""
    from PIL import Image

    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the picture's own is still to tell which way is up
        if not location and _GPS in exif:
            del exif[_GPS]
        if upright and _ORIENTATION in exif:
            exif[_ORIENTATION] = 1
        return exif.tobytes() if len(exif) else b""
    except Exception:  # metadata that can be read but not written is left out
        return b""
