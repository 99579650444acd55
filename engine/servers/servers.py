"""Servers of a project: registered, changed, taken out of service, checked, and chosen for work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from db.session import Database
from db.store import changes
from db.store import servers as store
from db.store.servers import StoredServer
from engine import clock
from engine.access import Actor, Permission
from engine.bus import Bus
from engine.seal import Seal, SealBroken
from engine.servers.contract import ServerAddress, ServerClient
from engine.servers.health import EVERY_S, WAKE, Health, Unusable
from engine.servers.registry import Clients
from flow.errors import Conflict, Invalid, NotFound, Problem, QuotaExceeded
from flow.problems import ProblemCode
from flow.servers import (
    SERVER_TRANSITIONS,
    SETTABLE,
    Load,
    ServerStatus,
    ServerType,
    Unavailability,
    settings_problems,
    unavailable,
)
from flow.states import after

if TYPE_CHECKING:
    from sqlalchemy import Connection

MAX_SERVERS = 1_000  # of one project
LOCAL_NAME = "local"
#: Where the local server is said to be; nobody connects to it.
LOCAL_URL = "http://localhost"
UNSET: Final = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change left behind. ``change_seq`` is its place in the project's order of changes."""

    server_id: str
    change_seq: int
    changed: bool = True


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a server can take work now: ``reason`` is None if it can, or else why not, in a word and a sentence."""

    server: StoredServer
    load: Load
    message: str
    reason: Unavailability | None = None

    @property
    def available(self) -> bool:
        """True if it can."""
        return self.reason is None

    @property
    def free(self) -> int:
        """How many more items it takes now."""
        return max(0, self.server.batch_size - self.load.running) if self.available else 0


class Servers:
    """Every method for people raises NotFound for what is not in the actor's project, Denied without the permission,
    StorageUnavailable if nothing can be stored now. ``publish(project_id, change_seq)`` is called after each commit.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        clients: Clients,
        seal: Seal,
        publish: Callable[[str, int], None],
        *,
        local_batch_size: int = 8,
        check_every_s: float = EVERY_S,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._database = database
        self._bus = bus
        self._clients = clients
        self._seal = seal
        self._publish = publish
        self._local_batch_size = local_batch_size
        self._now = now
        self.health = Health(database, bus, self.client_of, every_s=check_every_s)

    async def start(self, *, check: bool = True) -> None:
        """Make the local server of each project that never had one; with ``check``, begin to check what is due."""
        await self._database.write(self._ensure_local)
        if check:
            await self.health.start()

    async def stop(self) -> None:
        """Stop checking and close every client."""
        await self.health.stop()
        await self._clients.close()

    # Looking

    async def get(self, actor: Actor, server_id: str) -> StoredServer:
        """The server of that id."""
        actor.require(Permission.SERVER_READ)
        return _found(await self._database.read(store.server, actor.project_id, server_id), server_id)

    async def named(self, actor: Actor, name: str) -> StoredServer | None:
        """The server of that name."""
        actor.require(Permission.SERVER_READ)
        return await self._database.read(store.server_named, actor.project_id, name)

    async def available(self, actor: Actor) -> list[Availability]:
        """The servers that can take work now: enabled, ONLINE, and with a free place."""
        actor.require(Permission.SERVER_READ)
        return [each for each in await self._database.read(_online, actor.project_id) if each.available]

    async def availability(self, actor: Actor, server: str) -> Availability:
        """Whether the server of that id or name can take work now, or why not."""
        actor.require(Permission.SERVER_READ)
        return await self._database.read(availability, actor.project_id, server)

    async def changes(self, actor: Actor) -> AsyncIterator[frozenset[str] | None]:
        """The ids of the project's servers that changed, as they do; None, and so it begins: look at all of them."""
        actor.require(Permission.SERVER_READ)
        with self._bus.subscribe(f"servers:{actor.project_id}") as subscription:
            yield None
            while True:
                ids = frozenset(await subscription.take())
                missed, subscription.overflowed = subscription.overflowed, False
                yield None if missed else ids

    # The way to a server

    async def client(self, project_id: str, server_id: str) -> ServerClient:
        """The client of a server, for those who drive tasks. Raises NotFound, or ``Unusable`` with the reason."""
        return self.client_of(_found(await self._database.read(store.server, project_id, server_id), server_id))

    async def comfyui(self, project_id: str, name: str | None) -> ServerAddress:
        """The project's ComfyUI server of that name or id; without one, the only one that is ONLINE.

        For nodes, which reach it themselves. Raises Conflict, NotFound.
        """
        if name is None:
            online = await self._database.read(store.online, project_id)
            found = [row for row in online if row.type == ServerType.COMFYUI.value]
            if len(found) != 1:
                many = f"{len(found)} ComfyUI servers are ONLINE" if found else "No ComfyUI server is ONLINE"
                raise Conflict(f"{many} in this project: name the one that is meant.")
            return self._known(found[0])
        row = await self._database.read(store.server_named, project_id, name)
        row = _found(row or await self._database.read(store.server, project_id, name), name)
        if row.type != ServerType.COMFYUI.value:
            raise Conflict(f"The server {row.name!r} is of type {row.type}, not comfyui.")
        if not row.enabled:
            raise Conflict(f"The server {row.name!r} is disabled.")
        return self._known(row)

    def _known(self, row: StoredServer) -> ServerAddress:
        try:
            return self._address(row)
        except Unusable as error:
            raise Conflict(str(error)) from None

    def client_of(self, server: StoredServer) -> ServerClient:
        """The client of the server as this row has it. Raises Unusable if its token can't be read."""
        return self._clients.of(self._address(server))

    def _address(self, server: StoredServer) -> ServerAddress:
        token = None
        if server.sealed_token is not None:
            try:
                token = self._seal.open(server.sealed_token, _place(server.project_id, server.id))
            except (SealBroken, OSError) as error:
                raise Unusable(f"The token of the server {server.name!r} can't be read. {error}") from None
        kind = ServerType(server.type)
        return ServerAddress(server.id, server.project_id, server.name, kind, server.url, server.batch_size, token)

    # Changing

    async def register(
        self,
        actor: Actor,
        *,
        name: str,
        url: str,
        type: ServerType,
        enabled: bool = True,
        batch_size: int = 5,
        token: str | None = None,
    ) -> Changed:
        """A new server, OFFLINE until its first check, which comes at once.

        Raises Invalid with everything that is wrong, Conflict if the name is taken, QuotaExceeded.
        """
        actor.require(Permission.SERVER_ADMIN)
        _require_good(name=name, url=url, batch_size=batch_size, token=token)
        if type is ServerType.LOCAL and token is not None:
            raise _invalid("/token", "BAD_INPUT", "A local server is this engine itself: it needs no token.")
        at, id = self._now(), clock.new_id("srv")
        server = StoredServer(
            id=id, project_id=actor.project_id, name=name, url=url.rstrip("/"), type=type.value, enabled=enabled,
            batch_size=batch_size, status=ServerStatus.OFFLINE.value, failures=0, last_check_at=None, latency_ms=None,
            capabilities=None, last_error=None, sealed_token=self._sealed(actor.project_id, id, token), change_seq=0,
            created_at=at, created_by=actor.user_id, updated_at=at, updated_by=actor.user_id,
        )  # fmt: skip

        def change(conn: Connection) -> Changed:
            seq = changes.take(conn, actor.project_id)
            _require_free(conn, actor.project_id, name)
            if store.count(conn, actor.project_id) >= MAX_SERVERS:
                raise QuotaExceeded(f"A project has at most {MAX_SERVERS:,} servers.", limit=MAX_SERVERS)
            store.insert_server(conn, replace(server, change_seq=seq))
            return Changed(id, seq)

        return self._told(actor, await self._database.write(change), check=enabled)

    async def update(
        self,
        actor: Actor,
        server_id: str,
        *,
        name: str | msgspec.UnsetType = UNSET,
        url: str | msgspec.UnsetType = UNSET,
        enabled: bool | msgspec.UnsetType = UNSET,
        batch_size: int | msgspec.UnsetType = UNSET,
        token: str | msgspec.UnsetType | None = UNSET,
    ) -> Changed:
        """Change what is given. A ``token`` of None takes the token away.

        Another address begins anew: OFFLINE until its first check. Where the server has a token it must be given
        again (or None), so that a token is never sent to a place that it was not meant for.
        """
        actor.require(Permission.SERVER_ADMIN)
        given: dict[str, Any] = {"name": name, "url": url, "enabled": enabled, "batch_size": batch_size, "token": token}
        given = {key: value for key, value in given.items() if value is not UNSET}
        _require_good(**{key: value for key, value in given.items() if key != "enabled"})
        if isinstance(url, str):
            given["url"] = url.rstrip("/")
        if "token" in given:
            given["sealed_token"] = self._sealed(actor.project_id, server_id, given.pop("token"))

        def change(conn: Connection) -> Changed:
            seq = changes.take(conn, actor.project_id)
            row = _found(store.server(conn, actor.project_id, server_id, lock=True), server_id)
            values = {key: value for key, value in given.items() if getattr(row, key) != value}
            if not values:
                return Changed(server_id, seq, changed=False)
            if "name" in values:
                _require_free(conn, actor.project_id, values["name"])
            if row.type == ServerType.LOCAL.value and values.get("sealed_token") is not None:
                raise _invalid("/token", "BAD_INPUT", "A local server is this engine itself: it needs no token.")
            if "url" in values:
                moved = _origin(row.url) != _origin(values["url"])
                if moved and row.sealed_token is not None and "sealed_token" not in given:
                    raise _invalid("/token", "BAD_INPUT", "Another address needs the `token` again, or null for none.")
                values |= {"failures": 0, "last_error": None, "latency_ms": None, "capabilities": None}
                if row.status != ServerStatus.MAINTENANCE.value:
                    values["status"] = ServerStatus.OFFLINE.value
            due = bool({"url", "enabled", "sealed_token"} & values.keys())
            values |= {"change_seq": seq, "updated_at": self._now(), "updated_by": actor.user_id}
            store.update_server(conn, actor.project_id, server_id, due=due, **values)
            return Changed(server_id, seq)

        return self._told(actor, await self._database.write(change), check=True)

    async def delete(self, actor: Actor, server_id: str, *, force: bool = False) -> Changed:
        """Remove the server and its history. Raises Conflict while it runs a task, unless ``force``: then its items
        are given back to the other servers of their tasks.
        """
        actor.require(Permission.SERVER_ADMIN)

        def change(conn: Connection) -> Changed:
            seq = changes.take(conn, actor.project_id)
            row = _found(store.server(conn, actor.project_id, server_id, lock=True), server_id)
            load = store.loads(conn, [server_id])[server_id]
            if load.running and not force:
                message = (
                    f"The server {row.name!r} works on {load.running} item(s) of {load.task_id}. Wait, cancel the "
                    "task, or delete with `force`, which hands them back."
                )
                raise Conflict(message, running=load.running, task=load.task_id)
            store.delete_server(conn, actor.project_id, server_id)
            return Changed(server_id, seq)

        return self._told(actor, await self._database.write(change))

    async def status_set(self, actor: Actor, server_id: str, status: ServerStatus) -> Changed:
        """Say what state the server is in; the next check looks for itself, except in MAINTENANCE.

        Raises Invalid for ERROR, which only checks find.
        """
        actor.require(Permission.SERVER_ADMIN)
        step = SETTABLE.get(status)
        if step is None:
            raise _invalid("/status", ProblemCode.OUT_OF_RANGE, f"{status} is for checks to find: set another status.")

        def change(conn: Connection) -> Changed:
            seq = changes.take(conn, actor.project_id)
            row = _found(store.server(conn, actor.project_id, server_id, lock=True), server_id)
            before = ServerStatus(row.status)
            values: dict[str, Any] = {"status": after(SERVER_TRANSITIONS, before, step).value, "failures": 0}
            values |= {"change_seq": seq, "updated_at": self._now(), "updated_by": actor.user_id}
            # what people say holds until the next check; a server back from maintenance is asked at once
            left = before is ServerStatus.MAINTENANCE and status is not before
            store.update_server(conn, actor.project_id, server_id, due=left, **values)
            return Changed(server_id, seq, changed=before is not status)

        return self._told(actor, await self._database.write(change), check=True)

    async def check_health(self, actor: Actor, server_id: str) -> StoredServer:
        """Ask the server now; its row with what was found. It counts as any other check does."""
        actor.require(Permission.SERVER_CHECK)
        row = _found(await self._database.read(store.server, actor.project_id, server_id), server_id)
        await self.health.check(row)
        return _found(await self._database.read(store.server, actor.project_id, server_id), server_id)

    # Inside

    def _told(self, actor: Actor, changed: Changed, *, check: bool = False) -> Changed:
        self._publish(actor.project_id, changed.change_seq)
        self._bus.publish(f"servers:{actor.project_id}", (changed.server_id,))
        if check:
            self._bus.publish(WAKE, (changed.server_id,))
        return changed

    def _sealed(self, project_id: str, server_id: str, token: str | None) -> str | None:
        return None if token is None else self._seal.seal(token, _place(project_id, server_id))

    def _ensure_local(self, conn: Connection) -> None:
        """Each project has a server ``local`` from its first start on; one that was deleted does not come back."""
        at = self._now()
        for project_id in store.projects(conn):
            if not store.once(conn, f"local-server:{project_id}"[:64], at.isoformat()):
                continue
            if store.server_named(conn, project_id, LOCAL_NAME) is not None:
                continue
            server = StoredServer(
                id=clock.new_id("srv"), project_id=project_id, name=LOCAL_NAME, url=LOCAL_URL,
                type=ServerType.LOCAL.value, enabled=True, batch_size=self._local_batch_size,
                status=ServerStatus.ONLINE.value, failures=0, last_check_at=None, latency_ms=None, capabilities=None,
                last_error=None, sealed_token=None, change_seq=changes.take(conn, project_id), created_at=at,
                created_by=None, updated_at=at, updated_by=None,
            )  # fmt: skip
            store.insert_server(conn, server, due_in_s=EVERY_S)


def availability(conn: Connection, project_id: str, server: str) -> Availability:
    """Whether the server of that id or name can take work now, inside a transaction. Raises NotFound."""
    row = _found(store.server(conn, project_id, server) or store.server_named(conn, project_id, server), server)
    return _availability(row, store.loads(conn, [row.id])[row.id])


def _online(conn: Connection, project_id: str) -> list[Availability]:
    rows = store.online(conn, project_id)
    loads = store.loads(conn, [row.id for row in rows])
    return [_availability(row, loads[row.id]) for row in rows]


def _availability(row: StoredServer, load: Load) -> Availability:
    found = unavailable(row.name, row.enabled, ServerStatus(row.status), row.batch_size, load)
    if found is None:
        free = row.batch_size - load.running
        return Availability(row, load, f"The server {row.name!r} is available: {free} of {row.batch_size} places free.")
    reason, message = found
    return Availability(row, load, message, reason)


def _place(project_id: str, server_id: str) -> str:
    return f"{project_id}|{server_id}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port


def _found(row: StoredServer | None, asked: str) -> StoredServer:
    if row is None:
        raise NotFound("server", asked)
    return row


def _require_free(conn: Connection, project_id: str, name: str) -> None:
    taken = store.server_named(conn, project_id, name)
    if taken is not None:
        raise Conflict(f"There is a server {name!r} already.", path=("input", "name"), server=taken.id)


def _require_good(**given: Any) -> None:
    if problems := settings_problems(**given):
        raise Invalid(problems, path=("input",))


def _invalid(pointer: str, code: str, message: str) -> Invalid:
    return Invalid([Problem(pointer, code, message)], path=("input", pointer.removeprefix("/")))
