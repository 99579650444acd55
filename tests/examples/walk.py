"""Runs a definition in memory: the real planner, expressions and handlers, with nothing stored."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.calls import Broke, Call, Done, LogLine, Report
from engine.placement import Runner
from flow import actions, documents, expressions, parsing, planner
from flow import events as e
from flow.definition import Definition

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@dataclass
class Walked:
    """How a run ended: its last event, and what its nodes said."""

    run: planner.Run
    end: e.Event
    logs: list[str]

    @property
    def output(self) -> Any:
        assert isinstance(self.end, e.InstanceCompleted), self.end
        return self.end.output

    def status(self, node: str) -> str:
        return str(self.run.snapshot.nodes[node].status)


def definition(path: Path, runner: Runner) -> Definition:
    """The definition in a file; it has no problem."""
    read, problems = documents.read(parsing.parse(path.read_text()), runner.registry.type_infos())
    assert read is not None, problems
    return read


async def walk(definition: Definition, input: Any, runner: Runner, instance: str = "inst-1") -> Walked:
    """Run the definition to its end, one node after the other."""
    run = planner.Run(planner.prepare(definition), called=planner.Names(instance, "", "proj-1"))
    logs: list[str] = []

    def heard(said: Report) -> None:
        if isinstance(said, LogLine):
            logs.append(said.message)

    seqs = itertools.count(1)

    def happen(event: e.AnyEvent) -> None:
        run.apply(e.Recorded(next(seqs), NOW, event))

    happen(e.InstanceCreated(workflow_id="wf-1", version_id="wfv-1", input=input))
    while True:
        for action in run.plan(NOW):
            match action:
                case actions.Begin():
                    happen(e.InstanceStarted())
                case actions.Skip(path, reason):
                    happen(e.NodeSkipped(path=path, reason=reason))
                case actions.Start(path, attempt):
                    happen(e.NodeStarted(path=path, attempt=attempt))
                    match await _attempt(run, path, attempt, runner, instance, heard):
                        case Done(output, usage, artifact):
                            happen(
                                e.NodeCompleted(
                                    path=path, attempt=attempt, output=output, artifact=artifact, usage=usage
                                )
                            )
                        case Broke(failure):
                            happen(e.NodeFailed(path=path, attempt=attempt, error=failure))
                case actions.End(event):
                    return Walked(run, event, logs)
                case _:
                    raise AssertionError(action)
            break


async def _attempt(
    run: planner.Run, path: str, attempt: int, runner: Runner, instance: str, heard: Any
) -> Done | Broke:
    node = run.node(path)
    given = run.input(path)
    rendered = expressions.render(node.parameters, run.names(path, given))
    call = Call(node.type, instance, "proj-1", path, path, attempt, rendered, given, f"{instance}/{path}", node.timeout)
    return await runner.run(call, heard)
