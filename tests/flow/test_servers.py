"""What moves a server from state to state."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow.servers import (
    FAILURES_IN_A_ROW,
    SERVER_TRANSITIONS,
    CheckOutcome,
    Load,
    ServerStatus,
    ServerStep,
    checked,
    settings_problems,
    unavailable,
    url_problem,
)

OUTCOMES = st.lists(st.sampled_from(CheckOutcome))


@given(st.sampled_from(ServerStatus), OUTCOMES)
def test_checks_keep_to_their_states(status: ServerStatus, outcomes: list[CheckOutcome]) -> None:
    """No check enters or leaves MAINTENANCE; after a good one a server is ONLINE, after a third failure it is not."""
    begun, failures = status, 0
    for outcome in outcomes:
        before = status
        status, failures = checked(status, failures, outcome)
        assert (status is ServerStatus.MAINTENANCE) == (begun is ServerStatus.MAINTENANCE)
        assert (failures == 0) == (not outcome.failed)
        if begun is ServerStatus.MAINTENANCE:
            continue
        match outcome:
            case CheckOutcome.OK:
                assert status is ServerStatus.ONLINE
            case CheckOutcome.BUSY:
                assert status is ServerStatus.BUSY
            case _ if failures < FAILURES_IN_A_ROW:
                assert status is before
            case CheckOutcome.WRONG_ANSWER:
                assert status is ServerStatus.ERROR
            case _:
                assert status is ServerStatus.OFFLINE


def test_maintenance_belongs_to_people() -> None:
    """Only their steps lead into it and out of it, and none of theirs leads to ERROR."""
    for (at, step), to in SERVER_TRANSITIONS.items():
        if ServerStatus.MAINTENANCE in (at, to):
            assert step.startswith("set ")
        if to is ServerStatus.ERROR:
            assert step is ServerStep.FOUND_WRONG


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "https://host:8188/deeper/path",
        "http://127.0.0.1:1",
        "http://[::1]:8188",
        "HTTP://Host/",
        "http://comfy_ui:8188",
        "http://主机/路径",
    ],
)
def test_addresses_that_can_be(url: str) -> None:
    """Names, numbers, ports and paths."""
    assert url_problem(url) is None


@given(st.text(max_size=60))
def test_any_text_as_an_address_is_judged(text: str) -> None:
    """With a sentence of bounded length, never an exception."""
    problem = url_problem(text)
    assert problem is None or (problem.endswith(".") and len(problem) < 300)
    problem = url_problem(f"http://{text}")
    assert problem is None or len(problem) < 300


def test_a_server_with_all_places_taken_is_busy() -> None:
    """One place less than it has items is none left."""
    assert unavailable("a", True, ServerStatus.ONLINE, 2, Load(1, "task-1")) is None
    for running in (2, 3):
        found = unavailable("a", True, ServerStatus.ONLINE, 2, Load(running, "task-1"))
        assert found is not None
        assert found[0] == "BUSY"


@pytest.mark.parametrize(
    ("given", "pointer", "said"),
    [
        ({"name": ""}, "/name", "1 to 255"),
        ({"name": "x" * 256}, "/name", "1 to 255"),
        ({"name": "a\nb"}, "/name", "control"),
        ({"name": " a"}, "/name", "white space"),
        ({"url": ""}, "/url", "needs a URL"),
        ({"url": "no url"}, "/url", "white space"),
        ({"url": "example"}, "/url", "http://"),
        ({"url": "file:///etc/passwd"}, "/url", "http://"),
        ({"url": "ftp://host/x"}, "/url", "http://"),
        ({"url": "javascript:alert(1)"}, "/url", "http://"),
        ({"url": "http://"}, "/url", "no host"),
        ({"url": "http://user:secret@host"}, "/url", "token"),
        ({"url": "http://host/#there"}, "/url", "fragment"),
        ({"url": "http://host/?a=b"}, "/url", "query"),
        ({"url": "http://host:99999"}, "/url", "Port"),
        ({"url": "http://host:x"}, "/url", "ort"),
        ({"url": "http://[::1"}, "/url", "no URL"),
        ({"url": "http://host/\0"}, "/url", "control"),
        ({"url": "http://host\\evil"}, "/url", "backslash"),
        ({"url": "http://" + "h" * 3_000}, "/url", "2,000"),
        ({"batch_size": 0}, "/batchSize", "1 to 10,000"),
        ({"batch_size": -1}, "/batchSize", "1 to 10,000"),
        ({"batch_size": 10_001}, "/batchSize", "1 to 10,000"),
        ({"token": ""}, "/token", "visible ASCII"),
        ({"token": "a\r\nX-Evil: 1"}, "/token", "visible ASCII"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_settings_are_named(given: dict[str, Any], pointer: str, said: str) -> None:
    """The problem says what is wrong and where."""
    [problem] = settings_problems(**given)
    assert problem.pointer == pointer
    assert said in problem.message
