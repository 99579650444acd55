"""The one place that reads the clock and draws ids."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: sorts as the number does, no i l o u


def now() -> datetime:
    """This instant, aware, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()


def new_id(prefix: str) -> str:
    """A new id: ``<prefix>-`` and a time-ordered UUIDv7 (RFC 9562) in 26 characters of base32."""
    millis = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    number = millis << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return f"{prefix}-{''.join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))}"
