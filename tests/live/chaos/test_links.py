"""The links that the chaos tests cut do what they say: otherwise those tests would prove nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Connection, make_url, text

from db.session import Database, connect
from flow.errors import StorageUnavailable
from tests.live.proxy import Link, Links, Manner, Reply
from tests.postgres import Postgres


@pytest.fixture
def link(postgres: Postgres) -> Iterator[Link]:
    with Links() as links:
        yield links.open(postgres.socket)


@pytest.fixture
async def database(link: Link, postgres: Postgres) -> AsyncIterator[Database]:
    """A database with one table, through the link."""
    url = postgres.create()
    postgres.execute("CREATE TABLE words (word text)", url)
    through = make_url(url).set(host="127.0.0.1", port=link.port).difference_update_query(["host"])
    database = connect(through.render_as_string(hide_password=False))
    yield database
    await database.close()
    postgres.drop(url)


def say(connection: Connection, word: str) -> None:
    connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": word})


def said(connection: Connection) -> list[str]:
    return list(connection.scalars(text("SELECT word FROM words ORDER BY word")))


@pytest.mark.parametrize(("reply", "stored"), [(Reply.NEVER_SENT, []), (Reply.LOST, ["lost"]), (Reply.HEARD, ["lost"])])
async def test_the_reply_of_a_commit(database: Database, link: Link, reply: Reply, stored: list[str]) -> None:
    """Of a commit that was never sent nothing is stored; of one whose reply was lost everything, and nobody knows."""
    await database.read(said)
    hit = link.at_commit("INSERT INTO words", reply)
    if reply is Reply.HEARD:
        await database.write(say, "lost")
    else:
        with pytest.raises(StorageUnavailable):
            await database.write(say, "lost")
    assert await asyncio.to_thread(hit.wait)
    assert await database.read(said) == stored
    await database.write(say, "next")
    assert await database.read(said) == [*stored, "next"]


async def test_a_cut_link_is_healed(database: Database, link: Link) -> None:
    """Cut: nothing goes through, and it is told at once. Healed: everything does."""
    await database.write(say, "before")
    link.cut()
    with pytest.raises(StorageUnavailable):
        await database.read(said)
    link.heal()
    assert await database.read(said) == ["before"]


async def test_a_stalled_link_says_nothing(database: Database, link: Link) -> None:
    """Stalled: an answer takes until it goes on."""
    await database.read(said)
    link.manner = Manner(stalled=True)
    answer = asyncio.create_task(database.read(said))
    assert (await asyncio.wait([answer], timeout=0.1))[1]
    link.manner = Manner()
    assert await answer == []


async def test_a_lossy_link_loses_about_its_share(database: Database, link: Link) -> None:
    """With a share of three in ten, some go through and some do not."""
    link.manner = Manner(refused=0.3)
    kept = 0
    for _ in range(30):
        link.tear()
        try:
            await database.read(said)
            kept += 1
        except StorageUnavailable:
            pass
    assert 0 < kept < 30
