"""Who is calling and what they may do: bearer tokens, roles, and the first sign-in.

A token is ``mfk_<id>_<secret><crc>``: the id finds its row, the checksum tells a mistyped token from a wrong one
without asking the database, and only the SHA-256 of the whole is stored. The setting ``TOKEN`` may be any text of
20 characters or more; it has a row of its own, ``tok-bootstrap``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from db.session import Database
from db.store import access as store
from db.store.access import StoredToken
from engine import clock
from flow.errors import Denied, Invalid, NotFound, Problem, StorageUnavailable

DEFAULT_PROJECT = "proj-default"
ADMIN_USER = "usr-admin"
ADMIN_NAME = "admin"
BOOTSTRAP_TOKEN = "tok-bootstrap"
#: The token in ``DATA_DIR/token`` has an id of its own, so that a new one takes the place of a lost one.
LOCAL_TOKEN = f"tok-{'0' * 26}"
MIN_TOKEN_LENGTH = 20

#: How long an answer about a token is believed; a token revoked by another process ends within it.
CACHE_SECONDS = 15.0
CACHE_ENTRIES = 10_000
LAST_USED_EVERY = timedelta(minutes=1)
SIGN_IN_CODE_VALID = timedelta(minutes=10)
SIGN_IN_CODES = 100
SESSION_VALID = timedelta(days=30)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PREFIX = "mfk_"
_TOKEN = re.compile(rf"(mfk_([{_ALPHABET}]{{26}})_[{_ALPHABET}]{{40}})([{_ALPHABET}]{{7}})")

log = logging.getLogger(__name__)


class Permission(StrEnum):
    """One thing that a caller may do in a project."""

    WORKFLOW_READ = "workflow:read"
    WORKFLOW_WRITE = "workflow:write"
    INSTANCE_READ = "instance:read"
    INSTANCE_RUN = "instance:run"
    NODE_TYPE_READ = "node_type:read"
    SERVER_READ = "server:read"
    SERVER_CHECK = "server:check"
    SERVER_ADMIN = "server:admin"
    TASK_READ = "task:read"
    TASK_RUN = "task:run"
    WORKER_READ = "worker:read"
    WORKER_ADMIN = "worker:admin"
    TOKEN_ADMIN = "token:admin"


P = Permission
_PERMISSION_NAMES = frozenset(permission.value for permission in Permission)
_VIEWER = frozenset({P.WORKFLOW_READ, P.INSTANCE_READ, P.NODE_TYPE_READ, P.SERVER_READ, P.TASK_READ, P.WORKER_READ})
_OPERATOR = _VIEWER | {P.INSTANCE_RUN, P.SERVER_CHECK, P.TASK_RUN}

#: Role → permissions. A token's scope is the name of a role or of a permission.
ROLES: Mapping[str, frozenset[Permission]] = {
    "viewer": _VIEWER,
    "operator": _OPERATOR,
    "editor": _OPERATOR | {P.WORKFLOW_WRITE},
    "admin": frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is calling, in which project, and what they may do there. ``token_id`` is None for the program itself."""

    user_id: str
    name: str
    project_id: str
    permissions: frozenset[str]
    token_id: str | None = None

    def may(self, permission: Permission) -> bool:
        """True if the caller has the permission."""
        return permission in self.permissions

    def require(self, permission: Permission) -> None:
        """Raise Denied unless the caller has the permission."""
        if not self.may(permission):
            raise Denied(permission)


#: The program itself and whoever owns its files, acting in the default project.
LOCAL = Actor(ADMIN_USER, ADMIN_NAME, DEFAULT_PROJECT, ROLES["admin"])


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token just made: ``text`` is shown once and can't be read again."""

    id: str
    name: str
    text: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Known:
    actor: Actor
    sha256: str
    expires_at: datetime | None
    fresh_until: float


@dataclass(frozen=True, slots=True)
class _SignIn:
    actor: Actor
    expires_at: datetime


class Access:
    """Tokens and sign-in on one database. ``close`` waits for what is still being noted."""

    def __init__(
        self,
        db: Database,
        *,
        now: Callable[[], datetime] = clock.now,
        monotonic: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._db = db
        self._now = now
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        #: Who asks the database about a token, for everybody who wants to know it now.
        self._asking: dict[str, asyncio.Task[_Known | None]] = {}
        self._used: dict[str, datetime] = {}
        self._sign_ins: dict[str, _SignIn] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until every last use is noted."""
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    # The first start

    async def ensure_defaults(self) -> None:
        """The default project and its administrator exist after this, however many processes call it at once."""
        at = self._now()
        await self._db.write(store.ensure_project, DEFAULT_PROJECT, "default", at)
        await self._db.write(store.ensure_user, ADMIN_USER, ADMIN_NAME, True, at)

    async def bootstrap(self, token: str | None, *, token_file: Path | None = None, alone: bool = True) -> None:
        """Make the defaults, let in exactly the setting ``token`` (None: nobody), and keep a token for the local
        command line in ``token_file``, readable by its owner only. Unless this process is ``alone`` on the database,
        others keep such tokens too, each its own.

        Raises Invalid if ``token`` is shorter than 20 characters or begins as this server's own tokens do.
        """
        if token is not None and len(token) < MIN_TOKEN_LENGTH:
            raise _invalid(f"TOKEN has {len(token)} characters; it needs at least {MIN_TOKEN_LENGTH}.", "/token")
        if token is not None and token.startswith(_PREFIX):
            raise _invalid(f"TOKEN can't begin with {_PREFIX!r}: tokens that the server makes do.", "/token")
        await self.ensure_defaults()
        known = await self._db.read(store.token, BOOTSTRAP_TOKEN)
        if token is None:
            if known is not None:
                await self._db.write(store.delete_token, BOOTSTRAP_TOKEN)
        elif known is None or known.sha256 != _sha256(token):
            await self._db.write(store.put_token, _bootstrap_row(token, self._now()))
        self._forget(BOOTSTRAP_TOKEN)
        if token_file is not None:
            await self._keep_local_token(token_file, LOCAL_TOKEN if alone else None)

    # Who is it?

    async def authenticate(self, token: str) -> Actor | None:
        """Whose token this is, or None if it is unknown, mistyped, expired or revoked.

        Raises StorageUnavailable if the database can't be asked.
        """
        id = _token_id(token)
        if id is None:
            return None
        digest = _sha256(token)
        known = await self._lookup(id)
        if known is None or not hmac.compare_digest(known.sha256, digest):
            return None
        self._note_use(id)
        return known.actor

    async def still_valid(self, actor: Actor) -> bool:
        """True while the token that the actor came with is neither revoked nor expired (at most 15 s late)."""
        return actor.token_id is None or await self._lookup(actor.token_id) is not None

    # Tokens

    async def token_create(
        self,
        actor: Actor,
        name: str,
        scopes: Iterable[str],
        expires_in: timedelta | None = None,
        *,
        user_name: str | None = None,
    ) -> NewToken:
        """A new token in the actor's project, for the user of that name (the actor, if none is named).

        Raises Denied if a scope gives more than the actor has, Invalid for an unknown scope, an empty name or an
        expiry in the past, NotFound for an unknown user.
        """
        actor.require(Permission.TOKEN_ADMIN)
        scopes = tuple(dict.fromkeys(scopes))
        for permission in permissions(scopes):
            actor.require(permission)
        if not name.strip() or len(name) > 255:
            raise _invalid("A token needs a name of 1 to 255 characters.", "/name")
        if expires_in is not None and expires_in <= timedelta(0):
            raise _invalid("A token must expire in the future.", "/expires_in")
        user_id: str | None = actor.user_id
        if user_name is not None:
            user_id = await self._db.read(store.user_id, user_name)
        if user_id is None:
            raise NotFound("user", user_name or "")
        return await self._new_token(user_id, actor.project_id, name, scopes, expires_in)

    async def token_list(self, actor: Actor) -> list[StoredToken]:
        """Every token for the actor's project, oldest first, revoked and expired ones too."""
        actor.require(Permission.TOKEN_ADMIN)
        return await self._db.read(store.tokens, actor.project_id)

    async def token_revoke(self, actor: Actor, token_id: str) -> None:
        """End a token: here at once, in other processes within 15 s. Raises NotFound."""
        if actor.token_id != token_id:
            actor.require(Permission.TOKEN_ADMIN)
        if not await self._db.write(store.revoke_token, actor.project_id, token_id, self._now()):
            raise NotFound("token", token_id)
        self._forget(token_id)

    # Signing in with a link

    def sign_in_code(self, actor: Actor = LOCAL) -> str:
        """A code for a link that signs a browser in as ``actor``: works once, within ten minutes, in this process."""
        code = _random(26)
        if len(self._sign_ins) >= SIGN_IN_CODES:
            self._sign_ins.pop(next(iter(self._sign_ins)))
        self._sign_ins[_sha256(code)] = _SignIn(actor, self._now() + SIGN_IN_CODE_VALID)
        return code

    async def redeem(self, code: str) -> NewToken | None:
        """A session's token for a sign-in code; None if the code is unknown, used or too old."""
        found = self._sign_ins.pop(_sha256(code), None)
        if found is None or found.expires_at <= self._now():
            return None
        scopes = tuple(sorted(found.actor.permissions))
        return await self._new_token(
            found.actor.user_id, found.actor.project_id, "browser session", scopes, SESSION_VALID
        )

    # Inside

    async def _lookup(self, id: str) -> _Known | None:
        known = self._known.get(id)
        if known is None or known.fresh_until <= self._monotonic():
            asking = self._asking.get(id)
            if asking is None:
                asking = self._asking[id] = asyncio.create_task(self._ask(id), name="token")
                asking.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = await asyncio.shield(asking)
            if known is None:
                return None
        if known.expires_at is not None and known.expires_at <= self._now():
            return None
        return known

    async def _ask(self, id: str) -> _Known | None:
        """What the database says of a token; asked once for however many sockets come at the same moment."""
        mine = asyncio.current_task()
        try:
            fresh_until = self._monotonic() + CACHE_SECONDS  # counted from before the question, never from after
            row = await self._db.read(store.token, id)
            known = None
            if row is not None and row.revoked_at is None:
                known = _Known(_actor(row), row.sha256, row.expires_at, fresh_until)
            if self._asking.get(id) is mine:  # or else it was revoked meanwhile
                if len(self._known) >= CACHE_ENTRIES:
                    self._known.clear()
                self._known.pop(id, None)
                if known is not None:
                    self._known[id] = known
            return known
        finally:
            if self._asking.get(id) is mine:
                del self._asking[id]

    def _forget(self, id: str) -> None:
        self._known.pop(id, None)
        self._asking.pop(id, None)

    def _note_use(self, id: str) -> None:
        """Write the last use at most once a minute, beside the request and not in its way."""
        at = self._now()
        before = self._used.get(id)
        if before is not None and at - before < LAST_USED_EVERY:
            return
        if len(self._used) >= CACHE_ENTRIES:
            self._used.clear()
        self._used[id] = at
        task = asyncio.create_task(self._write_use(id, at), name="token-last-used")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_use(self, id: str, at: datetime) -> None:
        try:
            await self._db.write(store.token_used, id, at)
        except StorageUnavailable as error:
            log.warning("the last use of a token could not be noted: %s", error.message)

    async def _new_token(
        self,
        user_id: str,
        project_id: str | None,
        name: str,
        scopes: tuple[str, ...],
        expires_in: timedelta | None,
        *,
        id: str | None = None,
    ) -> NewToken:
        id = id or clock.new_id("tok")
        at = self._now()
        made = NewToken(id, name, _token_text(id), None if expires_in is None else at + expires_in)
        row = StoredToken(
            id=id,
            user_id=user_id,
            user_name="",
            project_id=project_id,
            name=name,
            sha256=_sha256(made.text),
            scopes=scopes,
            created_at=at,
            expires_at=made.expires_at,
        )
        await self._db.write(store.put_token, row)
        return made

    async def _keep_local_token(self, file: Path, id: str | None) -> None:
        old = await asyncio.to_thread(_read_token, file)
        if old is not None and await self.authenticate(old) is not None:
            return
        made = await self._new_token(ADMIN_USER, DEFAULT_PROJECT, "local command line", ("admin",), None, id=id)
        self._forget(made.id)
        await asyncio.to_thread(_write_token, file, made.text)


def permissions(scopes: Iterable[str]) -> frozenset[Permission]:
    """What the scopes allow together. Raises Invalid, naming every scope that is neither role nor permission."""
    allowed: set[Permission] = set()
    problems = []
    for index, scope in enumerate(scopes):
        if scope in ROLES:
            allowed |= ROLES[scope]
        elif scope in _PERMISSION_NAMES:
            allowed.add(Permission(scope))
        else:
            known = ", ".join([*ROLES, *Permission])
            problems.append(Problem(f"/scopes/{index}", "UNKNOWN_SCOPE", f"There is no scope {scope!r}: use {known}."))
    if problems:
        raise Invalid(problems)
    return frozenset(allowed)


def mistyped(token: str) -> bool:
    """True if the text means to be a token of this server but its checksum is wrong: a letter differs or is missing."""
    return token.startswith(_PREFIX) and _token_id(token) is None


def _token_id(token: str) -> str | None:
    """The id of the row that the token would have; None if it can't be a token."""
    if not token.startswith(_PREFIX):
        return BOOTSTRAP_TOKEN if len(token) >= MIN_TOKEN_LENGTH else None
    match = _TOKEN.fullmatch(token)
    if match is None or _checksum(match[1]) != match[3]:
        return None
    return f"tok-{match[2]}"


def _token_text(id: str) -> str:
    body = f"{_PREFIX}{id.removeprefix('tok-')}_{_random(40)}"
    return body + _checksum(body)


def _checksum(body: str) -> str:
    crc = zlib.crc32(body.encode())
    return "".join(_ALPHABET[crc >> shift & 31] for shift in range(30, -5, -5))


def _random(length: int) -> str:
    """Five bits of secret in every character."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _actor(row: StoredToken) -> Actor:
    known = [scope for scope in row.scopes if scope in ROLES or scope in _PERMISSION_NAMES]
    return Actor(row.user_id, row.user_name, row.project_id or DEFAULT_PROJECT, permissions(known), row.id)


def _bootstrap_row(token: str, at: datetime) -> StoredToken:
    return StoredToken(
        id=BOOTSTRAP_TOKEN,
        user_id=ADMIN_USER,
        user_name=ADMIN_NAME,
        project_id=None,
        name="the setting TOKEN",
        sha256=_sha256(token),
        scopes=("admin",),
        created_at=at,
    )


def _invalid(message: str, pointer: str) -> Invalid:
    return Invalid([Problem(pointer, "INVALID_VALUE", message)], path=(pointer.lstrip("/"),))


def _read_token(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _write_token(file: Path, token: str) -> None:
    """Whole or not at all, and never readable by others, not even for an instant."""
    part = file.with_name(f"{file.name}.{clock.new_id('part')}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(token + "\n")
    part.replace(file)
