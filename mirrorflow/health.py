"""What machines ask every process: is it alive, is it ready, how is it doing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flow.errors import WorkflowError
from mirrorflow.observability import metrics_response

CHECK_SECONDS = 5.0

#: By name: it raises, or takes more than 5 seconds, when its part is not in order.
Checks = Mapping[str, Callable[[], Awaitable[None]]]

log = structlog.get_logger("http")


def health_routes(ready: Checks, registry: CollectorRegistry) -> list[Route]:
    """``/health/live``, ``/health/ready`` and ``/metrics``."""

    async def live(request: Request) -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    async def is_ready(request: Request) -> Response:
        """Every part that work depends on is in order; 503 and the names of those that are not."""
        problems = await asyncio.gather(*(_problem(name, check) for name, check in ready.items()))
        checks = {name: problem or "ok" for name, problem in zip(ready, problems, strict=True)}
        failed = any(problems)
        return _json({"status": "unavailable" if failed else "ok", "checks": checks}, 503 if failed else 200)

    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        return metrics_response(registry)

    return [
        Route("/health/live", live, methods=["GET"]),
        Route("/health/ready", is_ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def health_application(ready: Checks, registry: CollectorRegistry) -> Starlette:
    """The whole of what a process without GraphQL answers."""
    return Starlette(routes=health_routes(ready, registry))


async def _problem(name: str, check: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} seconds"
    except WorkflowError as error:
        return error.message
    except Exception:
        log.exception("health check failed", check=name)
        return "failed; see the log"
    return None


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
