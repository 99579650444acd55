"""Following a prompt to its end: polling is the truth, the socket only says when to look and how far it is.

The socket has no replay, may be silent, and is taken away by whoever connects with the same client id. So nothing
depends on it. A server that restarts has lost its queue and its history: a prompt that it doesn't know for a while is
lost, which one look can't tell, since a prompt may be asked for before it is in the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import msgspec

from engine import clock
from engine.comfyui.client import ComfyUI
from engine.servers.contract import Failed, Report, ServerAddress, ServerFailed, lost
from engine.servers.wire import Patience
from flow import comfyanswers as answers
from flow.errors import Category

if TYPE_CHECKING:
    from websockets.asyncio.client import connect

MAX_MESSAGE = 16 << 20  # bytes: previews come over the socket too


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between looks, from ``first`` to ``slowest``, and how long a server may not know the prompt."""

    first: float = 0.2
    slowest: float = 2.0
    unknown: float = 2.0


PACE = Pace()


async def follow(
    comfy: ComfyUI, server: ServerAddress, id: str, report: Report, pace: Pace | None = None
) -> answers.Succeeded | answers.Broken:
    """Wait for the end of a prompt. Raises ServerFailed where the server is lost."""
    pace = pace or PACE
    tally = answers.Tally(id)
    stirred = asyncio.Event()
    patience = Patience()

    def heard(ended: bool) -> None:
        report(tally.share, tally.said)
        if ended:
            stirred.set()

    listener = asyncio.create_task(_listen(server, id, tally, heard, pace))
    try:
        wait = pace.first
        missing_since: float | None = None
        while True:
            try:
                state = await comfy.state(id)
            except ServerFailed:
                if (retry := patience.wait()) is None:
                    raise
                await asyncio.sleep(retry)
                continue
            patience.heard()
            if not isinstance(state, answers.Unknown):
                missing_since = None
            match state:
                case answers.Succeeded() | answers.Broken():
                    return state
                case answers.Unknown():
                    missing_since = clock.monotonic() if missing_since is None else missing_since
                    if clock.monotonic() - missing_since >= pace.unknown:
                        raise ServerFailed(_forgotten(server))
                case answers.Pending():
                    report(None, "waiting" if state.ahead is None else f"waiting, {state.ahead} ahead")
                case answers.Running():
                    tally.nodes = tally.nodes or state.nodes
                    report(tally.share, tally.said or "running")
                case _:
                    assert_never(state)
            stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await stirred.wait()
            if stirred.is_set():
                # The end is told before it is in the history; and a server may tell it without end.
                wait = pace.first
                await asyncio.sleep(pace.first / 4)
            else:
                wait = min(wait * 1.5, pace.slowest)
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


def _forgotten(server: ServerAddress) -> Failed:
    return lost(
        "COMFYUI_PROMPT_LOST",
        f"The server {server.name!r} at {server.url} doesn't know the prompt any more: it was restarted, or cleared.",
        category=Category.WORKER_LOST,
    )


async def _listen(
    server: ServerAddress, id: str, tally: answers.Tally, heard: Callable[[bool], None], pace: Pace
) -> None:
    """Hear what the socket says until cancelled; when it breaks, again after a while."""
    from websockets.exceptions import InvalidURI, WebSocketException

    wait = pace.first
    while True:
        try:
            async with _connection(server, id) as socket:
                async for message in socket:
                    wait = pace.first
                    if isinstance(message, str) and (ended := _taken(tally, message)) is not None:
                        heard(ended)
        except InvalidURI:
            return
        except (WebSocketException, OSError, TimeoutError, ValueError, EOFError):
            pass
        wait = min(wait * 2, 30.0)
        await asyncio.sleep(wait)


def _taken(tally: answers.Tally, message: str) -> bool | None:
    try:
        return tally.take(msgspec.json.decode(message))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _connection(server: ServerAddress, id: str) -> connect:
    """The socket of a prompt: each has a client id of its own, so that none takes another's socket away."""
    from websockets.asyncio.client import connect

    class Connection(connect):
        def process_redirect(self, exc: Exception) -> Exception | str:
            return exc

    headers = {} if server.token is None else {"Authorization": f"Bearer {server.token}"}
    return Connection(
        "ws" + server.url.removeprefix("http") + f"/ws?clientId={id}",
        proxy=None,
        additional_headers=headers,
        compression=None,
        max_size=MAX_MESSAGE,
        open_timeout=10,
        close_timeout=1,
    )
