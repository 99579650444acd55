"""Who is next when a server has a free place: of the tasks that this process holds, the most urgent."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime

#: Smaller is more urgent: priority (negative), then age, then the id.
Rank = tuple[int, datetime, str]


class Line:
    """Tasks that wait for places of servers. Tasks of other processes are not in it: SQL counts the places of all."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Rank, frozenset[str], asyncio.Event]] = {}

    def wait(self, task_id: str, rank: Rank, servers: Collection[str], woken: asyncio.Event) -> None:
        """The task wants a place of any of the servers; ``woken`` is set when it may have one."""
        if servers:
            self._waiting[task_id] = rank, frozenset(servers), woken
        else:
            self.leave(task_id)

    def leave(self, task_id: str) -> None:
        """It doesn't wait any more: those behind it may go."""
        if (left := self._waiting.pop(task_id, None)) is not None:
            for server_id in left[1]:
                self.freed(server_id)

    def lets(self, rank: Rank, server_id: str | None) -> bool:
        """Whether a task of this rank may take a place of the server: nobody more urgent waits for one."""
        return all(other >= rank or server_id not in servers for other, servers, _ in self._waiting.values())

    def freed(self, server_id: str | None) -> None:
        """The server has a free place: tell the first that waits for it."""
        first = min((entry for entry in self._waiting.values() if server_id in entry[1]), default=None, key=_rank)
        if first is not None:
            first[2].set()


def _rank(entry: tuple[Rank, frozenset[str], asyncio.Event]) -> Rank:
    return entry[0]
