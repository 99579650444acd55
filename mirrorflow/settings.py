"""What can be set from outside: by flags, by ``MIRRORFLOW_…`` in the environment, by ``.env``, in that order.

``docs/settings.md`` is generated from this class. A value that does not fit raises ``BadSettings`` with one line that
names the setting, what was given and what is wrong with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "MIRRORFLOW_"
KIB, MIB = 1024, 1024 * 1024

Names = Annotated[tuple[str, ...], NoDecode]
Folders = Annotated[tuple[Path, ...], NoDecode]

_LABEL = re.compile(r"[\w][\w.:/-]{0,62}")


class BadSettings(Exception):
    """A setting has a value that can't be used; the message is one line for a person."""


class Settings(BaseSettings):
    """The effective settings; frozen once read. Make them with ``load``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    data_dir: Path = Field(Path(".mirrorflow"), description="Folder of the database, the artifacts and the files.")
    hosts: Names = Field(
        (),
        description="Names, separated by commas, that the server answers to besides localhost and addresses; `*` for "
        "any (only behind a proxy that checks).",
    )
    origins: Names = Field(
        (), description="Origins (`https://host:port`), separated by commas, of other sites' pages that may use it."
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="`sqlite:///path` or `postgresql+asyncpg://user:password@host/name`. "
        "Empty: `mirrorflow.db` in the data folder.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="`redis://:password@host:6379/0`, `rediss://…` (TLS) or `unix:///path`: wakes the processes on one "
        "PostgreSQL. Empty: one process.",
    )
    artifacts_dir: Path | None = Field(
        None,
        description="Folder of values too large for an event; all processes on one database must share it. "
        "Empty: `artifacts` in the data folder.",
    )
    token: SecretStr = Field(
        SecretStr(""), description="Bootstrap token of the administrator, 20 characters or more. Empty: none."
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Master key that encrypts secrets, 32 characters or more, the same for all processes on one "
        "database. Empty: `secret.key` in the data folder, made when it is first needed.",
    )
    allowed_roots: Folders = Field(
        (),
        description="Folders that nodes may read and write, separated by commas; relative paths in workflows start "
        "at the first. Empty: `files` in the data folder.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    log_format: Literal["console", "json"] = Field("console", description="Log lines for people or for programs.")

    sqlite_synchronous: Literal["NORMAL", "FULL"] = Field(
        "NORMAL", description="NORMAL survives a killed process; FULL also a power cut, at a price in speed."
    )
    lease_seconds: float = Field(
        15.0, ge=2, le=300, description="How long a silent worker keeps a run before another one takes it."
    )
    grace_seconds: float = Field(
        30.0, ge=0, le=600, description="How long running nodes may go on after the server was asked to stop."
    )
    slots: int = Field(1_000, ge=1, le=100_000, description="Nodes that run at the same time on the event loop.")
    threads: int = Field(16, ge=1, le=1_000, description="Nodes that run at the same time in threads.")
    processes: int = Field(
        max(1, os.cpu_count() or 1), ge=1, le=256, description="Nodes that run at the same time in processes."
    )
    labels: Names = Field(
        (), description="What this worker offers to nodes that ask for it in `runs_on`, separated by commas."
    )
    gpus: int = Field(0, ge=0, le=64, description="Graphics processors that nodes on this worker may use at a time.")
    health_port: int = Field(
        0, ge=0, le=65535, description="Port where `mirrorflow worker` answers `/health` and `/metrics`; 0: none."
    )
    wait_seconds: float = Field(
        30.0, ge=0, le=600, description="How long a start waits for a PostgreSQL or a Redis that isn't there yet."
    )
    database_pool: int = Field(
        10, ge=2, le=200, description="Most connections of one process to PostgreSQL; more work waits its turn."
    )
    statement_seconds: float = Field(
        30.0, ge=1, le=3_600, description="Longest that PostgreSQL may work on one statement before it is given up."
    )
    lock_seconds: float = Field(
        10.0, ge=0.1, le=600, description="Longest that a statement may wait for a lock in PostgreSQL."
    )
    max_nodes: int = Field(5_000, ge=1, le=100_000, description="Most nodes in one workflow.")

    body_limit: int = Field(MIB, ge=KIB, description="Largest body of a GraphQL request, in bytes.")
    import_limit: int = Field(32 * MIB, ge=KIB, description="Largest document for `/import`, in bytes.")
    query_tokens: int = Field(2_000, ge=10, description="Most tokens in a GraphQL document.")
    query_depth: int = Field(12, ge=1, description="Deepest nesting of fields in a GraphQL document.")
    query_aliases: int = Field(30, ge=0, description="Most aliases in a GraphQL document.")
    query_root_fields: int = Field(20, ge=1, description="Most fields at the root of an operation.")
    query_directives: int = Field(50, ge=0, description="Most directives in a GraphQL document.")
    query_cost: int = Field(5_000, ge=1, description="Highest cost of an operation (a page costs its size × a node).")
    query_seconds: float = Field(10.0, gt=0, description="Longest that an operation may take, waits asked for aside.")
    query_errors: int = Field(20, ge=1, description="Most errors in one answer.")
    socket_init_seconds: float = Field(5.0, gt=0, description="Time a socket has to say who it is.")
    socket_frame: int = Field(256 * KIB, ge=KIB, description="Largest message that a socket may send, in bytes.")
    sockets_per_user: int = Field(10, ge=1, description="Most sockets of one user.")
    subscriptions_per_socket: int = Field(20, ge=1, description="Most subscriptions on one socket.")

    @field_validator("allowed_roots", "hosts", "origins", "labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("token")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 20:
            raise ValueError("must have 20 characters or more")
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_key(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < 32:
            raise ValueError("must have 32 characters or more")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url.startswith(("postgresql://", "postgres://")):  # as everybody else writes it
            return SecretStr("postgresql+asyncpg://" + url.partition("://")[2])
        if url and not url.startswith(("sqlite:///", "postgresql+asyncpg://")):
            raise ValueError("must begin with sqlite:/// or postgresql+asyncpg://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        url = value.get_secret_value()
        if not url:
            return value
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        database = info.data.get("database_url")
        if database is not None and not database.get_secret_value().startswith("postgresql"):
            raise ValueError(
                "Redis is for many processes, and SQLite belongs to one. Set MIRRORFLOW_DATABASE_URL to a "
                "postgresql+asyncpg://… too, or leave this empty"
            )
        return value

    @field_validator("artifacts_dir", mode="before")
    @classmethod
    def _none_if_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("labels")
    @classmethod
    def _plain_labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for label in value:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"{label[:80]!r} is no label: use up to 63 of letters, digits and . _ : / -")
        return tuple(sorted(set(value)))

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("sqlite_synchronous", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        # Frozen for everybody else: a later change of the working folder must not move the data.
        data_dir = self.data_dir.expanduser().resolve()
        roots = tuple(root.expanduser().resolve() for root in self.allowed_roots) or (data_dir / "files",)
        url = self.database_url.get_secret_value() or f"sqlite:///{data_dir / 'mirrorflow.db'}"
        artifacts = self.artifacts_dir.expanduser().resolve() if self.artifacts_dir else data_dir / "artifacts"
        self.__dict__.update(
            data_dir=data_dir, allowed_roots=roots, database_url=SecretStr(url), artifacts_dir=artifacts
        )
        return self

    @property
    def database(self) -> str:
        """The database's URL, password and all."""
        return self.database_url.get_secret_value()

    @property
    def redis(self) -> str | None:
        """Redis' URL, password and all; None where there is only this process."""
        return self.redis_url.get_secret_value() or None

    @property
    def artifacts(self) -> Path:
        """Where values too large for an event are kept."""
        assert self.artifacts_dir is not None, "set when the settings were read"
        return self.artifacts_dir

    @property
    def alone(self) -> bool:
        """No other process works on the database: SQLite belongs to one."""
        return self.database.startswith("sqlite")


class Effective(NamedTuple):
    """One setting as it is: its name in the environment, its value for people, and where that came from."""

    name: str
    value: str
    source: Literal["flag", "environment", ".env", "default"]
    description: str


def load(**flags: Any) -> Settings:
    """The settings, with ``flags`` (those that aren't None) above the environment. Raises BadSettings."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        source = _source(name, given)
        shown = f"--{name.replace('_', '-')}" if source == "flag" else PREFIX + name.upper()
        reason = str(first["msg"]).removeprefix("Value error, ")
        value = "" if _secret(name) else f"={first['input']}"
        where = f" (from {source})" if source in {".env", "environment"} else ""
        raise BadSettings(f"{shown}{value} can't be used: {reason}{where}.") from None


def effective(settings: Settings, flags: Mapping[str, Any]) -> list[Effective]:
    """Every setting with its source; secrets are masked."""
    given = {name: value for name, value in flags.items() if value is not None}
    return [
        Effective(
            PREFIX + name.upper(), _shown(name, getattr(settings, name)), _source(name, given), field.description or ""
        )
        for name, field in Settings.model_fields.items()
    ]


def unknown() -> list[str]:
    """Names in the environment that look like settings of ours and are none (a typing mistake, most likely).

    MIRRORFLOW_URL and _SERVER_TOKEN belong to the client commands and MIRRORFLOW_CI to the tests.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {PREFIX + "URL", PREFIX + "SERVER_TOKEN", PREFIX + "CI"}
    return sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)


def masked(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:@/]*):.*@", r"\1:********@", url)


def _shown(name: str, value: Any) -> str:
    if name in {"database_url", "redis_url"}:
        return masked(value.get_secret_value())
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value)


def _secret(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and field.annotation is SecretStr


def _source(name: str, given: Mapping[str, Any]) -> Literal["flag", "environment", ".env", "default"]:
    if name in given:
        return "flag"
    if any(variable.upper() == PREFIX + name.upper() for variable in os.environ):
        return "environment"
    if Path(".env").is_file():
        from dotenv import dotenv_values

        if any(variable.upper() == PREFIX + name.upper() for variable in dotenv_values(".env")):
            return ".env"
    return "default"
