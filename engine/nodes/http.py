"""Nodes that speak HTTP."""

from __future__ import annotations

import asyncio
import email.utils
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from engine import clock
from engine.artifacts import reference
from engine.nodes.contract import Context, NodeError, node, plain_text
from flow import durations, mapping
from flow.errors import Category
from flow.expressions import ExpressionError

if TYPE_CHECKING:
    import httpx

Describe = msgspec.Meta

MAX_BODY = 10 * 1024 * 1024
LONGEST_RETRY_AFTER = 24 * 3600.0  # seconds
_OFF_LOOP = 64 * 1024  # bytes of a body from which on it is parsed in a thread

Method = Literal["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]


class HttpRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, Describe(description="The address, http or https.", min_length=1)]
    method: Annotated[Method, Describe(description="The HTTP method.")] = "GET"
    headers: Annotated[dict[str, str | int | float | bool], Describe(description="Request headers.")] = {}
    query: Annotated[
        dict[str, str | int | float | bool | list[str | int | float | bool] | None],
        Describe(description="Parameters added to the URL; a list is repeated, null is left out."),
    ] = {}
    body: Annotated[Any, Describe(description="What to send, in the form that `body_format` names.")] = msgspec.UNSET
    body_format: Annotated[
        Literal["json", "text", "form"] | None,
        Describe(description="How the body is written; by default text if it is text, and else JSON."),
    ] = None
    timeout: Annotated[
        str | float | None, Describe(description="The longest wait for the whole answer: seconds, `30s`, `PT1M`.")
    ] = None
    follow_redirects: Annotated[bool, Describe(description="Whether to follow redirects, 10 at most.")] = False
    expected_status: Annotated[
        list[Annotated[int, Describe(ge=100, le=599)]] | None,
        Describe(description="The statuses that are no failure; by default all below 400."),
    ] = None
    output_mapping: Annotated[
        dict[str, Any] | None,
        Describe(description="Picks from the answer: target path → `$.<JMESPath>` on it. Replaces the whole output."),
    ] = None


class HttpAnswer(msgspec.Struct, frozen=True):
    status_code: int
    headers: dict[str, str]
    url: str
    body: Any = None


@node("http/request", title="HTTP request", icon="globe", parameters=HttpRequest, output=HttpAnswer)
async def http_request(ctx: Context[HttpRequest]) -> dict[str, Any]:
    """Sends an HTTP request and gives the answer's status, headers, address and body.

    JSON and XML bodies are parsed, text is text, anything else becomes an artifact; at most 10 MiB are read. A
    status that isn't expected fails: 429 as RATE_LIMIT, other 4xx as HTTP_CLIENT, 5xx as HTTP_SERVER, with the
    server's `Retry-After` honoured. The header `Idempotency-Key` stays the same over retries.
    """
    import httpx  # slow to import, and most processes of a test or a command never need it

    asked = ctx.parameters
    try:
        limit = durations.parse(asked.timeout).total_seconds() if asked.timeout is not None else None
    except ValueError as problem:
        raise NodeError(str(problem), category=Category.VALIDATION, code="BAD_TIMEOUT") from None
    try:
        async with asyncio.timeout(limit):
            answer = await _answered(ctx)
    except TimeoutError:
        raise NodeError(
            f"{_shown(asked.url)} did not answer within {limit:g} s.", category=Category.TIMEOUT, code="HTTP_TIMEOUT"
        ) from None
    except httpx.TimeoutException as problem:
        raise NodeError(
            f"{_shown(asked.url)} did not answer in time ({type(problem).__name__}).",
            category=Category.TIMEOUT,
            code="HTTP_TIMEOUT",
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as problem:
        raise NodeError(
            f"The request is not valid: {problem}", category=Category.VALIDATION, code="BAD_REQUEST"
        ) from None
    except httpx.TooManyRedirects:
        raise NodeError(
            f"{_shown(asked.url)} redirects without end.", category=Category.HTTP_CLIENT, code="TOO_MANY_REDIRECTS"
        ) from None
    except httpx.DecodingError as problem:
        raise NodeError(
            f"The answer of {_shown(asked.url)} can't be decoded: {problem}",
            category=Category.HTTP_SERVER,
            code="BAD_ENCODING",
        ) from None
    except httpx.TransportError as problem:
        raise NodeError(
            f"{_shown(asked.url)} can't be reached: {problem or type(problem).__name__}",
            category=Category.CONNECTION,
            code="HTTP_CONNECTION",
        ) from None
    if asked.output_mapping is None:
        return answer
    try:
        return mapping.apply(asked.output_mapping, answer)
    except ExpressionError as problem:
        raise NodeError(str(problem), category=Category.EXPRESSION, code=problem.code) from None


async def _answered(ctx: Context[HttpRequest]) -> dict[str, Any]:
    asked = ctx.parameters
    request = _request(ctx)
    response = await ctx.http.send(request, stream=True, follow_redirects=asked.follow_redirects)
    try:
        content = await _content(response)
    finally:
        await response.aclose()
    expected = asked.expected_status
    if response.status_code not in expected if expected is not None else response.status_code >= 400:
        raise _refused(response, content)
    return {
        "status_code": response.status_code,
        "headers": {name: plain_text(value, 16_384) for name, value in response.headers.items()},
        "url": _shown(str(response.url)),
        "body": await _body(ctx, response, content),
    }


def _request(ctx: Context[HttpRequest]) -> httpx.Request:
    import httpx

    asked = ctx.parameters
    headers = {name: _text(value) for name, value in asked.headers.items()}
    if not any(name.lower() == "idempotency-key" for name in headers):
        headers["Idempotency-Key"] = ctx.idempotency_key
    sent: dict[str, Any] = {}
    if asked.body is not msgspec.UNSET and asked.body is not None:
        form = asked.body_format or ("text" if isinstance(asked.body, str) else "json")
        typed = any(name.lower() == "content-type" for name in headers)
        match form:
            case "json":
                sent["content"] = msgspec.json.encode(asked.body)
                headers |= {} if typed else {"Content-Type": "application/json"}
            case "text":
                sent["content"] = asked.body if isinstance(asked.body, str) else msgspec.json.encode(asked.body)
                headers |= {} if typed else {"Content-Type": "text/plain; charset=utf-8"}
            case "form":
                if not isinstance(asked.body, dict):
                    raise NodeError("A form is an object.", category=Category.VALIDATION, code="BAD_REQUEST")
                sent["data"] = {name: _text(value) for name, value in asked.body.items()}
    try:
        url = httpx.URL(asked.url)
        # httpx would replace the URL's own query by this one
        if asked.query:
            url = url.copy_merge_params({name: value for name, value in asked.query.items() if value is not None})
        timeout = httpx.Timeout(max(0.001, ctx.remaining.total_seconds()), connect=10.0)
        return ctx.http.build_request(asked.method, url, headers=headers, timeout=timeout, **sent)
    except (ValueError, TypeError) as problem:  # a header that isn't ASCII, a host that isn't one
        raise NodeError(
            f"The request is not valid: {problem}", category=Category.VALIDATION, code="BAD_REQUEST"
        ) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _content(response: httpx.Response) -> bytes:
    """The decoded body; one that is too large, or never ends, is cut off with an error."""
    parts = []
    size = 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY:
            raise NodeError(
                f"The answer is larger than {MAX_BODY // 2**20} MiB.",
                category=Category.RESOURCE,
                code="BODY_TOO_LARGE",
                retryable=False,
                details={"status_code": response.status_code, "limit": MAX_BODY},
            )
        parts.append(part)
    return b"".join(parts)


async def _body(ctx: Context[HttpRequest], response: httpx.Response, content: bytes) -> Any:
    if not content:
        return None
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "json" in media_type or "xml" in media_type:
        parse = _json if "json" in media_type else _xml
        try:
            return await asyncio.to_thread(parse, content) if len(content) > _OFF_LOOP else parse(content)
        except ValueError as problem:
            ctx.log.warning(
                f"The answer calls itself {media_type} and can't be read as such: {problem}. It is given as text."
            )
            return _decoded(response, content)
    if not media_type or media_type.startswith("text/") or "urlencoded" in media_type or "javascript" in media_type:
        return _decoded(response, content)
    return reference(await asyncio.to_thread(ctx.artifacts.put_bytes, content, media_type))


def _json(content: bytes) -> Any:
    return msgspec.json.decode(content)


def _xml(content: bytes) -> Any:
    import xml.parsers.expat

    import xmltodict

    try:
        return xmltodict.parse(content, disable_entities=True)
    except xml.parsers.expat.ExpatError as problem:
        raise ValueError(str(problem)) from None


def _decoded(response: httpx.Response, content: bytes) -> str:
    try:
        return content.decode(response.charset_encoding or "utf-8", "replace").replace("\0", "�")
    except LookupError:
        return content.decode("utf-8", "replace").replace("\0", "�")


def _refused(response: httpx.Response, content: bytes) -> NodeError:
    status = response.status_code
    category = Category.HTTP_SERVER if status >= 500 else Category.HTTP_CLIENT
    if status == 429:
        category = Category.RATE_LIMIT
    reason = f" {response.reason_phrase}" if response.reason_phrase else ""
    return NodeError(
        f"{response.request.method} {_shown(str(response.url))} answered {status}{reason}.",
        category=category,
        code=f"HTTP_{status}",
        # the server asks for another try, whatever 4xx means otherwise
        retryable=True if status in (408, 425) else None,
        retry_after_seconds=_retry_after(response) if status in (429, 503) else None,
        details={"status_code": status, "body": plain_text(_decoded(response, content[:4_000]), 2_000)},
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks us to wait: given as such, or as a date (RFC 9110, 10.2.3)."""
    said = response.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return min(float(said), LONGEST_RETRY_AFTER)
    try:
        until = email.utils.parsedate_to_datetime(said)
    except ValueError:
        return None
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return min(max(0.0, (until - clock.now()).total_seconds()), LONGEST_RETRY_AFTER)


def _shown(url: str) -> str:
    """The URL without user name and password, and bounded."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return plain_text(f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}", 2_000)
