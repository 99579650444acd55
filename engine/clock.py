"""The one place that reads the clock and draws ids.

A process that shares its database with others goes by the database's clock (``agree``): what one of them writes down
as due, another must find due at the same moment, whatever the clocks of their machines say, and even if somebody sets
one of them.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32: sorts as the number does, no i l o u


#: A longer round trip tells too little about the moment at which the database looked at its clock.
LONGEST_ROUND_TRIP_S = 0.5

#: A machine's clock is off by no more than this share of the time that goes by.
DRIFT = 0.0002

#: An instant on the clock that was agreed on, what ``monotonic`` said then, and by how many seconds that may be wrong;
#: None: this machine's own clock.
_agreed: tuple[datetime, float, float] | None = None


def now() -> datetime:
    """This instant, aware, in UTC."""
    if _agreed is None:
        return datetime.now(UTC)
    at, then, _ = _agreed
    return at + timedelta(seconds=time.monotonic() - then)


def agree(at: datetime, asked: float, answered: float) -> None:
    """Go by a clock that said ``at`` between two readings of ``monotonic``, until it is asked again.

    An answer that leaves more room for error than the one before is not believed, unless the two can't both be true:
    then somebody has set that clock.
    """
    global _agreed
    then, error = (asked + answered) / 2, (answered - asked) / 2
    if _agreed is not None:
        before, since, known = _agreed
        known += DRIFT * (then - since)
        off = abs((at - before).total_seconds() - (then - since))
        if answered - asked > LONGEST_ROUND_TRIP_S or (error > known and off <= error + known):
            return
    _agreed = at, then, error


def monotonic() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()


def new_id(prefix: str) -> str:
    """A new id: ``<prefix>-`` and a time-ordered UUIDv7 (RFC 9562) in 26 characters of base32."""
    millis = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    number = millis << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return f"{prefix}-{''.join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))}"
