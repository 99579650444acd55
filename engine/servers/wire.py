"""Requests to a server that may be slow, dead, or lying: bounded in time and size, redirects not followed.

What comes back is either an ``Answer`` or a ``WireFailed`` that says what kind of failure it was; nothing of httpx gets
out. The token is sent in the header only, and taken out of whatever the server says back.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from engine.nodes.contract import plain_text
from engine.output import OutputRefused, encoded
from engine.servers.contract import MAX_ANSWER, Failed, ServerAddress, lost, refused
from flow.errors import Category, Failure
from flow.servers import CheckOutcome

if TYPE_CHECKING:
    import httpx

#: Seconds for an ordinary request, from its first byte to the answer's last.
REQUEST_S = 30.0
#: Seconds without a byte after which a download is given up.
SILENCE_S = 60.0
#: Seconds between tries to hear of work that goes on at a server; after the last one the server is lost to the work.
RETRIES_S = (0.25, 1.0, 2.0)
#: Characters of a server's own words that are kept.
SAID = 500


class WireFailed(Exception):
    """No usable answer came. ``status`` is the HTTP status, if one did."""

    def __init__(self, outcome: CheckOutcome, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.message = message
        self.status = status

    @property
    def failed(self) -> Failed:
        """The same for a piece of work: the server is lost to it, and the work is not at fault."""
        match self.outcome:
            case CheckOutcome.TIMEOUT:
                return lost("SERVER_TIMEOUT", self.message, category=Category.TIMEOUT)
            case CheckOutcome.REFUSED:
                return lost("SERVER_UNREACHABLE", self.message)
            case _:
                return lost("SERVER_ANSWER_INVALID", self.message, category=Category.HTTP_SERVER)


class Patience:
    """How long a server may not be heard of before it is lost to the work that is followed there."""

    def __init__(self) -> None:
        self._failures = 0

    def heard(self) -> None:
        """It answers (again)."""
        self._failures = 0

    def wait(self) -> float | None:
        """One more failure: seconds until the next try, None if there is none."""
        self._failures += 1
        return RETRIES_S[self._failures - 1] if self._failures <= len(RETRIES_S) else None


class Answer(msgspec.Struct, frozen=True):
    """What a server answered, whole. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    server: str

    def json(self) -> Any:
        """The JSON in it. Raises WireFailed: WRONG_ANSWER."""
        try:
            value, _ = encoded(msgspec.json.decode(self.content))
        except (msgspec.MsgspecError, ValueError, RecursionError, OutputRefused):
            kind = self.headers.get("content-type", "").partition(";")[0].strip()
            what = f"{plain_text(kind, 80)}, not JSON" if kind and "json" not in kind else "no JSON that can be read"
            raise self.wrong(f"answered {self.status} with {what}") from None
        return value

    def object(self) -> dict[str, Any]:
        """The JSON object in it. Raises WireFailed: WRONG_ANSWER."""
        value = self.json()
        if not isinstance(value, dict):
            raise self.wrong(f"answered {self.status} with JSON that is no object")
        return value

    def wrong(self, what: str) -> WireFailed:
        """A failure of this server: ``what`` completes the sentence that begins with its name."""
        return WireFailed(CheckOutcome.WRONG_ANSWER, f"{self.server} {what}.", status=self.status)

    def work_failed(self) -> Failed:
        """What an answer of 400 and above means for the work: 4xx is its own fault, 429 and 503 ask for patience,
        other 5xx, and being refused entry, are the server's.
        """
        said = self.said()
        message = f"{self.server} answered {self.status}{': ' + said if said else '.'}"
        details = {"status_code": self.status}
        if self.status in (429, 503):
            after = self.headers.get("retry-after", "").strip()
            wait = min(float(after), 3_600.0) if after.isascii() and after.isdigit() else None
            busy = Failure("SERVER_BUSY", Category.RATE_LIMIT, message, retry_after_seconds=wait, details=details)
            return Failed(busy)
        if self.status in (401, 403):
            return lost("SERVER_REFUSES_TOKEN", message, category=Category.HTTP_CLIENT, **details)
        if self.status >= 500 or self.status in (404, 405):
            return lost("SERVER_ANSWER_INVALID", message, category=Category.HTTP_SERVER, **details)
        return refused("WORK_REFUSED", message, category=Category.HTTP_CLIENT, **details)

    def said(self) -> str:
        """The server's own words about what was wrong, if it gave any as JSON."""
        try:
            value = msgspec.json.decode(self.content)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return ""
        if isinstance(value, dict):
            for key in ("message", "error", "detail"):
                if isinstance(value.get(key), str):
                    return plain_text(value[key], SAID)
        return ""


class Wire:
    """Speaks HTTP with one server."""

    def __init__(self, http: httpx.AsyncClient, server: ServerAddress) -> None:
        self._http = http
        self._server = server

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        seconds: float = REQUEST_S,
        limit: int = MAX_ANSWER,
        headers: Mapping[str, str] | None = None,
        **request: Any,
    ) -> Answer:
        """The answer, whatever its status but a redirect. ``body`` is sent as JSON; ``request`` is httpx's.

        Raises WireFailed.
        """
        given = dict(headers or {})
        if body is not None:
            request["content"] = msgspec.json.encode(body)
            given["Content-Type"] = "application/json"
        async with self._answer(method, path, seconds, given, request) as response:
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > limit:
                    said = f"{self.name} sends more than {limit:,} bytes where a short answer is due."
                    raise WireFailed(CheckOutcome.WRONG_ANSWER, said, status=response.status_code)
            kept = {name.lower(): self.masked(value) for name, value in response.headers.items()}
            answered = self.masked_bytes(bytes(content))
            return Answer(response.status_code, kept, answered, self.name)

    async def download(self, path: str, **request: Any) -> AsyncIterator[bytes]:
        """The body of a 200, piece by piece; the caller bounds its size. Raises WireFailed."""
        async with self._answer("GET", path, None, {}, request) as response:
            if response.status_code != 200:
                said = f"{self.name} answered {response.status_code} where a file is due."
                raise WireFailed(CheckOutcome.WRONG_ANSWER, said, status=response.status_code)
            async for part in response.aiter_raw():
                yield part

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, seconds: float | None, headers: dict[str, str], request: dict[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        """The response's head; the body is read by the caller, within the same bounds."""
        import httpx

        headers["Accept-Encoding"] = "identity"  # a small body must not become a large one here
        if self._server.token is not None:
            headers["Authorization"] = f"Bearer {self._server.token}"
        timeout = httpx.Timeout(seconds if seconds is not None else SILENCE_S)
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream(
                    method, self._server.url + path, headers=headers, timeout=timeout, follow_redirects=False, **request
                ) as response,
            ):
                if response.is_redirect:
                    where = plain_text(response.headers.get("location", "nowhere"), 200)
                    said = f"{self.name} redirects to {self.masked(where)!r}. Register the address that it means."
                    raise WireFailed(CheckOutcome.WRONG_ANSWER, said, status=response.status_code)
                yield response
        except (TimeoutError, httpx.TimeoutException):
            within = f" within {seconds:g} s" if seconds is not None else ""
            raise WireFailed(CheckOutcome.TIMEOUT, f"{self.name} did not answer{within}.") from None
        except httpx.RemoteProtocolError as error:
            if "disconnected" in str(error):
                raise WireFailed(CheckOutcome.REFUSED, f"{self.name} hung up.") from None
            raise WireFailed(CheckOutcome.WRONG_ANSWER, f"{self.name} does not speak HTTP.") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ssl.SSLError) as error:
            why = plain_text(str(error) or type(error).__name__, 200)
            raise WireFailed(CheckOutcome.REFUSED, f"{self.name} can't be reached: {self.masked(why)}.") from None

    @property
    def name(self) -> str:
        """How messages call the server."""
        return f"The server {self._server.name!r} at {self._server.url}"

    def masked(self, text: str) -> str:
        """The text without the token, for a server that says it back."""
        token = self._server.token
        return text.replace(token, "********") if token else text

    def masked_bytes(self, content: bytes) -> bytes:
        """The same for a body."""
        token = self._server.token
        return content.replace(token.encode(), b"********") if token else content
