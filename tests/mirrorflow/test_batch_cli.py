"""Batches and tasks from the command line, against a real server: what is printed, and the exit codes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mirrorflow.cli import run
from mirrorflow.commands.tasks import counts, printable, size
from tests.live.mischief import living
from tests.live.server import ROOT, Server

NAMES = """
name: names
triggers: [{id: by-hand, type: manual}]
nodes:
  - {id: look, type: core/noop}
  - {id: stop, type: core/fail, parameters: {message: as asked}}
  - {id: tell, type: core/transform, parameters: {output: {name: "{{ filename }}"}}}
edges:
  - {source: look, target: stop, condition: "filename == 'bad.txt'"}
  - {source: look, target: tell, condition: "filename != 'bad.txt'"}
"""
WAITS = """
name: waits
triggers: [{id: by-hand, type: manual}]
nodes: [{id: wait, type: core/wait-signal, parameters: {name: go}}]
"""


class Answer(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the workflows ``names`` and ``waits``, and pictures."""
    folder = tmp_path_factory.mktemp("batch")
    with living(folder / "data") as running:
        for name, text in (("names", NAMES), ("waits", WAITS)):
            (folder / f"{name}.yaml").write_text(text)
            assert run(["import", str(folder / f"{name}.yaml"), "--url", running.url, "--token", running.token]) == 0
        yield running


@pytest.fixture
def cli(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command on the server."""
    monkeypatch.setenv("MIRRORFLOW_URL", server.url)
    monkeypatch.setenv("MIRRORFLOW_TOKEN", server.token)

    def call(*arguments: str) -> Answer:
        capsys.readouterr()
        code = run(list(arguments))
        told = capsys.readouterr()
        return Answer(code, told.out, told.err)

    return call


@pytest.fixture
def pictures(server: Server) -> Callable[..., str]:
    """Makes a folder of files below the server's allowed root; its name there."""

    def make(name: str, *files: str) -> str:
        folder = server.data_dir / "files" / name
        folder.mkdir(parents=True)
        for each in files:
            (folder / each).parent.mkdir(exist_ok=True)
            (folder / each).write_text(each)
        return name

    return make


def test_a_watched_batch_tells_lines_in_a_pipe(cli: Cli, pictures: Callable[..., str]) -> None:
    """The id on stdout, lines on stderr up to the end; exit 0, for every file was done."""
    folder = pictures("watched", "a.txt", "b.txt", "deep/c.txt")
    answer = cli("batch", "start", "--workflow", "names", "--folder", folder, "--watch")
    assert answer.code == 0, answer.err
    assert re.fullmatch(r"task-\w+\n", answer.out)
    last = answer.err.splitlines()[-1]
    assert re.match(r"\d\d:\d\d:\d\d  COMPLETED  3/3", last), answer.err


def test_what_failed_is_told_and_retried(cli: Cli, server: Server, pictures: Callable[..., str]) -> None:
    """Exit 1 with each failed file and why; ``tasks show`` tells it again; ``retry`` runs that file alone, ``run`` new
    ones too.
    """
    folder = pictures("failing", "a.txt", "bad.txt")
    answer = cli("batch", "start", "-W", "names", "-f", folder, "-w", "--name", "two of them")
    assert answer.code == 1
    assert re.search(r"^mirrorflow: bad\.txt on local: .*as asked", answer.err, re.MULTILINE), answer.err
    id = answer.out.strip()
    shown = cli("tasks", "show", id)
    assert shown.code == 0
    assert "two of them" in shown.out
    assert "1/2  1 failed" in shown.out
    assert re.search(r"failed: bad\.txt on local: .*as asked", shown.out)
    again = cli("tasks", "retry", id, "--watch")
    assert again.code == 1
    assert f"{id}: 1 run again" in again.out
    assert "run 2" in cli("tasks", "show", id).out
    (server.data_dir / "files" / folder / "new.txt").write_text("new")
    whole = cli("tasks", "run", id, "--server", "local", "--watch")
    assert whole.code == 1
    assert "2/3" in whole.err
    assert cli("tasks", "delete", id) == Answer(0, f"{id}: deleted\n", "")
    gone = cli("tasks", "show", id)
    assert (gone.code, gone.err) == (2, f"mirrorflow: There is no task '{id}' on the server.\n")


def test_a_batch_can_be_left_listed_and_stopped(cli: Cli, pictures: Callable[..., str]) -> None:
    """Without --watch the id is printed at once; the task is listed, cancelled, and what was stopped runs again."""
    folder = pictures("left", "a.txt", "b.txt")
    id = cli("batch", "start", "-W", "waits", "-f", folder).out.strip()
    listed = cli("tasks")
    assert re.search(rf"^{id}  (PENDING|RUNNING) +\S+Z +\d/\d\+?  batch  waits: left$", listed.out, re.MULTILINE), (
        listed
    )
    assert id in cli("tasks", "list", "--type", "batch", "-n", "1").out
    assert cli("tasks", "cancel", id, "--reason", "enough").code == 0
    ended = cli("tasks", "show", id, "--watch")
    assert ended.code == 1
    assert "CANCELED" in ended.err
    assert id in cli("tasks", "list", "--status", "canceled").out
    assert cli("tasks", "cancel", id).code == 2
    again = cli("tasks", "retry", id, "--canceled")
    assert again.out == f"{id}: 2 run again\n"
    assert cli("tasks", "cancel", id).code == 0
    assert cli("tasks", "show", id, "--watch").code == 1


def test_a_dry_run_prints_what_would_be_done(cli: Cli, pictures: Callable[..., str]) -> None:
    """The number, the size, the files and the servers; names that would break the line are made harmless."""
    folder = pictures("dry", "a.txt", "b.jpg", "new\nline.txt")
    answer = cli("batch", "start", "-W", "names", "-f", folder, "-p", "*.txt", "--dry-run")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "2 files, 17 B, on local"
    assert any(line.endswith("  new\\nline.txt") for line in answer.out.splitlines())
    assert "b.jpg" not in answer.out


def test_a_check_says_whether_it_could_start(cli: Cli) -> None:
    """Exit 0 if a server can take it; 1, with the reason, if not."""
    assert cli("batch", "check", "-W", "names").code == 0
    answer = cli("batch", "check", "-W", "nobody")
    assert answer.code == 1
    assert "[WORKFLOW_NOT_FOUND]" in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("batch", "start", "-W", "nobody", "-f", "."), "There is no workflow 'nobody'"),
        (("batch", "start", "-W", "names", "-f", "nowhere"), "/targetFolders/0: "),
        (("batch", "start", "-W", "names", "-f", "/etc"), "/targetFolders/0: "),
        (("batch", "start", "-W", "names", "-f", ".", "-s", "gone"), "There is no server 'gone'"),
        (("batch", "start", "-W", "names", "-f", ".", "-P", "loud"), "write it as KEY=VALUE"),
        (("batch", "start", "-W", "names", "-f", ".", "--timeout", "soon"), "soon"),
        (("batch", "start", "-W", "names"), "--folder"),
        (("tasks", "list", "--status", "done"), "There is no status 'done': use PENDING, "),
        (("tasks", "retry", "task-0"), "There is no task 'task-0'"),
        (("tasks", "run", "task-0"), "There is no task 'task-0'"),
        (("tasks", "delete", "task-0"), "There is no task 'task-0'"),
        (("tasks", "show", "task-0", "-w"), "There is no task 'task-0'"),
    ],
)
def test_what_is_refused_is_a_line_and_exit_2(cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    """Wrong usage, wrong input and what isn't there: what is wrong in words, never a stack."""
    answer = cli(*arguments)
    assert answer.code == 2, answer
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_in_a_terminal_a_bar_grows(server: Server, pictures: Callable[..., str]) -> None:
    """On a terminal the state is drawn in place."""
    folder = pictures("drawn", "a.txt", "b.txt")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRRORFLOW_")}
    env |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "mirrorflow", "batch", "start", "-W", "names", "-f", folder, "-w", "--url", server.url],
        env=env | {"MIRRORFLOW_TOKEN": server.token},
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, drawn
    assert "COMPLETED" in drawn
    assert "━" in drawn
    assert "2/2" in drawn


def test_without_a_server_a_watched_batch_brings_its_own(tmp_path: Path) -> None:
    """Like ``run``: a server for this batch alone; without --watch that makes no sense and is refused."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRRORFLOW_")}
    env |= {"PYTHONPATH": str(ROOT), "MIRRORFLOW_DATA_DIR": str(tmp_path / "data")}

    def call(*arguments: str) -> Answer:
        command = [sys.executable, "-m", "mirrorflow", *arguments]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return Answer(done.returncode, done.stdout, done.stderr)

    (tmp_path / "names.yaml").write_text(NAMES)
    assert call("run", "names.yaml", "--input", "filename=x").code == 0
    (tmp_path / "data" / "files" / "few").mkdir(parents=True)
    (tmp_path / "data" / "files" / "few" / "a.txt").write_text("a")
    start = ("batch", "start", "-W", "names", "-f", "few")
    refused = call(*start)
    assert (refused.code, refused.out) == (2, "")
    assert "needs a server" in refused.err
    answer = call(*start, "--watch")
    assert answer.code == 0, answer.err
    assert "COMPLETED  1/1" in answer.err


def test_counts_and_names_for_people() -> None:
    """What is done of what is known, sizes in the largest unit, and no character that steers a terminal."""
    task = {
        "status": "RUNNING",
        "done": 3,
        "total": 10,
        "failed": 1,
        "canceled": 0,
        "expanded": False,
        "rate": 2.5,
        "estimatedEnd": None,
    }
    assert counts(task) == "3/10+  1 failed  2.5/s"
    assert counts(task | {"status": "COMPLETED", "expanded": True, "failed": 0}) == "3/10"
    assert [size(number) for number in (0, 999, 3_400, 12_345_678)] == ["0 B", "999 B", "3.4 kB", "12.3 MB"]
    assert printable("照片 \x1b[31m\n") == "照片 \\x1b[31m\\n"
