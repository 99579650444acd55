"""The tests of streams once more where everybody is somebody else: runs are started through one API process, driven by
workers, and watched at another API process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.live.cluster import Cluster
from tests.live.server import Server
from tests.live.test_streams import (  # noqa: F401  (pytest finds them here, and gives them the server of this module)
    test_200_subscribers_to_one_run,
    test_a_run_as_it_changes,
    test_a_socket_serves_many_streams_and_forgets_those_that_leave,
    test_all_see_the_same_sequence,
    test_logs_resume_by_cursor,
    test_nodes_resume_by_cursor,
    test_nothing_was_broken,
    test_the_list_of_runs_resumes_by_cursor,
)


class Apart(Server):
    """Two API processes as one: documents go to the first, sockets to the second."""

    def __init__(self, asked: Server, watched: Server) -> None:
        super().__init__(watched.data_dir, env=watched.env, token=watched.token, port=watched.port)
        self._asked = asked

    async def post(self, query: str, variables: Mapping[str, Any] | None = None, **kwargs: Any) -> httpx.Response:
        return await self._asked.post(query, variables, **kwargs)


@pytest.fixture(scope="module")
def server(standing: Cluster) -> Iterator[Server]:
    """The two API processes of a cluster that is well."""
    asyncio.run(standing.revive())
    apart = Apart(*standing.apis)
    yield apart
    asyncio.run(apart._http.aclose())
    assert all("Traceback" not in member.output for member in standing.apis), standing.output
    asyncio.run(standing.settled())
