"""The bus of many processes, on Redis's publish and subscribe.

What is subtle:

* A process's own listeners are served directly, those of others by Redis; its own messages come back and are skipped.
* A process hears in Redis only the topics that somebody listens to here. Between a subscription and Redis's "from now
  on you hear" a message may be missed, so at that moment its readers are sent to the database.
* Redis delivers at most once. So the readers are sent to the database when the connection was lost, every second
  while it is away, and every ``LOOK_S`` besides.
* A message that does not fit, or could not be sent, becomes the bare hint that there is something to read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import structlog
from redis.asyncio import Redis

from engine import clock
from engine.bus import Listeners, Message, Subscription
from engine.redis import LOST, Connection, Link, end, pool
from flow import events as e

LARGEST = 64 * 1024  # bytes of one message in Redis
MOST = 1_000  # messages of one topic that wait to be sent
TOPICS = 10_000  # topics that wait to be sent
BATCH = 200  # topics sent in one round trip
AWAY_S = 1.0
LOOK_S = 30.0
QUIET_S = 2.0  # a connection that says nothing for so long is asked whether it lives
CLOSE_S = 2.0
TELL_GARBAGE_S = 60.0

log = structlog.get_logger(__name__)


class Parcel(msgspec.Struct, frozen=True):
    """What goes through Redis: the sender, and its messages; none means that there is something to read."""

    origin: str
    messages: list[int | str | e.Recorded] | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Parcel).decode


class RedisBus:
    """The bus of all processes that share ``prefix`` on one Redis."""

    def __init__(self, url: str, *, prefix: str = "mirrorflow") -> None:
        self._channels = f"{prefix}:bus:"
        self._origin = os.urandom(9).hex()
        self._connections = pool(url)
        self._redis = Redis(connection_pool=self._connections)
        self._listeners = Listeners()
        #: What is to be sent, by topic; None is the bare hint.
        self._outgoing: dict[str, list[Message] | None] = {}
        self._something = asyncio.Event()
        self._topics_changed = asyncio.Event()
        #: Topics that Redis was asked for, on the connection that there is now.
        self._asked: set[str] = set()
        self._hearing = False
        self._link = Link("bus.telling")
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._told_garbage = -TELL_GARBAGE_S

    # ---- the seam

    def subscribe(self, topic: str) -> Subscription:
        subscription = Subscription(topic, self._leave)
        if self._listeners.add(subscription):
            self._topics_changed.set()
        return subscription

    def _leave(self, subscription: Subscription) -> None:
        if self._listeners.remove(subscription):
            self._topics_changed.set()

    def wanted(self, topic: str) -> bool:
        return True  # who listens elsewhere is not known here

    def publish(self, topic: str, messages: Sequence[Message]) -> None:
        self._listeners.put(topic, messages)
        if self._closed or not messages:
            return
        if topic not in self._outgoing:
            if len(self._outgoing) >= TOPICS:
                return  # their readers look by themselves, later
            self._outgoing[topic] = []
        waiting = self._outgoing[topic]
        if waiting is not None and len(waiting) + len(messages) <= MOST and not self._link.away:
            waiting.extend(messages)
        else:
            self._outgoing[topic] = None
        self._something.set()

    def listeners(self) -> int:
        return len(self._listeners)

    async def start(self) -> None:
        for loop in (self._telling, self._connecting, self._looking):
            self._tasks.append(asyncio.create_task(loop(), name=f"bus.{loop.__name__}"))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await end(self._tasks)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._tell()
        except LOST as error:
            log.debug("bus.not_told", topics=len(self._outgoing), error=str(error))
        await self._redis.aclose()
        await self._connections.aclose()

    # ---- telling others

    async def _telling(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                await self._tell()
                self._link.back()
            except LOST as error:
                await asyncio.sleep(self._link.lost(error))
                await self._connections.disconnect(inuse_connections=False)
                self._something.set()

    async def _tell(self) -> None:
        while self._outgoing:
            topics = list(self._outgoing)[:BATCH]
            parcels = [(topic, self._outgoing.pop(topic)) for topic in topics]
            try:
                pipe = self._redis.pipeline(transaction=False)
                for topic, messages in parcels:
                    pipe.publish(self._channels + topic, self._parcel(topic, messages))
                await pipe.execute()
            except BaseException:  # it is not known who has heard: let them look
                self._outgoing = dict.fromkeys([*topics, *self._outgoing])
                raise

    def _parcel(self, topic: str, messages: list[Message] | None) -> bytes:
        try:
            parcel = _encode(Parcel(self._origin, messages))
        except (TypeError, ValueError, RecursionError) as error:
            log.warning("bus.not_sent", topic=topic, error=str(error))
            return _encode(Parcel(self._origin))
        return parcel if len(parcel) <= LARGEST else _encode(Parcel(self._origin))

    # ---- hearing others

    async def _connecting(self) -> None:
        link = Link("bus.hearing")
        while True:
            connection: Connection | None = None
            try:
                connection = cast(Connection, self._connections.make_connection())  # type: ignore[no-untyped-call]
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._converse(connection, link)
            except LOST as error:
                self._hearing = False
                self._listeners.overflow()
                await asyncio.sleep(link.lost(error))
            finally:
                self._hearing = False
                if connection is not None:
                    await connection.disconnect(nowait=True)

    async def _converse(self, connection: Connection, link: Link) -> None:
        """Hear on this connection until it is lost."""
        self._asked = set()
        self._topics_changed.set()
        asking = asyncio.create_task(self._asking(connection), name="bus.asking")
        hearing = asyncio.create_task(self._hearing_on(connection, link), name="bus.hearing")
        try:
            await asyncio.wait((asking, hearing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end((asking, hearing))
        for task in (hearing, asking):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _asking(self, connection: Connection) -> None:
        """Tell Redis what is wanted here, as it changes; and something now and then, so that it answers."""
        while True:
            self._topics_changed.clear()
            wanted = set(self._listeners)
            more, fewer = wanted - self._asked, self._asked - wanted
            self._asked = wanted
            if fewer:
                await connection.send_command("UNSUBSCRIBE", *map(self._channel, fewer))
            if more:
                await connection.send_command("SUBSCRIBE", *map(self._channel, more))
            if not more and not fewer:
                await connection.send_command("PING", check_health=False)
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._topics_changed.wait()
            except TimeoutError:
                continue

    async def _hearing_on(self, connection: Connection, link: Link) -> None:
        while True:
            answer: Any = await connection.read_response(timeout=2 * QUIET_S)
            if answer is None:
                raise TimeoutError("no answer for a while")
            if not self._hearing:
                self._hearing = True
                link.back()
            match answer:
                case [b"message", bytes() as channel, bytes() as text]:
                    self._heard(self._topic(channel), text)
                case [b"subscribe", bytes() as channel, _]:
                    self._listeners.overflow(self._topic(channel))
                case _:
                    pass  # an UNSUBSCRIBE or a PING that was answered

    def _heard(self, topic: str, text: bytes) -> None:
        try:
            parcel = _decode(text)
        except (ValueError, RecursionError) as error:  # somebody else's, or another version's
            now = clock.monotonic()
            if now - self._told_garbage >= TELL_GARBAGE_S:
                self._told_garbage = now
                log.warning("bus.garbage_dropped", topic=topic, error=str(error)[:200])
            self._listeners.overflow(topic)
            return
        if parcel.origin == self._origin:
            return
        if parcel.messages is None:
            self._listeners.overflow(topic)
        else:
            self._listeners.put(topic, parcel.messages)

    async def _looking(self) -> None:
        """Messages may be lost without anybody's knowing: have all readers look, more often where they hear nothing."""
        looked = clock.monotonic()
        while True:
            await asyncio.sleep(AWAY_S)
            now = clock.monotonic()
            if not self._hearing or now - looked >= LOOK_S:
                looked = now
                self._listeners.overflow()

    def _channel(self, topic: str) -> str:
        return self._channels + topic

    def _topic(self, channel: bytes) -> str:
        return channel.decode(errors="replace").removeprefix(self._channels)
