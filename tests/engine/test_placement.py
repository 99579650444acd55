"""Whatever a handler does, the attempt ends with an outcome, and its work with the attempt."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.calls import Broke, Call, Done, LogLine, Outcome, Progress, Report
from engine.nodes.contract import Context, Placement, node
from engine.nodes.registry import Registry, declared
from engine.placement import Runner
from flow.definition import Resources
from flow.errors import Category
from tests.engine import handlers

LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.1)


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    before = set(psutil.Process().children())  # another test's PostgreSQL, say
    runner = Runner(Registry(declared(handlers)), data_dir=tmp_path, roots=[tmp_path], processes=1, grace=0.3)
    yield runner
    await runner.close()
    assert not set(psutil.Process().children()) - before, "no child outlives its runner"


def call(type: str, *, timeout: timedelta = LONG, silence: timedelta | None = None, **parameters: Any) -> Call:
    return Call(f"test/{type}", "inst-1", "proj-1", "a", "a", 2, parameters, {}, "inst-1/a", timeout, silence)


class Heard:
    """What a handler says, as it says it."""

    def __init__(self) -> None:
        self.said: list[Report] = []
        self._news = asyncio.Event()

    def __call__(self, said: Report) -> None:
        self.said.append(said)
        self._news.set()

    @property
    def lines(self) -> list[LogLine]:
        return [said for said in self.said if isinstance(said, LogLine)]

    async def line(self, message: str) -> LogLine:
        """The first line with this text; waits until it is said."""
        while True:
            for line in self.lines:
                if line.message == message:
                    return line
            self._news.clear()
            await self._news.wait()


def failure(outcome: Outcome) -> tuple[str, Category]:
    assert isinstance(outcome, Broke), outcome
    return outcome.failure.code, outcome.failure.category


async def cancelled(task: asyncio.Task[Outcome]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def gone(pid: int) -> bool:
    """Waits until there is no such process (or only its zombie, which its new parent has yet to collect)."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return True


EVERYWHERE = pytest.mark.parametrize("where", ["loop", "thread", "process"])


@EVERYWHERE
async def test_an_output_comes_back_as_it_was_given(runner: Runner, where: str) -> None:
    """JSON goes through every placement unchanged."""
    given = {"text": "größer 照片", "number": 1.5, "nested": [{"a": None}, True, 2**60]}
    outcome = await runner.run(call(f"{where}-gives", output=given), Heard())
    assert isinstance(outcome, Done)
    assert outcome.output == given


@EVERYWHERE
@pytest.mark.parametrize(("size", "inline"), [(60_000, True), (70_000, False)])
async def test_a_large_output_is_stored(runner: Runner, where: str, size: int, inline: bool) -> None:
    """Over 64 KiB the outcome has an artifact instead, whose content is the output's JSON."""
    outcome = await runner.run(call(f"{where}-gives", output={"text": "x" * size}), Heard())
    assert isinstance(outcome, Done)
    assert (outcome.artifact is None) is inline
    if outcome.artifact is not None:
        assert outcome.output is None
        assert outcome.artifact.preview.startswith('{"text":"xxx')
        assert len(outcome.artifact.preview) == 1_000
        assert runner.surroundings.artifacts.read_json(outcome.artifact) == {"text": "x" * size}


@EVERYWHERE
async def test_a_huge_output_is_refused(runner: Runner, where: str) -> None:
    """Over 16 MiB the answer is to write a file."""
    outcome = await runner.run(call(f"{where}-gives", output="x" * (16 * 2**20)), Heard())
    assert failure(outcome) == ("OUTPUT_TOO_LARGE", Category.VALIDATION)


async def test_what_is_not_json_is_refused_in_every_placement(runner: Runner) -> None:
    """NaN does not slip through as null, on the loop or in a thread."""
    for where in ("loop", "thread"):
        outcome = await runner.run(call(f"{where}-gives", output=[1, {"x": float("nan")}]), Heard())
        assert failure(outcome) == ("OUTPUT_NOT_JSON", Category.VALIDATION)
        assert isinstance(outcome, Broke)
        assert outcome.failure.details == {"pointer": "/1/x"}


async def test_a_handler_that_raises_fails_with_its_traceback(runner: Runner) -> None:
    """An unknown exception is CODE; its text is made storable, and the traceback names the place."""
    outcome = await runner.run(call("loop-raises"), Heard())
    assert failure(outcome) == ("HANDLER_RAISED", Category.CODE)
    assert isinstance(outcome, Broke)
    assert outcome.failure.message == "RuntimeError: boom ? �"
    assert outcome.failure.traceback is not None
    assert "in loop_raises" in outcome.failure.traceback
    assert (outcome.failure.node_id, outcome.failure.attempt) == ("a", 2)


async def test_a_node_error_keeps_its_words(runner: Runner) -> None:
    """Category, code, wait and details are the handler's own."""
    outcome = await runner.run(call("loop-refuses"), Heard())
    assert failure(outcome) == ("SLOW_DOWN", Category.RATE_LIMIT)
    assert isinstance(outcome, Broke)
    assert outcome.failure.retry_after_seconds == 7
    assert outcome.failure.details == {"x": 1}
    assert outcome.failure.traceback is None


@pytest.mark.parametrize("type", ["loop-exits", "process-exits", "loop-inner-cancel"])
async def test_leaving_by_another_door_is_a_failure_too(runner: Runner, type: str) -> None:
    """sys.exit(), or a cancellation that nobody asked for, ends the attempt and nothing else."""
    assert failure(await runner.run(call(type), Heard()))[1] is Category.CODE


async def test_an_unknown_type_is_a_failure(runner: Runner) -> None:
    """A stored definition may name a type whose plugin is gone."""
    assert failure(await runner.run(call("nothing"), Heard())) == ("UNKNOWN_NODE_TYPE", Category.VALIDATION)


async def test_reports_come_while_the_handler_works_and_are_bounded(runner: Runner) -> None:
    """Log lines with fields, progress, and after a thousand lines one that says that it was enough."""
    heard = Heard()
    outcome = await runner.run(call("loop-talks"), heard)
    assert outcome == Done({"key": "inst-1/a", "attempt": 2})
    assert heard.said[0] == LogLine("info", "hello", {"answer": 42, "odd": "<class 'object'>"})
    assert heard.said[1] == Progress(1.0, 2.0, "half")
    assert len(heard.lines) == 1_001
    assert heard.lines[-1].level == "warning"


# ---- on the loop


async def test_cancelling_a_coroutine_lets_it_clean_up(runner: Runner) -> None:
    """When run() has raised CancelledError, the handler's finally has run."""
    hanging = call("loop-hangs")
    task = asyncio.create_task(runner.run(hanging, Heard()))
    await asyncio.sleep(0)
    await cancelled(task)
    assert hanging.parameters == {"cleaned": True}


async def test_a_coroutine_that_ignores_cancellation_is_left_after_the_grace(runner: Runner) -> None:
    """It catches CancelledError once; when the grace is over it is closed."""
    deaf = call("loop-ignores")
    task = asyncio.create_task(runner.run(deaf, Heard()))
    await asyncio.sleep(0)
    await cancelled(task)
    assert deaf.parameters["caught"] == 1


async def test_a_timeout_of_the_handlers_own_is_no_reason_to_stop_it(runner: Runner) -> None:
    """It may work on for longer than the grace: only a cancellation from outside begins it."""
    outcome = await runner.run(call("loop-own-timeout", seconds=0.4), Heard())
    assert outcome == Done({"stopping": False})


@pytest.mark.parametrize("type", ["loop-hangs", "loop-ignores"])
async def test_a_coroutine_is_stopped_at_its_timeout(runner: Runner, type: str) -> None:
    """The attempt ends with NODE_TIMEOUT, and the caller's task is not left cancelled."""
    outcome = await runner.run(call(type, timeout=SHORT), Heard())
    assert failure(outcome) == ("NODE_TIMEOUT", Category.TIMEOUT)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("type", ["loop-hangs", "thread-waits", "process-ignores"])
async def test_silence_is_stopped_at_the_heartbeat_timeout(runner: Runner, tmp_path: Path, type: str) -> None:
    """No sign of life for longer than the node allows: HEARTBEAT_TIMEOUT."""
    silence = timedelta(seconds=1) if type.startswith("process") else SHORT
    outcome = await runner.run(call(type, silence=silence, file=str(tmp_path / "x")), Heard())
    assert failure(outcome) == ("HEARTBEAT_TIMEOUT", Category.TIMEOUT)


async def test_signs_of_life_keep_a_handler_going(runner: Runner) -> None:
    """A handler that works longer than the heartbeat timeout lives as long as it says so, and no longer."""
    silence = timedelta(seconds=0.15)
    assert await runner.run(call("loop-beats", silence=silence, times=15), Heard()) == Done("done")
    outcome = await runner.run(call("loop-beats", silence=silence, times=15, then_silent=True), Heard())
    assert failure(outcome)[0] == "HEARTBEAT_TIMEOUT"


# ---- in threads


async def test_a_cancelled_thread_is_told_and_its_result_dropped(runner: Runner, tmp_path: Path) -> None:
    """The caller goes on at once; the handler sees ``ctx.cancelled``."""
    seen = tmp_path / "seen"
    task = asyncio.create_task(runner.run(call("thread-waits", file=str(seen)), Heard()))
    await asyncio.sleep(0.01)
    await cancelled(task)
    while not seen.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def test_a_thread_that_hangs_takes_no_place(tmp_path: Path) -> None:
    """With room for one, the next call runs although the thread of the timed-out one still does."""
    runner = Runner(Registry(declared(handlers)), data_dir=tmp_path, threads=1)
    stubborn = call("thread-waits", timeout=SHORT, file=str(tmp_path / "x"))
    assert failure(await runner.run(stubborn, Heard()))[0] == "NODE_TIMEOUT"
    assert (await runner.run(call("thread-gives", output=1), Heard())) != None  # noqa: E711
    await runner.close()


async def test_threads_run_side_by_side_and_report_live(runner: Runner) -> None:
    """Twenty calls on sixteen threads all come back, each with its line."""
    heard = Heard()
    outcomes = await asyncio.gather(*(runner.run(call("thread-gives", output=n), heard) for n in range(20)))
    assert [outcome.output for outcome in outcomes if isinstance(outcome, Done)] == list(range(20))
    assert len(heard.lines) == 20
    assert all(isinstance(outcome, Done) and outcome.usage for outcome in outcomes)


# ---- in processes


async def test_a_child_knows_none_of_our_settings(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """MIRRORFLOW_ variables stay here; the child leads a group of its own and is used again."""
    monkeypatch.setenv("MIRRORFLOW_SECRET_KEY", "hush")
    first = await runner.run(call("process-knows"), Heard())
    second = await runner.run(call("process-knows"), Heard())
    assert isinstance(first, Done)
    assert isinstance(second, Done)
    assert not [name for name in first.output["environment"] if name.startswith("MIRRORFLOW")]
    assert first.output["pid"] == first.output["group"] == second.output["pid"] != os.getpid()


async def test_what_a_child_prints_becomes_log_lines(runner: Runner) -> None:
    """stdout, stderr and raw writes to descriptor 1 reach the log and never the frames."""
    heard = Heard()
    assert isinstance(outcome := await runner.run(call("process-prints"), heard), Done)
    assert outcome.output == "fine"
    assert [(line.level, line.message) for line in heard.lines if line.message != "three"] == [
        ("info", "one"),
        ("warning", "two"),
    ]


async def test_what_a_child_uses_is_measured(runner: Runner) -> None:
    """CPU seconds, peak and memory over time are those of this call."""
    outcome = await runner.run(call("process-burns"), Heard())
    assert outcome.usage is not None
    cpu, area, peak = outcome.usage.cpu_seconds, outcome.usage.memory_mb_seconds, outcome.usage.peak_memory_mb
    assert cpu is not None
    assert area is not None
    assert peak is not None
    assert 0.3 <= cpu < 5
    assert 60 < peak < 1_000
    assert area > 0
    small = await runner.run(call("process-gives", output=1), Heard())
    assert small.usage is not None
    assert small.usage.peak_memory_mb is not None
    assert small.usage.peak_memory_mb < peak
    assert (small.usage.cpu_seconds or 0) < 0.2


async def test_cancelling_stops_a_child_with_all_that_it_started(runner: Runner, tmp_path: Path) -> None:
    """The handler's finally runs, then neither the child nor the program it started is there."""
    heard = Heard()
    task = asyncio.create_task(runner.run(call("process-hangs", file=str(tmp_path / "x")), heard))
    told = await heard.line("hanging")
    await cancelled(task)
    assert (tmp_path / "x").read_text() == "cleaned up"
    assert await gone(told.fields["child"])
    assert await gone(told.fields["grandchild"])
    assert await runner.run(call("process-gives", output=1), Heard()) != None  # noqa: E711


async def test_a_child_that_ignores_sigterm_is_killed(runner: Runner) -> None:
    """After the grace SIGKILL ends what SIGTERM did not."""
    heard = Heard()
    task = asyncio.create_task(runner.run(call("process-ignores"), heard))
    told = await heard.line("ignoring")
    await cancelled(task)
    assert await gone(told.fields["child"])


async def test_a_child_is_stopped_at_its_timeout(runner: Runner, tmp_path: Path) -> None:
    """NODE_TIMEOUT, and the next call gets a new child."""
    hanging = call("process-hangs", timeout=timedelta(seconds=1), file=str(tmp_path / "x"))
    assert failure(await runner.run(hanging, Heard())) == ("NODE_TIMEOUT", Category.TIMEOUT)
    outcome = await runner.run(call("process-gives", output=1), Heard())
    assert isinstance(outcome, Done)


@pytest.mark.parametrize(
    ("type", "how"), [("process-dies", "SIGKILL"), ("process-crashes", "SIGSEGV"), ("process-leaves", "exit code 7")]
)
async def test_a_child_that_dies_is_told_by_its_signal(runner: Runner, type: str, how: str) -> None:
    """PROCESS_DIED names what ended it; the next call runs in a new child."""
    outcome = await runner.run(call(type, by=how), Heard())
    assert failure(outcome) == ("PROCESS_DIED", Category.RESOURCE)
    assert isinstance(outcome, Broke)
    assert how in outcome.failure.message
    assert isinstance(await runner.run(call("process-gives", output=1), Heard()), Done)


@pytest.mark.parametrize("bytes", [10_000_000, 1_500_000_000])
async def test_a_child_that_eats_memory_is_stopped(runner: Runner, bytes: int) -> None:
    """Slowly (the parent sees it) or at one go (the address space ends): MEMORY_LIMIT."""
    outcome = await runner.run(call("process-eats", bytes=bytes), Heard())
    assert failure(outcome) == ("MEMORY_LIMIT", Category.RESOURCE)


async def test_a_node_may_allow_more_memory_than_its_type(runner: Runner) -> None:
    """The node's own resources overrule the type's: this one runs into its timeout instead."""
    given = call("process-eats", bytes=1_000_000, timeout=timedelta(seconds=1.5))
    more = Call(
        **{name: getattr(given, name) for name in given.__struct_fields__} | {"resources": Resources(memory=2_000)}
    )
    assert failure(await runner.run(more, Heard()))[0] == "NODE_TIMEOUT"


async def test_what_a_handler_puts_is_told_with_the_outcome(runner: Runner) -> None:
    """The journal learns of artifacts that a handler put itself."""
    outcome = await runner.run(call("process-keeps"), Heard())
    assert isinstance(outcome, Done)
    assert [artifact.sha256 for artifact in outcome.artifacts] == [outcome.output["put"]]
    assert runner.surroundings.artifacts.read_bytes(outcome.artifacts[0]) == b"\x00\x01"


async def test_closing_stops_what_is_under_way(tmp_path: Path) -> None:
    """A call in a child ends as PROCESS_DIED when the runner is closed."""
    runner = Runner(Registry(declared(handlers)), data_dir=tmp_path)
    heard = Heard()
    task = asyncio.create_task(runner.run(call("process-hangs", file=str(tmp_path / "x")), heard))
    await heard.line("hanging")
    await runner.close()
    assert failure(await task)[0] == "PROCESS_DIED"


async def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """After kill -9 of the server neither its child nor what that started is left."""
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from engine.nodes.registry import Registry, declared
        from engine.placement import Runner
        from tests.engine import handlers
        from tests.engine.test_placement import call
        async def main():
            runner = Runner(Registry(declared(handlers)), data_dir=Path(sys.argv[1]))
            def heard(said):
                if getattr(said, "message", None) == "hanging":
                    print(said.fields["child"], said.fields["grandchild"], flush=True)
            await runner.run(call("process-hangs", file=sys.argv[1] + "/x"), heard)
        asyncio.run(main())
        """
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    assert len(pids) == 2
    assert [await gone(pid) for pid in pids] == [True, True]


# ---- declarations


def test_a_declaration_that_contradicts_itself_is_refused() -> None:
    """A plain function can't be placed on the loop, nor a coroutine in a process, nor a hidden function there."""
    cases: list[tuple[str, Placement, Callable[..., Any]]] = []

    async def coroutine(ctx: Context[Any]) -> None: ...

    def plain(ctx: Context[Any]) -> None: ...

    cases = [
        ("test/a", Placement.ASYNC, plain),
        ("test/a", Placement.PROCESS, coroutine),
        ("test/a", Placement.PROCESS, plain),
        ("Not A Name", Placement.THREAD, plain),
    ]
    for name, placement, handler in cases:
        with pytest.raises(ValueError, match=r"test/a|name"):
            node(name, title="x", placement=placement)(handler)
