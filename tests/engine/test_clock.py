"""The clock that many processes go by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from engine import clock

THERE = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_agreed", None)


def test_a_process_goes_by_the_clock_that_was_agreed_on() -> None:
    """Whatever this machine's clock says; between two questions time goes on."""
    asked = clock.monotonic() - 10
    clock.agree(THERE, asked, asked)
    assert THERE + timedelta(seconds=10) <= clock.now() < THERE + timedelta(seconds=60)


def test_a_slow_answer_is_not_believed_once_there_was_a_quick_one() -> None:
    """A slow one is better than none, and a quick one better than a slow one."""
    now = clock.monotonic()
    clock.agree(THERE, now - 4, now)
    assert clock.now() >= THERE + timedelta(seconds=2)
    clock.agree(THERE + timedelta(days=1), now - 0.1, now)
    assert clock.now() > THERE + timedelta(days=1)
    clock.agree(THERE, now - 4, now)
    assert clock.now() > THERE + timedelta(days=1)


def test_a_loose_answer_does_not_spoil_a_tight_one() -> None:
    """Two answers that can both be true: the tighter one holds. Two that can't: somebody set the clock."""
    now = clock.monotonic()

    def off() -> float:
        """Seconds between the clock and the first answer."""
        return (clock.now() - THERE).total_seconds() - (clock.monotonic() - now)

    clock.agree(THERE, now - 0.002, now)
    clock.agree(THERE - timedelta(seconds=0.05), now - 0.4, now)
    assert abs(off()) < 0.01
    clock.agree(THERE + timedelta(seconds=5), now - 0.4, now)
    assert off() > 5
    clock.agree(THERE + timedelta(seconds=5), now - 0.002, now)
    assert abs(off() - 5) < 0.01
