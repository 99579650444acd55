"""A run as a person sees it in a terminal: folded from its events, drawn as a tree or told line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.tree import Tree

#: An event of the subscription ``instanceEvents { seq at type data }``.
Event = Mapping[str, Any]

BAR = 20
REDRAW_S = 0.1
STYLES = {
    "PENDING": ("·", "dim"),
    "RUNNING": ("●", "cyan"),
    "RETRYING": ("↻", "yellow"),
    "WAITING": ("◷", "yellow"),
    "PAUSED": ("‖", "yellow"),
    "COMPLETED": ("✔", "green"),
    "FAILED": ("✘", "red"),
    "TIMED_OUT": ("✘", "red"),
    "CANCELED": ("■", "yellow"),
    "SKIPPED": ("○", "dim"),
}
AFTER = {
    "started": "RUNNING",
    "retrying": "RETRYING",
    "waiting": "WAITING",
    "paused": "PAUSED",
    "resumed": "RUNNING",
    "reopened": "RUNNING",
    "lost": "RETRYING",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "canceled": "CANCELED",
    "timed_out": "TIMED_OUT",
    "skipped": "SKIPPED",
}
TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELED", "TIMED_OUT"})


@dataclass(slots=True)
class Shown:
    """What a line of the tree says about a node, or about the run itself."""

    status: str = "PENDING"
    started: datetime | None = None
    ended: datetime | None = None
    attempt: int = 1
    share: float | None = None
    note: str = ""

    def apply(self, what: str, at: datetime, data: Mapping[str, Any]) -> None:
        """Take one event, without the ``node.`` or ``instance.`` of its name."""
        self.status = AFTER.get(what, self.status)
        self.attempt = data.get("attempt", self.attempt)
        match what:
            case "started":
                self.started, self.note, self.share = at, "", None
            case "progress":
                self.share = data["done"] / data["total"] if data.get("total") else None
                self.note = data.get("message") or ""
            case "log":
                self.note = data["message"]
            case "retrying" | "failed" | "timed_out":
                self.note = data["error"]["message"]
            case "waiting":
                self.note = waits(data["awaited"])
            case "paused":
                self.note = " ".join(["at", data["path"]] if data.get("path") else []) or "by hand"
            case "resumed" | "reopened":
                self.note, self.ended = "", None
            case "skipped":
                self.note = str(data["reason"]).lower().replace("_", " ")
            case "completed":
                self.note = ""
        if what in {"completed", "failed", "canceled", "timed_out"}:
            self.ended = at

    def seconds(self, now: datetime) -> float | None:
        """How long it has run, or ran."""
        return None if self.started is None else ((self.ended or now) - self.started).total_seconds()


@dataclass(slots=True)
class Run:
    """One run, as far as its events were seen."""

    id: str
    title: str
    nodes: dict[str, Shown] = field(default_factory=dict)
    whole: Shown = field(default_factory=Shown)
    seq: int = 0
    output: Any = None
    artifact: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    @property
    def over(self) -> bool:
        """True when nothing more will come."""
        return self.whole.status in TERMINAL

    def expect(self, paths: Iterable[str]) -> None:
        """The nodes that the definition names, in its order: shown as pending until they start."""
        for path in paths:
            self.nodes.setdefault(path, Shown())

    def apply(self, event: Event) -> None:
        """Take the next event."""
        self.seq = event["seq"]
        at = datetime.fromisoformat(event["at"])
        about, what = event["type"].split(".", 1)
        data = event["data"]
        if about == "node":
            self.nodes.setdefault(data["path"], Shown()).apply(what, at, data)
            return
        if about != "instance":
            return
        if what == "reopened":
            for path in data.get("reset", []):
                self.nodes[path] = Shown()
        self.whole.apply(what, at, data)
        self.error = data.get("error")
        if what == "completed":
            self.output, self.artifact = data.get("output"), data.get("artifact")

    def tree(self, now: datetime) -> Tree:
        """The run and its nodes, as they are."""
        from rich.tree import Tree

        tree = Tree(_label(self.title, self.whole, now, bold=True), guide_style="dim")
        for path, node in self.nodes.items():
            tree.add(_label(path, node, now))
        return tree


def _label(name: str, shown: Shown, now: datetime, *, bold: bool = False) -> RenderableType:
    from rich.text import Text

    sign, style = STYLES[shown.status]
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{sign} ", style)
    text.append(name, "bold" if bold else "dim" if shown.status in {"PENDING", "SKIPPED"} else "")
    seconds = shown.seconds(now)
    if seconds is not None:
        text.append(f"  {seconds:.1f} s" if seconds >= 1 else f"  {seconds * 1000:.0f} ms", "dim")
    if shown.attempt > 1:
        text.append(f"  attempt {shown.attempt}", "yellow")
    if shown.status == "RUNNING" and shown.share is not None:
        full = round(BAR * min(1.0, max(0.0, shown.share)))
        text.append("  " + "━" * full, "cyan")
        text.append("━" * (BAR - full), "dim")
        text.append(f" {shown.share:4.0%}", "cyan")
    if shown.note:
        text.append(f"  {shown.note}", "red" if shown.status in {"FAILED", "TIMED_OUT"} else "dim")
    return text


def waits(awaited: Mapping[str, Any]) -> str:
    """What a node waits for, in a few words."""
    until = f" until {awaited['until'][:19].replace('T', ' ')}" if awaited.get("until") else ""
    match awaited["kind"]:
        case "timer":
            return until.strip()
        case "signal":
            return f"for the signal {awaited['name']}{until}"
        case "approval":
            return f"for an answer: {awaited['title']}{until}"
        case "child":
            return f"for {awaited['instance_id']}"
        case other:
            return str(other)


def line(event: Event) -> str:
    """The event as one line of text, for pipes and logs."""
    about, what = event["type"].split(".", 1)
    data = event["data"]
    parts = [event["at"][11:23], data.get("path", "run") if about != "instance" else "run", what]
    if about not in {"node", "instance"}:
        parts[2] = event["type"]
    if what == "waiting":
        parts.append(waits(data["awaited"]))
    if what == "paused":
        parts += [data["reason"].lower(), data.get("path", "")]
    if about == "signal":
        parts.append(data["name"])
    if about == "approval":
        parts.append("yes" if data["approved"] else "no")
    if data.get("attempt", 1) > 1:
        parts.append(f"attempt {data['attempt']}")
    if what == "progress":
        parts.append(f"{data['done']:g}/{data['total']:g}" if data.get("total") else f"{data['done']:g}")
    if what == "skipped":
        parts.append(str(data["reason"]))
    if data.get("level", "info") != "info":
        parts.append(data["level"].upper())
    if message := data.get("message"):
        parts.append(message)
    if what == "log":
        parts += [f"{name}={value}" for name, value in (data.get("fields") or {}).items()]
    if error := data.get("error"):
        parts.append(f"{error['code']}: {error['message']}")
    return "  ".join(parts)


async def told(run: Run, events: AsyncGenerator[Event, None], say: Callable[[str], None] | None) -> None:
    """Follow a run to its end, with a line for each event if there is somebody to say it to."""
    async with aclosing(events):
        async for event in events:
            run.apply(event)
            if say is not None:
                say(line(event))


async def drawn(runs: Sequence[Run], follow: Callable[[Run], AsyncGenerator[Event, None]], screen: TextIO) -> None:
    """Follow runs to their ends as trees that change in place on a terminal."""
    from rich.console import Console, Group
    from rich.live import Live

    from engine.clock import now

    def picture() -> Group:
        return Group(*(run.tree(now()) for run in runs))

    with Live(picture(), console=Console(file=screen), auto_refresh=False) as display:

        async def redraw() -> None:
            while True:
                await asyncio.sleep(REDRAW_S)
                display.update(picture(), refresh=True)

        drawing = asyncio.create_task(redraw())
        try:
            await asyncio.gather(*(told(run, follow(run), None) for run in runs))
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
            display.update(picture(), refresh=True)
