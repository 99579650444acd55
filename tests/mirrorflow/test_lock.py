"""Who may use a data folder, and which server the command line finds there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorflow.lock import NOTES, StartRefused, announced, held, running

OTHER = """
import sys
from pathlib import Path
from mirrorflow.lock import announced, held
with held(Path(sys.argv[1]), shared=sys.argv[2] == "shared"), announced(Path(sys.argv[1]), "http://127.0.0.1:2"):
    print("in", flush=True)
    sys.stdin.read()
"""


def other(folder: Path, how: str) -> subprocess.Popen[str]:
    """Another process in the folder, until its stdin is closed or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def test_one_process_has_the_folder_for_itself(tmp_path: Path) -> None:
    """Neither another one of its kind nor one that would share may come in beside it."""
    with held(tmp_path):
        for shared in (False, True):
            with pytest.raises(StartRefused, match=f"process {os.getpid()}"), held(tmp_path, shared=shared):
                pass
    with held(tmp_path):
        pass


def test_many_processes_share_the_folder(tmp_path: Path) -> None:
    """Those that share keep out only one that wants it for itself."""
    with held(tmp_path, shared=True), held(tmp_path, shared=True):  # noqa: SIM117
        with pytest.raises(StartRefused, match="Another Mirrorflow"), held(tmp_path):
            pass
    with held(tmp_path):
        pass


def test_the_server_that_started_last_is_found(tmp_path: Path) -> None:
    """Servers that share a folder don't fight over who is announced, and a killed one is not announced any more."""
    assert running(tmp_path) is None
    with held(tmp_path, shared=True), announced(tmp_path, "http://127.0.0.1:1"):
        beside = other(tmp_path, "shared")
        for note in (tmp_path / NOTES).glob(f"*-{beside.pid}.json"):
            os.utime(note, (2**31, 2**31))
        found = running(tmp_path)
        assert found is not None
        assert (found.url, found.pid) == ("http://127.0.0.1:2", beside.pid)
        beside.kill()
        beside.communicate()
        found = running(tmp_path)
        assert found is not None
        assert (found.url, found.pid) == ("http://127.0.0.1:1", os.getpid())
    assert running(tmp_path) is None
    assert not list((tmp_path / NOTES).iterdir())


def test_a_server_of_another_machine_is_not_taken_for_ours(tmp_path: Path) -> None:
    """In a folder that machines share, its address means something else here."""
    with announced(tmp_path, "http://127.0.0.1:1"):
        [note] = (tmp_path / NOTES).iterdir()
        note.rename(note.with_name("elsewhere-1.json"))
        assert running(tmp_path) is None


def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    """The line names the folder and the option."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartRefused, match="--data-dir"), held(tmp_path / "file" / "data"):
        pass
