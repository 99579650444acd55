"""The distributed mode as real processes: API processes and workers over a PostgreSQL and a Redis of their own.

    with Cluster(folder, workers=("", "gpu", "eu")) as cluster:
        id = await cluster.start(workflow, {"n": 1}, key="k")       # through any API process that lives
        cluster.workers[0].kill()
        assert (await cluster.ended(id))["status"] == "COMPLETED"
        await cluster.revive()
        await cluster.settled()                                     # nobody works any more, and the oracle holds

Each process reaches the database and Redis by links of its own (``tests.live.proxy``), so that a fault can be one
process's alone. It belongs to no event loop. Everything is torn down with it: processes by their group, servers, links.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from sqlalchemy import Connection, make_url, text
from websockets.exceptions import WebSocketException

from db import migrate
from db.session import connect
from flow.errors import StorageUnavailable
from tests.live import oracle
from tests.live.mischief import PROBLEMS, plugin
from tests.live.proxy import Link, Links
from tests.live.server import ROOT, QueryFailed, Server, wait_until
from tests.postgres import Postgres, Unavailable
from tests.redis import RedisServer
from tests.redis import Unavailable as NoRedis

LEASE_S = 3.0
#: What a client meets while something is broken, and after which it tries again.
TROUBLE = (OSError, httpx.HTTPError, QueryFailed, WebSocketException, EOFError)
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELED", "TIMED_OUT"})

CREATE = f"""
mutation ($definition: JSON!) {{
  workflowCreate(input: {{definition: {{json: $definition}}}}) {{
    {PROBLEMS} ... on WorkflowCreatePayload {{ workflow {{ id }} }}
  }}
}}
"""
START = f"""
mutation ($input: InstanceStartInput!) {{
  instanceStart(input: $input) {{ {PROBLEMS} ... on InstanceStartPayload {{ created instance {{ id status }} }} }}
}}
"""
INSTANCE = """
query ($id: ID!) { instance(id: $id) { id status output lastSeq completedAt error { code category message nodeId } } }
"""
EVENTS = """
subscription ($id: ID!, $after: Int!) {
  instanceEvents(id: $id, after: $after) { seq type data ... on NodeEvent { nodePath } }
}
"""


class Member(Server):
    """One process of a cluster, with its own links to the database and to Redis."""

    def __init__(
        self, name: str, links: Links, postgres: Postgres, redis: RedisServer, folder: Path, command: str, **more: Any
    ) -> None:
        self.name = name
        self.database = links.open(postgres.socket)
        self.redis = links.open(("127.0.0.1", redis.port))
        self._clock = folder / f"{name}.clock"
        super().__init__(folder, command=command, **more)
        self.env["CHAOS_CLOCK"] = str(self._clock)

    def freeze(self) -> None:
        """SIGSTOP: it lives and does nothing."""
        self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)

    async def come_back(self, within: float = 90.0) -> None:
        """Start, and again if the start is refused, as an init system would."""
        async with asyncio.timeout(within):
            while not self.running:
                with suppress(RuntimeError):
                    await self.start(within)

    def clock_off_by(self, seconds: float) -> None:
        """Make the clock of the process wrong from now on; its handlers must be ``plugged``."""
        self._clock.write_text(str(seconds))

    @property
    def links(self) -> tuple[Link, Link]:
        """What may be cut."""
        return self.database, self.redis


class Cluster:
    """Processes, and what they stand on. ``workers`` are the labels of each, separated by commas."""

    def __init__(
        self,
        folder: Path,
        *,
        apis: int = 2,
        workers: Sequence[str] = ("", "gpu", "eu"),
        env: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.links = Links(seed)
        self._sizes = apis, tuple(workers)
        self._env = dict(env or {})
        self._turn = itertools.count()
        #: Starts servers: they die with the thread that started them, so it must live as long as they.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
        #: Runs that some test left open.
        self.given_up: set[str] = set()

    # ---- life

    def __enter__(self) -> Self:
        self.links.__enter__()
        try:
            #: Not for speed alone, as elsewhere: what was committed must be there after a hard stop.
            self.postgres = Postgres({"synchronous_commit": "on"})
            self.redis = RedisServer()
            self.url = self.postgres.create()
            migrate.upgrade(self.url)
            asyncio.run(self._begin())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()
            asyncio.run(member._http.aclose())
        self.links.__exit__()
        for server in ("redis", "postgres"):
            if hasattr(self, server):
                getattr(self, server).close()
        self._starter.shutdown()

    async def _begin(self) -> None:
        await oracle.guard(self.url)
        apis, workers = self._sizes
        for n in range(apis):
            self.members.append(self._member(f"api-{n}", "serve", args=("--no-worker",)))
        for n, labels in enumerate(workers):
            self.members.append(self._worker(n, labels))
        for member in self.members:
            member.spawn()
        await asyncio.gather(*(member.ready(120) for member in self.members))

    def _worker(self, n: int, labels: str) -> Member:
        given = ("--labels", labels) if labels else ()
        return self._member(f"worker-{n}", "worker", args=(*given, "--slots", "100"))

    def _member(self, name: str, command: str, args: tuple[str, ...]) -> Member:
        member = Member(name, self.links, self.postgres, self.redis, self.folder, command, args=args)
        database = make_url(self.url).set(host="127.0.0.1", port=member.database.port)
        member.env |= {
            "MIRRORFLOW_DATABASE_URL": database.difference_update_query(["host"]).render_as_string(hide_password=False),
            "MIRRORFLOW_REDIS_URL": f"redis://127.0.0.1:{member.redis.port}/0",
            "MIRRORFLOW_LEASE_SECONDS": str(LEASE_S),
            "MIRRORFLOW_PROCESSES": "1",
            "MIRRORFLOW_THREADS": "8",
            "MIRRORFLOW_DATABASE_POOL": "30",
            "MIRRORFLOW_SOCKET_INIT_SECONDS": "30",  # this machine runs everything at once
            **self._env,
        }
        return member

    @property
    def apis(self) -> list[Member]:
        """The processes that answer."""
        return [member for member in self.members if member.command == "serve"]

    @property
    def workers(self) -> list[Member]:
        """The processes that work."""
        return [member for member in self.members if member.command == "worker"]

    @property
    def output(self) -> str:
        """The end of what each process said."""
        return "\n".join(f"--- {member.name}\n{member.output[-3000:]}" for member in self.members)

    async def beside(self, work: Callable[[], None]) -> None:
        """Stop or start a server, which takes a while."""
        await asyncio.get_running_loop().run_in_executor(self._starter, work)

    async def revive(self) -> None:
        """All that was broken works again: servers, links, and every process is there and awake."""
        for member in self.members:
            member.thaw()
            member.clock_off_by(0)
            for link in member.links:
                link.forget()
                link.heal()
        if not self.redis.running:
            await self.beside(self.redis.start)
        if not self.postgres.running:
            await self.beside(self.postgres.start)
        dead = [member for member in self.members if not member.running]
        for member in dead:
            member.spawn()
        await asyncio.gather(*(member.ready(120) for member in dead))

    @asynccontextmanager
    async def one_more_worker(self) -> AsyncIterator[Member]:
        """A further worker without labels, until the end of the block."""
        member = self._worker(len(self.workers), "")
        self.members.append(member)
        try:
            await member.start(120)
            yield member
        finally:
            self.members.remove(member)
            await member.stop()
            await member._http.aclose()

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """Whoever dies is started again, as an init system would."""

        async def watch() -> None:
            while True:
                for member in self.members:
                    await member.come_back()
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    # ---- its public interface, through whoever answers

    @property
    def api(self) -> Member:
        """An API process that lives, another one each time."""
        living = [member for member in self.apis if member.running] or self.apis
        return living[next(self._turn) % len(living)]

    async def graphql(self, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The data of a document, asked again until there is some: it must bear to be repeated."""
        async with asyncio.timeout(60):
            while True:
                with suppress(*TROUBLE):
                    return await self.api.graphql(query, variables)
                await asyncio.sleep(0.05)

    async def store(self, definition: dict[str, Any]) -> str:
        """The id of a new workflow. No fault is under way."""
        made = (await self.api.graphql(CREATE, {"definition": definition}))["workflowCreate"]
        assert "workflow" in made, made
        return str(made["workflow"]["id"])

    async def start(
        self,
        workflow: str,
        input: Any = None,
        *,
        key: str,
        through: Member | None = None,
        within: float = 120.0,
        **more: Any,
    ) -> str:
        """Start a run, through any number of faults; its id, which was acknowledged."""
        given = {"workflow": {"id": workflow}, "input": input, "idempotencyKey": key, **more}
        async with asyncio.timeout(within):
            while True:
                with suppress(*TROUBLE):
                    answer = (await (through or self.api).graphql(START, {"input": given}))["instanceStart"]
                    if "instance" in answer:
                        return str(answer["instance"]["id"])
                    assert answer["code"] == "STORAGE_UNAVAILABLE", answer
                await asyncio.sleep(0.05)

    async def run(self, definition: dict[str, Any], input: Any = None, **more: Any) -> str:
        """Start a run of a new workflow; its id. No fault is under way."""
        definition = definition | {"name": f"{definition['name']}-{next(self._turn)}"}
        return await self.start(await self.store(definition), input, key=definition["name"], **more)

    async def ended(self, id: str, within: float = 30.0) -> dict[str, Any]:
        """The run once it is over."""
        await self.over([id], within)
        found: dict[str, Any] = (await self.graphql(INSTANCE, {"id": id}))["instance"]
        return found

    async def over(self, ids: Sequence[str], within: float = 60.0) -> list[str]:
        """How each of the runs ended, once all have."""
        async with asyncio.timeout(within):
            while True:
                with suppress(StorageUnavailable):
                    rows = await self.sql(
                        "SELECT id, status, completed_at IS NOT NULL FROM instances WHERE id = ANY(:ids)", ids=list(ids)
                    )
                    found = {id: status for id, status, over in rows if over}
                    if len(found) == len(set(ids)):
                        return [found[id] for id in ids]
                await asyncio.sleep(0.1)

    async def until(self, id: str, type: str, path: str | None = None, within: float = 20.0) -> None:
        """Wait for an event of this type (of this node). No fault is under way."""
        async with asyncio.timeout(within), aclosing(self.api.subscribe(EVENTS, {"id": id, "after": 0})) as stream:
            async for data in stream:
                event = data["instanceEvents"]
                if event["type"] == type and path in (None, event.get("nodePath")):
                    return
        raise AssertionError(f"{id} ended without {type} of {path}")

    async def follow(self, id: str) -> list[dict[str, Any]]:
        """Every event of the run in the order in which they came, through any number of lost connections."""
        events: list[dict[str, Any]] = []
        while True:
            after = events[-1]["seq"] if events else 0
            with suppress(*TROUBLE):
                async with aclosing(self.api.subscribe(EVENTS, {"id": id, "after": after})) as stream:
                    async for data in stream:
                        events.append(data["instanceEvents"])
                if events and events[-1]["type"].removeprefix("instance.").upper() in ENDED:
                    return events
            await asyncio.sleep(0.05)

    # ---- the database itself

    async def sql(self, query: str, **values: Any) -> list[Any]:
        """The rows of a query, past every link."""
        database = connect(self.url)

        def ask(connection: Connection) -> list[Any]:
            return list(connection.execute(text(query), values).all())

        try:
            return await database.read(ask)
        finally:
            await database.close()

    async def driver(self, id: str) -> Member | None:
        """The worker that holds a run now."""
        rows = await self.sql("SELECT owner FROM instances WHERE id = :id", id=id)
        owner = rows[0][0] if rows else None
        return None if owner is None else self.process(owner)

    def process(self, worker: str) -> Member | None:
        """The process behind the id of a worker."""
        return next((m for m in self.members if f":{m.pid}:" in worker), None)

    async def settled(self, waiting: Collection[str] = (), within: float = 30.0) -> None:
        """Wait until no run is open but those that wait on purpose, and nobody runs anything; then ask the oracle."""

        async def quiet() -> bool:
            left = await self.sql(
                "SELECT id FROM instances WHERE completed_at IS NULL UNION ALL SELECT id FROM remote_attempts "
                "UNION ALL SELECT instance_id FROM inbox"
            )
            return {row[0] for row in left} <= set(waiting)

        waiting = {*waiting, *self.given_up}
        try:
            with suppress(TimeoutError):  # the oracle says what is left
                await wait_until(quiet, within)
            await oracle.hold(self.url, waiting)
        finally:  # one test's failure is not the next one's
            left = await self.sql("SELECT id FROM instances WHERE completed_at IS NULL")
            self.given_up.update(row[0] for row in left)
        await wait_until(self._idle, within)

    async def _idle(self) -> bool:
        """Whether every worker that lives says that all its places are free."""
        rows = await self.sql(
            "SELECT id, running FROM workers WHERE stopped_at IS NULL AND heartbeat_at > clock_timestamp() - "
            "interval '10 seconds'"
        )
        return all(sum(running.values()) == 0 for id, running in rows if self.process(id) is not None)


def plugged(folder: Path) -> dict[str, str]:
    """The environment with which a process has the node types of ``tests/live/chaos/nodes.py``."""
    folder.mkdir(parents=True)
    code = (ROOT / "tests" / "live" / "chaos" / "nodes.py").read_text()
    return {"PYTHONPATH": f"{plugin(folder, 'chaos_nodes', code)}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two API processes and three workers for all tests that this process runs: take ``cluster``."""
    folder = tmp_path_factory.mktemp("cluster")
    try:
        roots = f"{folder / 'data' / 'files'},{ROOT / 'examples'}"
        env = plugged(folder / "plugin") | {"MIRRORFLOW_ALLOWED_ROOTS": roots}
        with Cluster(folder / "data", env=env) as cluster:
            yield cluster
    except Unavailable as reason:
        pytest.skip(f"PostgreSQL can't be started: {reason}")
    except NoRedis as reason:
        pytest.skip(f"Redis can't be started: {reason}")


@pytest.fixture
async def cluster(standing: Cluster) -> AsyncIterator[Cluster]:
    """A cluster that is well, and must be again: after the test the oracle is asked about everything that was done."""
    await standing.revive()
    yield standing
    print(standing.output)  # noqa: T201  (shown if the test fails)
    await standing.revive()
    await standing.settled()
