"""Links that can fail: small TCP proxies between the processes of a test and what they talk to.

    with Links(seed=7) as links:
        link = links.open(("127.0.0.1", 6379))
        link.manner = Manner(reset=0.3)          # three chunks in ten tear their connection
        link.cut()                               # every connection torn, new ones refused
        link.heal()
        database = links.open(Path("/…/.s.PGSQL.5432"))
        hit = database.at_commit("INSERT INTO events", Reply.LOST)     # the next commit of such a transaction
        await asyncio.to_thread(hit.wait, 10)

All proxies live in one thread with an event loop of its own, so that they outlast the loop of one test. What is random
is drawn from the seed. A link that sees PostgreSQL's protocol follows it just far enough to know which statements a
transaction has sent when its COMMIT comes by (message formats: PostgreSQL's manual, chapter 55.7).
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any, Self

CHUNK = 64 * 1024
_ENCRYPTION = (80_877_103, 80_877_104)  # SSLRequest and GSSENCRequest: a question before the start-up message
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of zero: closing sends RST

Target = tuple[str, int] | Path


@dataclass(frozen=True, slots=True)
class Manner:
    """How a link treats what goes through it; shares are from 0 to 1."""

    refused: float = 0.0  # share of new connections that are reset
    reset: float = 0.0  # share of chunks instead of which their connection is reset
    delay_s: float = 0.0  # before each chunk
    stalled: bool = False  # nothing goes through, and nobody is told


class Reply(Enum):
    """What becomes of a COMMIT that was waited for."""

    NEVER_SENT = auto()  # the database never sees it
    LOST = auto()  # it is done, and the client never hears so
    HEARD = auto()  # the client is told as usual


@dataclass(slots=True)
class Hit:
    """One COMMIT to wait for. ``wait`` says whether it came by."""

    statement: str
    about: bytes
    reply: Reply
    then: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until it came by, at most so long."""
        return self.done.wait(timeout)


class Links:
    """The thread that all links live in. A context manager; leaving it tears every connection."""

    def __init__(self, seed: int = 0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._chance = random.Random(seed)
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            self.call(link._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def open(self, target: Target) -> Link:
        """A new link to ``target``: its ``port`` on 127.0.0.1 leads there."""
        link = Link(self, target, random.Random(self._chance.random()))
        self.call(link._listen())
        self._links.append(link)
        return link

    def call(self, work: Any) -> Any:
        """The result of a coroutine that is run in the thread. Blocks for a moment."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class Link:
    """One port that leads to one target, while it behaves."""

    def __init__(self, links: Links, target: Target, chance: random.Random) -> None:
        self.target = target
        self.port = 0
        #: May be set at any time, from any thread.
        self.manner = Manner()
        self._links = links
        self._chance = chance
        self._cut = False
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hits: list[Hit] = []

    # ---- from any thread

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._pairs)

    def cut(self) -> None:
        """Tear every connection, and refuse new ones until ``heal``."""
        self._links.call(self._tear(True))

    def tear(self) -> None:
        """Tear every connection; new ones are welcome."""
        self._links.call(self._tear(self._cut))

    def heal(self) -> None:
        """Behave from now on; who waits for a commit still does."""
        self.manner = Manner()
        self._links.call(self._tear(False, torn=False))

    def at_commit(
        self, statement: str, reply: Reply, then: Callable[[], None] = lambda: None, *, about: str = ""
    ) -> Hit:
        """Wait for the next COMMIT of a transaction with a statement like this that names ``about`` among its values:
        ``then`` is called at that moment, in the links' thread, and but for ``Reply.HEARD`` the connection is torn.
        """
        hit = Hit(statement.lower(), about.encode(), reply, then)
        self._hits.append(hit)
        return hit

    def forget(self) -> None:
        """Wait for no commit any more."""
        self._hits.clear()

    # ---- in the links' thread

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._tear(True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tear(self, cut: bool, torn: bool = True) -> None:
        self._cut = cut
        for pair in list(self._pairs) if torn else ():
            pair.tear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._cut or self._chance.random() < self.manner.refused:
                _reset(writer)
                return
            try:
                match self.target:
                    case Path():
                        there = await asyncio.open_unix_connection(self.target, limit=CHUNK)
                    case host, port:
                        there = await asyncio.open_connection(host, port, limit=CHUNK)
            except OSError:  # nobody is at home: the client hears what it would hear without us
                _reset(writer)
                return
            pair = _Pair(self, (reader, writer), there)
            self._pairs.add(pair)
            try:
                await pair.run()
            finally:
                self._pairs.discard(pair)
        finally:
            self._tasks.discard(task)

    async def _let_through(self, pair: _Pair) -> bool:
        """Whether a chunk may go on; a torn connection otherwise."""
        manner = self.manner
        if manner.delay_s:
            await asyncio.sleep(manner.delay_s)
        while self.manner.stalled:  # noqa: ASYNC110  (it is set from another thread)
            await asyncio.sleep(0.02)
        if self._chance.random() < manner.reset:
            pair.tear()
            return False
        return True

    def _hit(self, statements: list[tuple[str, bytes]]) -> Hit | None:
        for hit in self._hits:
            if any(hit.statement in statement and hit.about in values for statement, values in statements):
                self._hits.remove(hit)
                return hit
        return None


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """A client's connection and the one that was made for it."""

    def __init__(self, link: Link, client: Ends, server: Ends) -> None:
        self._link = link
        self._client = client
        self._server = server
        self._conversation = _Conversation() if isinstance(link.target, Path) else None
        #: A COMMIT that was sent and whose answer is to be dealt with.
        self._awaited: Hit | None = None

    async def run(self) -> None:
        up = asyncio.create_task(self._up())
        down = asyncio.create_task(self._down())
        try:
            await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            self._client[1].close()
            self._server[1].close()

    def tear(self) -> None:
        _reset(self._client[1])
        _reset(self._server[1])

    async def _up(self) -> None:
        with suppress(OSError):
            while chunk := await self._client[0].read(CHUNK):
                hit = None
                if self._conversation is not None and self._conversation.commits(chunk):
                    hit = self._link._hit(self._conversation.statements)
                if hit is not None and hit.reply is Reply.NEVER_SENT:
                    self._strike(hit)
                    return
                if not await self._link._let_through(self):
                    return
                self._awaited = hit
                self._server[1].write(chunk)
                await self._server[1].drain()

    async def _down(self) -> None:
        with suppress(OSError):
            while chunk := await self._server[0].read(CHUNK):
                hit, self._awaited = self._awaited, None
                if hit is not None and hit.reply is Reply.LOST:
                    self._strike(hit)
                    return
                if not await self._link._let_through(self):
                    return
                self._client[1].write(chunk)
                await self._client[1].drain()
                if hit is not None:
                    hit.then()
                    hit.done.set()

    def _strike(self, hit: Hit) -> None:
        hit.then()
        self.tear()
        hit.done.set()


class _Conversation:
    """What a client of PostgreSQL has said in the transaction that is under way."""

    def __init__(self) -> None:
        #: Each statement in lower case, with its values as they were sent.
        self.statements: list[tuple[str, bytes]] = []
        self._prepared: dict[bytes, str] = {}
        self._started = False
        self._rest = b""

    def commits(self, chunk: bytes) -> bool:
        """Take in what the client sent; whether there is a COMMIT in it."""
        found = False
        for kind, body in self._messages(chunk):
            match kind:
                case b"P":
                    name, text, _ = body.split(b"\0", 2)
                    self._prepared[name] = text.decode(errors="replace").lower()
                case b"B":
                    _, name, values = body.split(b"\0", 2)
                    self.statements.append((self._prepared.get(name, ""), values))
                case b"Q":
                    statement = body.rstrip(b"\0").decode(errors="replace").lower()
                    if statement.startswith("begin"):
                        self.statements.clear()
                    elif statement.startswith("commit"):
                        found = True
                    else:
                        self.statements.append((statement, body))
                case _:
                    pass
        return found

    def _messages(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        data, at = self._rest + chunk, 0
        while True:
            head = at + (1 if self._started else 0)
            if len(data) < head + 4:
                break
            end = head + int.from_bytes(data[head : head + 4], "big")
            if len(data) < end:
                break
            body = data[head + 4 : end]
            if self._started:
                yield data[at:head], body
            else:
                self._started = int.from_bytes(body[:4], "big") not in _ENCRYPTION
            at = end
        self._rest = data[at:]


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_INET:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
