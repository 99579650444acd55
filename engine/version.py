"""Which version of the program this is; run from a checkout, it has none but says so."""

from __future__ import annotations

from importlib import metadata


def _version() -> str:
    try:
        return metadata.version("mirrorflow")
    except metadata.PackageNotFoundError:
        return "0+checkout"


VERSION = _version()
