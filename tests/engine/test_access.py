"""Tokens, roles and the first sign-in, on both databases."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from db.session import Database, connect
from db.store import access as store
from engine.access import (
    ADMIN_USER,
    BOOTSTRAP_TOKEN,
    CACHE_SECONDS,
    DEFAULT_PROJECT,
    LOCAL,
    ROLES,
    Access,
    Actor,
    Permission,
    mistyped,
    permissions,
)
from flow.errors import Denied, Invalid, NotFound

SETTING = "correct-horse-battery-staple"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()

    def passes(self, delta: timedelta) -> None:
        self.at += delta


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def access(database: Database, clock: Clock) -> AsyncIterator[Access]:
    access = Access(database, now=clock.now, monotonic=clock.monotonic)
    await access.ensure_defaults()
    yield access
    await access.close()


async def test_a_new_token_is_its_users(access: Access) -> None:
    """The text shown once signs in as its user, in its project, with what its scopes allow."""
    made = await access.token_create(LOCAL, "ci", ["operator"])
    assert await access.authenticate(made.text) == Actor(
        ADMIN_USER, "admin", DEFAULT_PROJECT, frozenset(ROLES["operator"]), made.id
    )


async def test_the_secret_is_not_stored(access: Access, database: Database) -> None:
    """No row holds the token's text, only a SHA-256."""
    made = await access.token_create(LOCAL, "ci", ["viewer"])
    row = await database.read(store.token, made.id)
    assert row is not None
    assert len(row.sha256) == 64
    assert made.text not in repr(row)
    assert made.text.split("_")[2] not in repr(row)


async def test_a_mistyped_token_is_told_from_a_wrong_one(access: Access) -> None:
    """The checksum finds a slip of one letter anywhere; a token that was never made is not a slip."""
    made = await access.token_create(LOCAL, "ci", ["viewer"])
    assert not mistyped(made.text)
    for place in range(4, len(made.text)):
        slip = made.text[:place] + ("0" if made.text[place] != "0" else "1") + made.text[place + 1 :]
        assert mistyped(slip)
        assert await access.authenticate(slip) is None
    assert mistyped(made.text[:-1])
    assert not mistyped("somebody-elses-token-altogether")


@pytest.mark.parametrize(
    "token", ["", "x", "mfk_", "mfk__", "Bearer mfk_a_b", "\x00" * 30, "\udcff" * 30, "é" * 40, "x" * 100_000]
)
async def test_junk_is_nobody(access: Access, token: str) -> None:
    """Whatever comes over the wire is answered, not stumbled over."""
    assert await access.authenticate(token) is None


async def test_many_who_come_at_once_ask_once(
    access: Access, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred sockets that come back together cost one question."""
    made = await access.token_create(LOCAL, "crowd", ["viewer"])
    crowd = Access(database)
    asked = 0
    read = database.read

    async def counted(query: Any, *args: Any) -> Any:
        nonlocal asked
        asked += query is store.token
        return await read(query, *args)

    monkeypatch.setattr(database, "read", counted)
    actors = await asyncio.gather(*(crowd.authenticate(made.text) for _ in range(200)))
    assert {actor.token_id for actor in actors if actor is not None} == {made.id}
    assert None not in actors
    assert asked == 1
    await crowd.close()


async def test_an_expired_token_ends_to_the_moment(access: Access, clock: Clock) -> None:
    """Expiry does not wait until a cached answer is old."""
    made = await access.token_create(LOCAL, "short", ["viewer"], timedelta(seconds=5))
    clock.passes(timedelta(seconds=4))
    actor = await access.authenticate(made.text)
    assert actor is not None
    clock.passes(timedelta(seconds=1))
    assert await access.authenticate(made.text) is None
    assert not await access.still_valid(actor)


async def test_a_revoked_token_ends_at_once_here_and_within_20_seconds_elsewhere(
    access: Access, database: Database, clock: Clock
) -> None:
    """Another process believes its last answer for at most 15 seconds."""
    made = await access.token_create(LOCAL, "ci", ["viewer"])
    elsewhere = Access(database, now=clock.now, monotonic=clock.monotonic)
    actor = await elsewhere.authenticate(made.text)
    assert actor is not None
    assert await access.authenticate(made.text) is not None
    await access.token_revoke(LOCAL, made.id)
    assert await access.authenticate(made.text) is None
    assert CACHE_SECONDS <= 20
    clock.passes(timedelta(seconds=CACHE_SECONDS))
    assert await elsewhere.authenticate(made.text) is None
    assert not await elsewhere.still_valid(actor)
    await elsewhere.close()


async def test_the_last_use_is_noted_at_most_once_a_minute(access: Access, database: Database, clock: Clock) -> None:
    """Using a token costs no write, but one a minute."""
    made = await access.token_create(LOCAL, "ci", ["viewer"])

    async def last_use() -> datetime | None:
        await access.close()
        row = await database.read(store.token, made.id)
        assert row is not None
        return row.last_used_at

    assert await last_use() is None
    first = clock.at
    await access.authenticate(made.text)
    assert await last_use() == first
    clock.passes(timedelta(seconds=59))
    await access.authenticate(made.text)
    assert await last_use() == first
    clock.passes(timedelta(seconds=1))
    await access.authenticate(made.text)
    assert await last_use() == clock.at


async def test_nobody_gives_more_than_they_have(access: Access) -> None:
    """A token that may make tokens can't make a stronger one; one that may not, none."""
    made = await access.token_create(LOCAL, "helper", ["viewer", "token:admin"])
    helper = await access.authenticate(made.text)
    assert helper is not None
    await access.token_create(helper, "weaker", ["workflow:read"])
    with pytest.raises(Denied, match="needs the permission"):
        await access.token_create(helper, "stronger", ["operator"])
    made = await access.token_create(LOCAL, "editor", ["editor"])
    editor = await access.authenticate(made.text)
    assert editor is not None
    for refused in (
        access.token_create(editor, "another", ["viewer"]),
        access.token_list(editor),
        access.token_revoke(editor, helper.token_id or ""),
    ):
        with pytest.raises(Denied, match="token:admin"):
            await refused
    await access.token_revoke(editor, editor.token_id or "")  # signing out is everybody's right


async def test_what_is_wrong_with_a_new_token_is_told(access: Access) -> None:
    """Unknown scopes are told all at once; a name and a future expiry are needed."""
    with pytest.raises(Invalid) as refusal:
        await access.token_create(LOCAL, "ci", ["viewer", "king", "workflow:burn"])
    assert [problem.pointer for problem in refusal.value.problems] == ["/scopes/1", "/scopes/2"]
    with pytest.raises(Invalid, match="name"):
        await access.token_create(LOCAL, "  ", ["viewer"])
    with pytest.raises(Invalid, match="future"):
        await access.token_create(LOCAL, "ci", ["viewer"], timedelta(0))
    with pytest.raises(NotFound):
        await access.token_create(LOCAL, "ci", ["viewer"], user_name="nobody")
    with pytest.raises(NotFound):
        await access.token_revoke(LOCAL, "tok-nothing")


async def test_another_projects_token_is_not_found(access: Access, database: Database, clock: Clock) -> None:
    """An administrator of one project neither sees nor revokes the tokens of another."""
    await database.write(store.ensure_project, "proj-other", "other", clock.at)
    made = await access.token_create(LOCAL, "ci", ["viewer"])
    stranger = Actor(ADMIN_USER, "admin", "proj-other", ROLES["admin"])
    assert await access.token_list(stranger) == []
    with pytest.raises(NotFound):
        await access.token_revoke(stranger, made.id)
    assert await access.authenticate(made.text) is not None


async def test_many_first_starts_at_once_make_one_administrator(database: Database) -> None:
    """The defaults are there once, whoever comes first."""
    await asyncio.gather(*(Access(database).bootstrap(SETTING) for _ in range(8)))
    access = Access(database)
    actor = await access.authenticate(SETTING)
    assert actor is not None
    assert actor.permissions == ROLES["admin"]
    await access.close()


async def test_the_setting_token_is_the_only_one_of_its_kind(
    access: Access, database: Database, tmp_path: Path
) -> None:
    """Changing the setting ends the old text; taking it away ends it too. Its text is not stored."""
    await access.bootstrap(SETTING)
    assert await access.authenticate(SETTING) is not None
    await access.bootstrap(SETTING + "-new")
    assert await access.authenticate(SETTING) is None
    assert await access.authenticate(SETTING + "-new") is not None
    row = await database.read(store.token, BOOTSTRAP_TOKEN)
    assert SETTING not in repr(row)
    await access.bootstrap(None)
    assert await access.authenticate(SETTING + "-new") is None


@pytest.mark.parametrize("setting", ["x" * 19, "mfk_something-long-enough"])
async def test_a_bad_setting_token_stops_the_start(access: Access, setting: str) -> None:
    """Too short, or looking like a token of this server."""
    with pytest.raises(Invalid, match="TOKEN"):
        await access.bootstrap(setting)


async def test_the_local_command_line_has_a_token_of_its_own(access: Access, tmp_path: Path) -> None:
    """It is readable by its owner only, kept over restarts, and made anew when it is lost, broken or revoked."""
    file = tmp_path / "token"
    await access.bootstrap(None, token_file=file)
    first = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    actor = await access.authenticate(first)
    assert actor is not None
    assert actor.permissions == ROLES["admin"]
    await access.bootstrap(None, token_file=file)
    assert file.read_text().strip() == first
    await access.token_revoke(LOCAL, actor.token_id or "")
    await access.bootstrap(None, token_file=file)
    second = file.read_text().strip()
    assert await access.authenticate(second) is not None
    assert await access.authenticate(first) is None
    file.write_bytes(b"\xff\xfe broken")
    await access.bootstrap(None, token_file=file)
    assert await access.authenticate(file.read_text().strip()) is not None
    assert await access.authenticate(second) is None
    assert [name for name in os.listdir(tmp_path) if "token" in name] == ["token"]


async def test_a_sign_in_code_works_once_and_not_for_long(access: Access, clock: Clock) -> None:
    """A link is good for one browser, within ten minutes."""
    code = access.sign_in_code()
    session = await access.redeem(code)
    assert session is not None
    actor = await access.authenticate(session.text)
    assert actor is not None
    assert actor.permissions == LOCAL.permissions
    assert session.expires_at is not None
    assert await access.redeem(code) is None
    late = access.sign_in_code()
    clock.passes(timedelta(minutes=10))
    assert await access.redeem(late) is None
    assert await access.redeem("guess") is None


async def test_a_code_of_a_weak_caller_gives_a_weak_session(access: Access) -> None:
    """A session may do what its maker might."""
    viewer = Actor(ADMIN_USER, "admin", DEFAULT_PROJECT, ROLES["viewer"])
    session = await access.redeem(access.sign_in_code(viewer))
    assert session is not None
    actor = await access.authenticate(session.text)
    assert actor is not None
    assert actor.permissions == ROLES["viewer"]


async def test_authentication_answers_from_memory(access: Access, sqlite_url: str) -> None:
    """A token in constant use does not cost a query each time."""
    made = await access.token_create(LOCAL, "ci", ["viewer"])
    assert await access.authenticate(made.text) is not None
    await access.close()
    elsewhere = connect(sqlite_url)
    try:
        access._db = elsewhere  # another database altogether: only memory can know the token now
        assert await access.authenticate(made.text) is not None
    finally:
        await elsewhere.close()


def test_roles_grow_from_viewer_to_admin() -> None:
    """Each role may do all that the one before it may, and admin everything."""
    viewer, operator, editor, admin = (permissions([role]) for role in ("viewer", "operator", "editor", "admin"))
    assert viewer < operator < editor < admin == frozenset(Permission)
