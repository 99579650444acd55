"""What the tests of servers have in common."""

from __future__ import annotations

import pytest

KINDS = ("comfyui", "http", "mirrorflow")


@pytest.fixture(autouse=True)
def patient_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no server that hangs; who asks for one sets the time back."""
    for kind in KINDS:
        monkeypatch.setattr(f"engine.servers.{kind}.CHECK_S", 30.0)
