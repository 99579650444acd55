"""The one door by which nodes and servers' clients reach the network: every HTTP client is made here.

The clients ignore proxies and credentials of the environment, speak http and https only, and
bound connections and waits. Rules about *which* addresses may be reached belong into
``_checked``, through which every request, and every redirect, passes.
"""

from __future__ import annotations

import functools
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    import httpx

#: Seconds: to connect, to read, to write, to get a connection of the pool. The attempt's timeout bounds them all.
CONNECT, READ, WRITE, POOL = 10.0, 60.0, 60.0, 60.0
MAX_REDIRECTS = 10
MAX_CONNECTIONS = 200


class Outbound:
    """Makes the HTTP clients of this process, one of each kind, on first use (httpx is slow to import)."""

    __slots__ = ("_client", "_server_client", "_sync_client")

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None
        self._server_client: httpx.AsyncClient | None = None
        self._sync_client: httpx.Client | None = None

    @property
    def client(self) -> httpx.AsyncClient:
        """The client for handlers on the loop."""
        if self._client is None:
            self._client = _async_client(MAX_CONNECTIONS)
        return self._client

    @property
    def server_client(self) -> httpx.AsyncClient:
        """The client for registered servers. It has connections of its own, and as many as there are servers: one that
        hangs takes none from the nodes, and none from the others.
        """
        if self._server_client is None:
            self._server_client = _async_client(None)
        return self._server_client

    @property
    def sync_client(self) -> httpx.Client:
        """The client for handlers in threads and processes."""
        if self._sync_client is None:
            import httpx

            self._sync_client = httpx.Client(
                verify=_certificates(),
                trust_env=False,
                timeout=httpx.Timeout(connect=CONNECT, read=READ, write=WRITE, pool=POOL),
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
                max_redirects=MAX_REDIRECTS,
                cookies=_no_cookies(),
                event_hooks={"request": [_checked]},
            )
        return self._sync_client

    async def close(self) -> None:
        """Close what was opened; the object can be used again afterwards."""
        clients, sync_client = (self._client, self._server_client), self._sync_client
        self._client = self._server_client = self._sync_client = None
        for client in clients:
            if client is not None:
                await client.aclose()
        if sync_client is not None:
            sync_client.close()


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust. Read once: it takes as long as a hundred small requests."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _async_client(connections: int | None) -> httpx.AsyncClient:
    import httpx

    async def check(request: httpx.Request) -> None:
        _checked(request)

    return httpx.AsyncClient(
        verify=_certificates(),
        trust_env=False,
        timeout=httpx.Timeout(connect=CONNECT, read=READ, write=WRITE, pool=POOL),
        limits=httpx.Limits(max_connections=connections),
        max_redirects=MAX_REDIRECTS,
        cookies=_no_cookies(),
        event_hooks={"request": [check]},
    )


def _no_cookies() -> CookieJar:
    """A jar that takes none: what one project's node is given must not be sent by another's."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _checked(request: httpx.Request) -> None:
    """Raise httpx.UnsupportedProtocol for a request that may not leave."""
    if request.url.scheme not in ("http", "https"):
        import httpx

        given = f", not {request.url.scheme!r}" if request.url.scheme else ", with their host"  # httpx drops file:
        raise httpx.UnsupportedProtocol(f"Only http and https URLs can be requested{given}.")
