"""Who is asking: tokens as they come over the wire, and which browsers may speak to us."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from graph.errors import RequestError

SESSION_COOKIE = "mirrorflow_session"
CSRF_HEADER = "x-mirrorflow-csrf"


class User(Protocol):
    """Whoever a token stands for."""

    @property
    def user_id(self) -> str:
        """Stable; sockets are counted by it."""


#: The user of a token, or None where it is unknown, revoked or expired.
Authenticate = Callable[[str], Awaitable[User | None]]

#: What resolvers get, made anew for every operation (its loaders must not outlive one).
ContextFactory = Callable[[User | None, HTTPConnection], Any]


def unauthenticated() -> RequestError:
    """The refusal of a token that is not valid (any more)."""
    message = "The token is unknown, revoked or expired. Send a valid one as 'Authorization: Bearer <token>'."
    return RequestError(401, "UNAUTHENTICATED", message, {"www-authenticate": "Bearer"})


def bearer(value: object) -> str | None:
    """The token in the value of an Authorization header or connection parameter, with or without ``Bearer``."""
    if not isinstance(value, str) or not value.strip():
        return None
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def credentials(connection: HTTPConnection) -> tuple[str | None, bool]:
    """The token that came with the request, and whether it came by cookie (which needs the CSRF header to write)."""
    if token := bearer(connection.headers.get("authorization")):
        return token, False
    return connection.cookies.get(SESSION_COOKIE) or None, True


async def signed_in(connection: HTTPConnection, authenticate: Authenticate) -> User | None:
    """The user behind an HTTP request, None where no token was sent.

    Raises RequestError 401 for a token that is not valid, 403 for a cookie that another site may have sent.
    """
    token, by_cookie = credentials(connection)
    if token is None:
        return None
    if by_cookie and connection.scope.get("method") not in ("GET", "HEAD") and CSRF_HEADER not in connection.headers:
        raise RequestError(403, "CSRF_HEADER_MISSING", f"A request signed in by cookie needs the header {CSRF_HEADER}.")
    user = await authenticate(token)
    if user is None:
        if by_cookie:
            return None  # an old cookie is as good as none: the page then says how to sign in
        raise unauthenticated()
    return user


def origin_allowed(connection: HTTPConnection, allowed: Collection[str]) -> bool:
    """True for programs (which send no Origin), for our own pages, and for the origins in ``allowed``."""
    origin = connection.headers.get("origin")
    if origin is None or origin in allowed:
        return True
    return origin != "null" and urlsplit(origin).netloc.lower() == connection.headers.get("host", "").lower()
