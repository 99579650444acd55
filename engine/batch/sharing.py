"""The servers of one task: which can take more, which are lost, and why a task may have to wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from db.session import Database
from db.store import servers as store
from db.store.keyset import Record
from db.store.servers import StoredServer
from engine import clock
from engine.servers.contract import ServerClient
from engine.servers.servers import LOCAL_URL, Servers
from flow.servers import ServerStatus, ServerType

#: Items that this engine takes at once of a task that names no server.
ENGINE_SLOTS = 8
#: How long a server that was lost is left alone, doubled each time.
SHUN_S, SHUN_MOST_S = 1.0, 30.0

_LOST = (ServerStatus.OFFLINE, ServerStatus.ERROR)


@dataclass(slots=True)
class Sharing:
    """Ask ``refresh`` before the others. A server id of None is this engine itself."""

    database: Database
    servers: Servers
    project_id: str
    ids: Sequence[str]
    _rows: Mapping[str, Record] = field(default_factory=dict)
    #: By server: until when it is left alone, for how long that is, and why.
    _shunned: dict[str, tuple[float, float, str]] = field(default_factory=dict)

    async def refresh(self) -> None:
        """See the servers as they are now."""
        if self.ids:
            self._rows = await self.database.read(store.servers, self.project_id, list(self.ids))

    def usable(self) -> list[tuple[str | None, int]]:
        """The servers that may take items now, each with its slots."""
        if not self.ids:
            return [(None, ENGINE_SLOTS)]
        return [(id, self._rows[id].batch_size) for id in self.ids if self._why_not(id) is None]

    def none_left(self) -> bool:
        """Whether it was to run on servers, and all of them are deleted."""
        return bool(self.ids) and not self._rows

    def gone(self, id: str | None) -> bool:
        """Whether what runs on the server must be given to others: it is deleted, or its checks say that it is lost.

        One that is disabled or in maintenance takes nothing new, and ends what it has.
        """
        if id is None:
            return False
        return id not in self._rows or self._rows[id].status in _LOST

    def lost(self, id: str | None, why: str) -> None:
        """An item met the server's end: leave it alone for a while."""
        if id is not None:
            until, before, _ = self._shunned.get(id, (0.0, 0.0, ""))
            if clock.monotonic() < until:
                return  # several items met the same end
            pause = min(SHUN_MOST_S, before * 2 or SHUN_S)
            self._shunned[id] = (clock.monotonic() + pause, pause, why)

    def worked(self, id: str | None) -> None:
        """The server did something: trust it again."""
        if id is not None:
            self._shunned.pop(id, None)

    def waits(self) -> str:
        """Why no server can take anything, in a sentence."""
        reasons = [f"{self._name(id)} {why}" for id in self.ids if (why := self._why_not(id)) is not None]
        return f"Waits for a server: {'; '.join(reasons[:5])}."

    def local(self, id: str | None) -> bool:
        """Whether the server is this engine: its references are instances of ours."""
        return id is None or (id in self._rows and self._rows[id].type == ServerType.LOCAL)

    def http(self, id: str | None) -> bool:
        """Whether the server's runner may report back by itself."""
        return id is not None and id in self._rows and self._rows[id].type == ServerType.HTTP

    async def client(self, id: str | None) -> ServerClient:
        """The client of a server. Raises NotFound, Unusable."""
        if id is not None:
            return await self.servers.client(self.project_id, id)
        at = clock.now()
        return self.servers.client_of(
            StoredServer(
                id="engine", project_id=self.project_id, name="this engine", url=LOCAL_URL,
                type=ServerType.LOCAL.value, enabled=True, batch_size=ENGINE_SLOTS, status=ServerStatus.ONLINE.value,
                failures=0, last_check_at=None, latency_ms=None, capabilities=None, last_error=None,
                sealed_token=None, change_seq=0, created_at=at, created_by=None, updated_at=at, updated_by=None,
            )
        )  # fmt: skip

    def _name(self, id: str) -> str:
        return repr(self._rows[id].name) if id in self._rows else id

    def _why_not(self, id: str) -> str | None:
        row = self._rows.get(id)
        if row is None:
            return "is deleted"
        if not row.enabled:
            return "is disabled"
        if row.status != ServerStatus.ONLINE:
            return f"is {row.status}"
        until, pause, why = self._shunned.get(id, (0.0, 0.0, ""))
        return f"is left alone for {pause:g} s ({why.rstrip('.')})" if clock.monotonic() < until else None
