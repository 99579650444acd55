"""Runs as lines of text."""

from __future__ import annotations

from mirrorflow.live import line


def test_a_log_line_tells_its_level_and_its_fields() -> None:
    """Loud lines stand out, and what a handler kept with a line is told with it."""
    data = {"path": "shout", "attempt": 1, "message": "too loud", "level": "warning", "fields": {"times": 3}}
    event = {"seq": 1, "at": "2026-11-21T09:11:36.790000Z", "type": "node.log", "data": data}
    assert line(event) == "09:11:36.790  shout  log  WARNING  too loud  times=3"
    assert line(event | {"data": {"path": "shout", "message": "hey"}}) == "09:11:36.790  shout  log  hey"
