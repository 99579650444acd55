"""The way to Redis: how it is connected to, how its loss is borne, and whether it is one that can be used.

Redis carries hints only (``engine.queue``, ``engine.bus``), so its loss costs latency and nothing else: whoever uses
it tries again by itself, says once that it is gone and once that it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NoAnswer

from flow.errors import RedisUnavailable

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 3.0  # longer than any command that we let Redis block on
CHECK_TIMEOUT_S = 5.0
PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)  # between attempts to reach it
OLDEST = (5, 0)  # before it, a script that asks for the time may not write
NEEDED = ("evalsha", "blpop", "ltrim", "zadd", "publish", "subscribe")

#: What the way to Redis may raise at any time.
LOST = (RedisError, OSError, asyncio.TimeoutError)

log = structlog.get_logger(__name__)


class Link:
    """Whether Redis answers us: says once when it stops to, and once when it does again."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._failures = 0

    @property
    def away(self) -> bool:
        return self._failures > 0

    def lost(self, error: BaseException) -> float:
        """Seconds to wait before the next attempt."""
        if not self.away:
            log.warning(f"{self._part}.redis_lost", error=_said(error))
        pause = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        return pause

    def back(self) -> None:
        """It has answered."""
        if self.away:
            self._failures = 0
            log.info(f"{self._part}.redis_back")


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel the tasks until all have ended.

    Once is not enough: before Python 3.12 ``asyncio.wait_for``, with which redis-py sends, swallows a cancellation that
    meets its end.
    """
    pending = set(tasks)
    canceled = False
    while pending:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=0.02)
        except asyncio.CancelledError:  # ours: first theirs
            canceled = True
        pending = {task for task in pending if not task.done()}
    if canceled:
        raise asyncio.CancelledError


def pool(url: str) -> ConnectionPool:
    """Connections to the Redis at this URL; none is opened yet. Raises RedisUnavailable if the URL is none."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except (ValueError, TypeError):
        raise RedisUnavailable(
            "The Redis URL can't be used: it must look like redis://user:password@host:6379/0 (rediss:// for TLS, "
            "unix:///path for a socket)."
        ) from None
    if options.get("connection_class") is not UnixDomainSocketConnection:
        options["socket_keepalive"] = True
    return ConnectionPool(
        **{"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": ANSWER_TIMEOUT_S, **options}
    )


async def redis_check(url: str) -> list[str]:
    """Whether this Redis can be used: what may be wrong with it, in sentences; usually nothing.

    Raises RedisUnavailable, whose message is one line with the remedy, if it can't.
    """
    connections = pool(url)
    client = Redis(connection_pool=connections)
    where = _place(connections.connection_kwargs)
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await _faults(client, where)
    except LOST as error:
        raise RedisUnavailable(_refusal(error, where)) from None
    except (TypeError, ValueError, AttributeError):  # the client's, over an answer of another shape
        raise RedisUnavailable(
            f"What listens at {where} answers, but not as a Redis does: check host and port."
        ) from None
    finally:
        await client.aclose()
        await connections.aclose()


async def _faults(client: Redis, where: str) -> list[str]:
    info: dict[str, Any] = await client.info()
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RedisUnavailable(f"The Redis at {where} is version {version}: {oldest} or newer is needed.")
    known = await _ask(client, "COMMAND INFO", *NEEDED)
    missing = [name.upper() for name, told in zip(NEEDED, known, strict=True) if not told]
    if missing:
        raise RedisUnavailable(f"The Redis at {where} lacks commands that are needed: {', '.join(missing)}.")
    if info.get("role") == "slave" and info.get("slave_read_only", 1):
        raise RedisUnavailable(f"The Redis at {where} is a read-only replica: give the URL of its master.")
    # Only a write from a script tells whether memory, disk and permissions allow one.
    script = "redis.call('TIME') return redis.call('SET', KEYS[1], '1', 'PX', 1000)"
    await _ask(client, "EVAL", script, 1, "mirrorflow:check")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(info.get("maxmemory", 0) or 0) and policy != "noeviction":
        return [
            f"The Redis at {where} forgets keys when its memory is full (maxmemory-policy {policy}): wake-ups may come "
            "late. Set maxmemory-policy noeviction."
        ]
    return []


async def _ask(client: Redis, command: str, *words: str | int) -> Any:
    return await client.execute_command(command, *words)  # type: ignore[no-untyped-call]


def _refusal(error: BaseException, where: str) -> str:
    said = _said(error)
    match error:
        case AuthenticationError():  # NOAUTH too
            return (
                f"The Redis at {where} refuses the user or the password ({said}): give them in the URL, "
                "redis://user:password@host:port/0."
            )
        case NoPermissionError():
            return f"The Redis at {where} does not allow its user what is needed ({said})."
        case ReadOnlyError():
            return f"The Redis at {where} is a read-only replica: give the URL of its master."
        case BusyLoadingError():
            return f"The Redis at {where} is still loading its data: try again in a moment."
        case InvalidResponse():
            return f"What listens at {where} is no Redis ({said}): check host and port."
        case NoAnswer() | asyncio.TimeoutError():
            return f"What should be a Redis at {where} does not answer: check host, port and firewall."
        case NotConnected() if "DENIED" in said or "max number of clients" in said:
            return f"The Redis at {where} refuses us ({said})."
        case NotConnected() if (
            "closed by server" in said or "reading from" in said or "writing to" in said or "not ready" in said
        ):
            return f"What listens at {where} does not answer as a Redis does: check host, port and TLS."
        case ResponseError():
            return f"The Redis at {where} can't be used ({said})."
        case _:
            return f"There is no Redis at {where} ({said}): start it, or mend the URL."


def _said(error: BaseException) -> str:
    """What the error says, in one short line."""
    return " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")


def _place(options: dict[str, Any]) -> str:
    """Where it is, without the password."""
    if path := options.get("path"):
        return str(path)
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


__all__ = ["LOST", "Connection", "Link", "end", "pool", "redis_check"]
