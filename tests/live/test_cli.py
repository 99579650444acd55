"""The command line as its user meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.live.server import ROOT, TOKEN, Server

HELLO = """
name: hello
triggers: [{id: by-hand, type: manual}]
input_schema: {type: object, required: [who]}
nodes:
  - {id: greet, type: core/transform, parameters: {output: {greeting: "Hello {{ who }}"}}}
  - {id: tell, type: core/log, parameters: {message: "{{ greeting }}"}}
edges: [{source: greet, target: tell}]
output_mapping: {said: "$.nodes.greet.greeting"}
"""
FAILS = """
name: fails
triggers: [{id: by-hand, type: manual}]
nodes: [{id: stop, type: core/fail, parameters: {message: as asked}}]
"""
BAD = """
name: bad
triggers: []
nodes: [{id: a, type: nonsense}]
"""


class Answer(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands over one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MIRRORFLOW_")}
        self.env |= {"PYTHONPATH": str(ROOT), "MIRRORFLOW_DATA_DIR": str(folder / "data"), "COLUMNS": "120"}
        self.env["PYTHONDONTWRITEBYTECODE"] = ""  # or each command would compile the program again

    def __call__(self, *arguments: str, env: dict[str, str] | None = None, input: str | None = None) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "mirrorflow", *arguments],
            env=self.env | (env or {}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            input=input,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return name


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line in an empty folder."""
    return Cli(tmp_path)


def test_validate_names_every_problem(cli: Cli) -> None:
    """Problems come with file, place and code, and exit code 2; a valid file says so."""
    answer = cli("validate", cli.file("hello.yaml", HELLO), cli.file("bad.yaml", BAD))
    assert answer.code == 2
    assert "hello.yaml: valid" in answer.out
    assert "bad.yaml: /nodes/0/type: " in answer.out
    assert "[UNKNOWN_TYPE]" in answer.out
    assert "[NO_TRIGGER]" in answer.out


def test_validate_reads_standard_input(cli: Cli) -> None:
    """``-`` is standard input."""
    assert cli("validate", "-", input=HELLO) == Answer(0, "-: valid\n", "")


def test_run_without_a_server_runs_the_file(cli: Cli) -> None:
    """With no server running, ``run`` starts one for this run and keeps what it stored."""
    answer = cli("run", cli.file("hello.yaml", HELLO), "--input", "who=World", "--watch")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"said": "Hello World"}
    assert [line.split()[1:3] for line in answer.err.splitlines()] == [
        ["run", "created"],
        ["run", "started"],
        ["greet", "started"],
        ["greet", "completed"],
        ["tell", "started"],
        ["tell", "log"],
        ["tell", "completed"],
        ["run", "completed"],
    ]
    assert cli("run", "hello", "--input", "who=again").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "fails.yaml"), 1, "FAILED: FAILED_BY_DEFINITION: as asked"),
        (("run", "bad.yaml"), 2, "/nodes/0/type: There is no node type 'nonsense'"),
        (("run", "hello.yaml"), 2, "who"),
        (("run", "unknown"), 2, "There is no workflow 'unknown'"),
        (("run", "hello.yaml", "--input", "who"), 2, "write it as KEY=VALUE"),
        (("run", "gone.yaml"), 2, "There is no file gone.yaml."),
        (("validate", "gone.yaml"), 2, "There is no file gone.yaml."),
        (("run", "hello", "--input-file", "gone.json"), 2, "There is no file gone.json."),
        (("instances", "--status", "done"), 2, "There is no status 'done': use PENDING, "),
        (("run", "hello.yaml", "--detach"), 2, "--detach needs a server"),
        (("run", "hello.yaml", "--url", "http://127.0.0.1:9"), 1, "No Mirrorflow answers at http://127.0.0.1:9"),
        (("instances",), 1, "Start one with `mirrorflow serve`"),
        (("serve", "--port", "70000"), 2, "--port=70000 can't be used"),
        (("serve", "--nonsense"), 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_goes_wrong_is_one_line_and_a_code(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    """1 for what failed, 2 for what was refused, and a line that says why."""
    for name, text in {"hello": HELLO, "fails": FAILS, "bad": BAD}.items():
        cli.file(f"{name}.yaml", text)
    answer = cli(*arguments)
    assert answer.code == code, answer
    assert said in answer.err


async def test_client_commands_talk_to_the_running_server(tmp_path: Path) -> None:
    """Import, run, list, follow, export and cancel through the server that holds the folder."""
    cli = Cli(tmp_path)
    async with Server(tmp_path / "data") as server:
        imported = cli("import", cli.file("hello.yaml", HELLO))
        assert imported.code == 0, imported.err
        assert "hello 1.0.0 stored" in imported.out
        assert "hello 1.0.0 unchanged" in cli("import", "hello.yaml").out
        assert json.loads(cli("run", "hello", "-i", "who=you").out) == {"said": "Hello you"}
        id = cli("run", "hello", "-i", "who=me", "--detach").out.strip()
        followed = cli("logs", "-f", id)
        assert "tell  log  Hello me" in followed.out
        assert cli("logs", id).out == followed.out
        listed = cli("instances", "--workflow", "hello", "--status", "completed").out
        assert [line.split()[1] for line in listed.splitlines()] == ["COMPLETED", "COMPLETED"]
        exported = cli("export", "hello").out
        assert "unchanged" in cli("import", "-", env={}, input=exported).out
        assert json.loads(cli("export", "hello", "--version", "1.0.0", "--format", "json").out)["name"] == "hello"
        assert cli("export", "hello", "--version", "9.0.0").code == 2
        assert cli("cancel", "inst-unknown").code == 2
        assert cli("instances", "--token", "x" * 24).code == 2
        assert f"runs at {server.url}" in cli("doctor").out


WAITS = """
name: waits
triggers: [{id: by-hand, type: manual}]
nodes:
  - {id: ask, type: core/approval, parameters: {title: "Go on?"}}
  - {id: listen, type: core/wait-signal, parameters: {name: go}}
  - {id: check, type: core/validate, parameters: {value: "{{ n }}", schema: {maximum: 1}}}
edges: [{source: ask, target: listen}, {source: listen, target: check}]
"""


async def test_runs_are_controlled_from_the_command_line(tmp_path: Path) -> None:
    """Pause, resume, approve, signal, retry and fork a run; what is not possible is one line and exit code 2."""
    cli = Cli(tmp_path)
    async with Server(tmp_path / "data"):
        assert cli("import", cli.file("waits.yaml", WAITS)).code == 0
        id = cli("run", "waits", "--detach").out.strip()
        assert cli("resume", id).code == 2
        assert cli("pause", id).code == 0
        assert cli("resume", id).code == 0
        assert cli("approve", id, "nonsense").code == 2
        assert cli("approve", id, "ask", "--comment", "fine").code == 0
        assert cli("approve", id, "ask").code == 2
        assert cli("signal", id, "go", "--payload", "{").code == 2
        assert cli("signal", id, "go", "--payload", '{"n": 7}').code == 0
        told = cli("logs", "-f", id).out
        assert "ask  waiting  for an answer: Go on?" in told
        assert "ask  approval.answered  yes" in told
        assert "listen  waiting  for the signal go" in told
        assert cli("retry", id, "ask").code == 2
        assert cli("retry", id).code == 0
        assert cli("logs", "-f", id).out.count("check  failed") == 2
        forked = cli("fork", id, "--node", "check", "--pin", 'listen={"n": 1}')
        assert forked.code == 0, forked.err
        assert "run  completed" in cli("logs", "-f", forked.out.strip()).out
        assert cli("fork", id, "--pin", "nonsense").code == 2


async def test_workers_are_listed_watched_and_drained(tmp_path: Path) -> None:
    """A server of its own is a worker; a watcher sees it drain; an unknown one is refused."""
    cli = Cli(tmp_path)
    async with Server(tmp_path / "data") as server:
        head, own = cli("workers").out.splitlines()
        assert head.split()[:3] == ["WORKER", "STATE", "RUNS"]
        id, state, *_ = own.split()
        assert (id.split(":")[1], state) == (str(server.pid), "ONLINE")
        assert cli("drain", "nobody").code == 2
        watching = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mirrorflow", "workers", "--watch",
            env=cli.env, cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert watching.stdout is not None
        async with asyncio.timeout(30):
            assert (await watching.stdout.readline()).decode().split()[:2] == [id, "ONLINE"]
            drained = cli("drain", id)
            assert drained.code == 0, drained.err
            assert (await watching.stdout.readline()).decode().split()[:2] == [id, "DRAINING"]
            watching.terminate()
            await watching.wait()


async def test_a_folder_has_one_server(tmp_path: Path) -> None:
    """A second server over the folder is refused with the first one's process id, whatever its port."""
    cli = Cli(tmp_path)
    async with Server(tmp_path / "data") as server:
        answer = cli("serve", "--port", "0")
        assert answer.code == 2
        assert f"(process {server.pid}) uses the data folder" in answer.err


def test_a_port_in_use_is_one_clear_line(cli: Cli) -> None:
    """The line names the port and the option."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = cli("serve", "--port", str(port))
    assert answer.code == 2
    assert answer.err.startswith(f"mirrorflow: Port {port} on 127.0.0.1 can't be used (Address already in use)")
    assert "--port" in answer.err


def test_a_file_that_is_no_database_is_refused(cli: Cli) -> None:
    """The file stays as it is."""
    (cli.folder / "data").mkdir()
    file = cli.folder / "data" / "mirrorflow.db"
    file.write_bytes(b"this is not a database, not at all" * 100)
    before = file.read_bytes()
    for command in (("serve", "--port", "0"), ("db", "upgrade"), ("run", cli.file("hello.yaml", HELLO))):
        answer = cli(*command)
        assert answer.code == 2, answer
        assert "no SQLite database" in answer.err
    assert file.read_bytes() == before
    assert cli("doctor").code == 1


def test_tokens_are_made_listed_and_revoked(cli: Cli) -> None:
    """A token is printed once, alone on standard output; a revoked one stays listed as such."""
    made = cli("token", "create", "for the tests", "--scope", "viewer")
    assert made.code == 0
    assert made.out.startswith("mfk_")
    assert len(made.out.splitlines()) == 1
    id = made.err.split()[0]
    assert f"{id}  viewer  no end  never used  for the tests" in cli("token", "list").out
    assert made.out.strip() not in cli("token", "list").out
    assert cli("token", "revoke", id).code == 0
    assert f"{id}  viewer  revoked" in cli("token", "list").out
    assert cli("token", "revoke", "tok-unknown").code == 2
    assert cli("token", "create", "x", "--scope", "emperor").code == 2


def test_config_tells_values_and_sources_and_no_secret(cli: Cli) -> None:
    """Flag over environment over .env over default; passwords and tokens never."""
    cli.file(".env", "MIRRORFLOW_PORT=8100\nMIRRORFLOW_SLOTS=7\n")
    env = {
        "MIRRORFLOW_PORT": "8200",
        "MIRRORFLOW_TOKEN": TOKEN,
        "MIRRORFLOW_DATABASE_URL": "postgresql+asyncpg://me:hush@example.org/db",
        "MIRRORFLOW_PROT": "1",
    }
    answer = cli("config", "--data-dir", "elsewhere", env=env)
    assert answer.code == 0
    lines = dict(line.split("=", 1) for line in answer.out.splitlines())
    assert lines["MIRRORFLOW_PORT"] == "8200  # environment"
    assert lines["MIRRORFLOW_SLOTS"] == "7  # .env"
    assert lines["MIRRORFLOW_DATA_DIR"] == f"{cli.folder / 'elsewhere'}  # flag"
    assert lines["MIRRORFLOW_HOST"] == "127.0.0.1  # default"
    assert lines["MIRRORFLOW_TOKEN"] == "********  # environment"
    assert "hush" not in answer.out
    assert "me:********@example.org" in answer.out
    assert "MIRRORFLOW_PROT is no setting" in answer.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "many"), ("TOKEN", "short"), ("LOG_LEVEL", "loud"), ("DATABASE_URL", "mysql://x"), ("SLOTS", "0")],
)
def test_a_bad_setting_stops_the_start(cli: Cli, name: str, value: str) -> None:
    """With one line that names the variable, and a secret is not repeated."""
    answer = cli("serve", env={f"MIRRORFLOW_{name}": value})
    assert answer.code == 2
    [line] = answer.err.splitlines()
    assert f"MIRRORFLOW_{name}" in line
    assert (f"={value}" in line) == (name not in {"TOKEN", "DATABASE_URL"})


def test_what_is_secret_is_for_the_owner_only(cli: Cli) -> None:
    """The token that the server keeps for the local command line can be read by nobody else."""
    assert cli("run", cli.file("hello.yaml", HELLO), "-i", "who=x").code == 0
    assert stat.S_IMODE((cli.folder / "data" / "local.token").stat().st_mode) == 0o600
    assert stat.S_IMODE((cli.folder / "data").stat().st_mode) == 0o700


def test_schema_is_the_committed_one(cli: Cli) -> None:
    """``mirrorflow schema`` prints schema.graphql, and ``--check`` tells when a file differs."""
    assert cli("schema").out == (ROOT / "schema.graphql").read_text()
    assert cli("schema", "--check", cli.file("other.graphql", "type Query { a: Int }")).code == 1
