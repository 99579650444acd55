"""Projects, users and tokens in SQL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from db.models import Project, Token, User


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token's row with its user's name. The secret itself is nowhere; ``sha256`` is of the whole token text."""

    id: str
    user_id: str
    user_name: str
    project_id: str | None
    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


def ensure_project(conn: Connection, id: str, name: str, at: datetime) -> None:
    """Insert the project unless one with this id or name exists; safe when two processes start at once."""
    _insert_unless_there(conn, Project, {"id": id, "name": name, "change_seq": 0, "created_at": at})


def ensure_user(conn: Connection, id: str, name: str, admin: bool, at: datetime) -> None:
    """Insert the user unless one with this id or name exists; safe when two processes start at once."""
    _insert_unless_there(conn, User, {"id": id, "name": name, "admin": admin, "created_at": at})


def user_id(conn: Connection, name: str) -> str | None:
    """The id of the user of that name."""
    return conn.execute(select(User.id).where(User.name == name)).scalar_one_or_none()


def put_token(conn: Connection, token: StoredToken) -> None:
    """Store the token's row, instead of an older one of the same id."""
    values = {field.name: getattr(token, field.name) for field in fields(StoredToken)} | {"scopes": list(token.scopes)}
    del values["user_name"]
    row = _dialect(conn).insert(Token).values(**values)
    conn.execute(row.on_conflict_do_update(index_elements=[Token.id], set_=values))


def delete_token(conn: Connection, id: str) -> None:
    """Remove a token's row, if it is there."""
    conn.execute(delete(Token).where(Token.id == id))


def token(conn: Connection, id: str) -> StoredToken | None:
    """The token of that id, revoked and expired ones too."""
    row = conn.execute(_tokens().where(Token.id == id)).one_or_none()
    return None if row is None else _stored(row)


def tokens(conn: Connection, project_id: str) -> list[StoredToken]:
    """Every token for the project, and those for the whole server, oldest first."""
    query = _tokens().where((Token.project_id == project_id) | Token.project_id.is_(None))
    return [_stored(row) for row in conn.execute(query.order_by(Token.created_at, Token.id))]


def revoke_token(conn: Connection, project_id: str, id: str, at: datetime) -> bool:
    """End the token at ``at``; False if the project has no such token. Revoking twice keeps the first instant."""
    mine = Token.id == id, (Token.project_id == project_id) | Token.project_id.is_(None)
    conn.execute(update(Token).where(*mine, Token.revoked_at.is_(None)).values(revoked_at=at))
    return conn.execute(select(Token.id).where(*mine)).scalar_one_or_none() is not None


def token_used(conn: Connection, id: str, at: datetime) -> None:
    """Note when the token was last used."""
    conn.execute(update(Token).where(Token.id == id).values(last_used_at=at))


def _insert_unless_there(conn: Connection, table: type[Project] | type[User], values: dict[str, Any]) -> None:
    conn.execute(_dialect(conn).insert(table).values(**values).on_conflict_do_nothing())


def _dialect(conn: Connection) -> Any:
    return postgresql if conn.dialect.name == "postgresql" else sqlite


def _tokens() -> Select[*tuple[Any, ...]]:
    return select(
        Token.id,
        Token.user_id,
        User.name.label("user_name"),
        Token.project_id,
        Token.name,
        Token.sha256,
        Token.scopes,
        Token.created_at,
        Token.expires_at,
        Token.last_used_at,
        Token.revoked_at,
    ).join(User, User.id == Token.user_id)


def _stored(row: Any) -> StoredToken:
    return StoredToken(**(row._asdict() | {"scopes": tuple(row.scopes)}))
