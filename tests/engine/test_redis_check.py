"""Whether a Redis can be used is said in one line, with the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from engine import redis
from engine.redis import redis_check
from flow.errors import RedisUnavailable
from tests.redis import RedisServer, Unavailable

Running = Callable[..., RedisServer]


@pytest.fixture
def running() -> Iterator[Running]:
    """Starts a Redis with these options."""
    servers: list[RedisServer] = []

    def start(*options: str, password: str | None = None) -> RedisServer:
        try:
            servers.append(RedisServer(*options, password=password))
        except Unavailable as reason:
            pytest.skip(f"Redis can't be started: {reason}")
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """The check says no, in one line that has these words, and no password."""
    with pytest.raises(RedisUnavailable) as told:
        yield
    message = told.value.message
    assert "\n" not in message
    assert "secret" not in message
    assert all(word in message for word in words), message


@asynccontextmanager
async def listening(answer: bytes | None, *, hang_up: bool = False) -> AsyncIterator[str]:
    """The URL of something that answers so, or not at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hang_up:
            writer.close()
            return
        while await reader.read(1000):
            if answer is not None:
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def test_a_redis_passes(running: Running) -> None:
    """A usual Redis passes, with a password too, and nothing is to be said of it."""
    assert await redis_check(running().url) == []
    assert await redis_check(running(password="secret").url) == []


async def test_a_redis_that_forgets_is_told(running: Running) -> None:
    """A Redis that drops keys when its memory is full can be used, with a word of warning."""
    server = running("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    [warning] = await redis_check(server.url)
    assert "allkeys-lru" in warning


async def test_passwords(running: Running) -> None:
    """A missing and a wrong password are told, and not shown."""
    server = running(password="secret")
    with refused("password", f"127.0.0.1:{server.port}"):
        await redis_check(f"redis://127.0.0.1:{server.port}/0")
    with refused("password", f"127.0.0.1:{server.port}"):
        await redis_check(f"redis://:secret2@127.0.0.1:{server.port}/0")


async def test_a_redis_that_does_not_do(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica, a lack of commands or rights, full memory, an unknown database and an old version are told apart."""
    server = running()
    with refused("replica", "master"):
        await redis_check(running("--replicaof", "127.0.0.1", str(server.port)).url)
    with refused("LTRIM, PUBLISH"):
        await redis_check(running("--rename-command", "ltrim", "", "--rename-command", "publish", "").url)
    with refused("memory"):
        await redis_check(running("--maxmemory", "1kb").url)
    with refused("DB index"):
        await redis_check(server.url.replace("/0", "/99"))
    server.command("ACL", "SETUSER", "guest", "on", ">secret", "~*", "-@all")
    with refused("allow", "info"):
        await redis_check(server.url.replace("//", "//guest:secret@"))
    monkeypatch.setattr(redis, "OLDEST", (99, 0))
    with refused("99.0"):
        await redis_check(server.url)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Redis"),
        (b"\x00\xff\x13garbage\r\n", "no Redis"),
        (b"+OK\r\n" * 9, "as a Redis does"),
        (b":1\r\n" * 9, "as a Redis does"),
        (None, "does not answer"),
    ],
)
async def test_what_is_no_redis(answer: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where something else listens, or something that never answers, is told as that."""
    monkeypatch.setattr(redis, "ANSWER_TIMEOUT_S", 0.3)
    async with listening(answer) as url:
        with refused(words):
            await redis_check(url)


async def test_nobody_there() -> None:
    """A port that hangs up or where nobody listens, a socket that is none, and an unknown host are told."""
    async with listening(None, hang_up=True) as url:
        with refused("as a Redis does"):
            await redis_check(url)
    with refused("no Redis at"):
        await redis_check(url)
    with refused("no Redis at", "/nowhere"):
        await redis_check("unix:///nowhere")
    with refused("no Redis at", "host.invalid"):
        await redis_check("redis://:secret@host.invalid/0")


@pytest.mark.parametrize("url", ["", "http://host/0", "redis://host:secret/0", "127.0.0.1:6379", "redis://[::1/0"])
async def test_a_url_that_is_none(url: str) -> None:
    """A URL that can't be read is refused with an example of one that can."""
    with refused("redis://user:password@host:6379/0"):
        await redis_check(url)
