"""graphql-transport-ws, as its protocol has it, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import Gauge
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from graph.limits import Limits
from graph.view import GraphQLView
from tests.graph.serving import served
from tests.graph.wire import TOKEN, World, view

PROTOCOL = Subprotocol("graphql-transport-ws")
INIT = {"type": "connection_init", "payload": {"Authorization": f"Bearer {TOKEN}"}}


class Client:
    """One socket, speaking JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, str) else json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self.socket.recv())
        return message

    async def init(self) -> None:
        await self.send(INIT)
        assert await self.receive() == {"type": "connection_ack"}

    async def subscribe(self, id: str, query: str, **members: Any) -> None:
        await self.send({"id": id, "type": "subscribe", "payload": {"query": query, **members}})

    async def closed(self) -> int:
        """The code with which the server closes, whatever it still says before."""
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006


class Endpoint:
    """The endpoint on a real port."""

    def __init__(self, view: GraphQLView, address: str) -> None:
        self.view = view
        self.address = address.replace("http", "ws") + "/graphql"

    @asynccontextmanager
    async def client(self, *, protocols: tuple[str, ...] = (PROTOCOL,), **options: Any) -> AsyncIterator[Client]:
        offered = [Subprotocol(name) for name in protocols]
        async with connect(self.address, subprotocols=offered or None, **options) as socket:
            yield Client(socket)

    @property
    def open(self) -> float:
        """How many conversations are going on."""
        return _total(self.view.socket.execution.metrics.sockets)

    @property
    def subscriptions(self) -> float:
        """How many subscriptions are running."""
        return _total(self.view.socket.execution.metrics.subscriptions)


def _total(gauge: Gauge) -> float:
    return sum((sample.value for metric in gauge.collect() for sample in metric.samples), start=0.0)


@pytest.fixture
def world() -> World:
    return World()


@asynccontextmanager
async def serving(world: World, **limits: Any) -> AsyncIterator[Endpoint]:
    endpoint = view(world, **limits)
    async with served(endpoint, Limits(**limits)) as address:
        yield Endpoint(endpoint, address)


@pytest.fixture
async def endpoint(world: World) -> AsyncIterator[Endpoint]:
    async with serving(world) as endpoint:
        yield endpoint


async def until(condition: Any) -> None:
    """Wait for what the server does without telling us."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_subscription_from_first_to_last(endpoint: Endpoint, world: World) -> None:
    """Each value comes as ``next``, in order, then ``complete``; the generator is closed and the id free again."""
    async with endpoint.client() as client:
        await client.init()
        for _ in range(2):
            await client.subscribe("1", "subscription($n: Int!) { count(to: $n) }", variables={"n": 2})
            assert await client.receive() == {"id": "1", "type": "next", "payload": {"data": {"count": 1}}}
            assert await client.receive() == {"id": "1", "type": "next", "payload": {"data": {"count": 2}}}
            assert await client.receive() == {"id": "1", "type": "complete"}
        assert world.closed == ["count", "count"]
        assert world.contexts == 2


async def test_queries_and_mutations_run_over_the_socket(endpoint: Endpoint) -> None:
    """One ``next`` and ``complete``, like a stream of one."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("q", "{ user }")
        message = await client.receive()
        assert message["payload"] == {"data": {"user": "usr-1"}, "extensions": {"cost": 0}}
        assert await client.receive() == {"id": "q", "type": "complete"}
        await client.subscribe("m", "mutation { produce }")
        assert (await client.receive())["payload"]["data"] == {"produce": 1}
        assert await client.receive() == {"id": "m", "type": "complete"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("subscription {", "GRAPHQL_PARSE_FAILED"),
        ("", "GRAPHQL_PARSE_FAILED"),
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("query A { hello } query B { hello }", "OPERATION_NAME_MISSING"),
        ("query($n: Int!) { square(n: $n) }", "BAD_USER_INPUT"),
        ("subscription($n: Int!) { count(to: $n) }", "BAD_USER_INPUT"),
        ("{ things(first: 9999) { nodes { id } } }", "COST_LIMIT_EXCEEDED"),
    ],
)
async def test_a_wrong_operation_hurts_only_itself(endpoint: Endpoint, query: str, expected: str) -> None:
    """``error`` goes to its id alone; the socket and the other operations live on."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("good", "subscription { endless }")
        assert (await client.receive())["type"] == "next"
        await client.subscribe("bad", query)
        message = await client.receive()
        assert (message["id"], message["type"]) == ("bad", "error")
        assert [error["extensions"]["code"] for error in message["payload"]] == [expected]
        await client.subscribe("bad", "{ hello }")
        assert (await client.receive())["payload"]["data"] == {"hello": "Hello, world!"}


@pytest.mark.parametrize(("field", "expected"), [("refuses", "NOT_FOUND"), ("breaks", "INTERNAL")])
async def test_a_stream_that_fails_says_so(
    endpoint: Endpoint, field: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a generator raises ends its stream with ``error``: refusals by code, bugs masked."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("1", f"subscription {{ {field} }}")
        assert (await client.receive())["type"] == "next"
        message = await client.receive()
        assert message["type"] == "error"
        assert message["payload"][0]["extensions"]["code"] == expected
        assert "secret" not in json.dumps(message)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("null", 4400),
        ("1", 4400),
        ("[]", 4400),
        ('"x"', 4400),
        ("{", 4400),
        ("{}", 4400),
        ('{"type": 1}', 4400),
        ('{"type": "start"}', 4400),
        ('{"type": "ping", "payload": 1}', 4400),
        ('{"type": "pong", "payload": []}', 4400),
        ('{"type": "complete", "id": 1}', 4400),
        ('{"type": "complete"}', 4400),
        ('{"type": "subscribe", "id": 1, "payload": {"query": "{ hello }"}}', 4400),
        ('{"type": "subscribe", "id": "", "payload": {"query": "{ hello }"}}', 4400),
        ('{"type": "subscribe", "id": "1"}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": null}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": {"query": 1}}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "variables": []}}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "variables": {"a": "\\ud800"}}}', 4400),
        ('{"type": "connection_init"}', 4429),
        ("[" * 1000, 4400),
    ],
)
async def test_malformed_messages_close_the_socket_by_the_book(endpoint: Endpoint, message: str, expected: int) -> None:
    """What is no message closes with the protocol's code, never 1006 or 1011."""
    async with endpoint.client() as client:
        await client.init()
        await client.send(message)
        assert await client.closed() == expected


async def test_binary_frames_are_refused(endpoint: Endpoint) -> None:
    """The protocol is text."""
    async with endpoint.client() as client:
        await client.socket.send(b"{}")
        assert await client.closed() == 4400


@pytest.mark.parametrize("payload", [1, "x", []])
async def test_connection_init_with_a_wrong_payload(endpoint: Endpoint, payload: object) -> None:
    """Parameters are an object."""
    async with endpoint.client() as client:
        await client.send({"type": "connection_init", "payload": payload})
        assert await client.closed() == 4400


async def test_the_token_may_come_in_many_ways(endpoint: Endpoint) -> None:
    """As a parameter under any spelling of the key, as a header, or as the browser's cookie."""
    for key in ("Authorization", "authorization", "AUTHORIZATION"):
        async with endpoint.client() as client:
            await client.send({"type": "connection_init", "payload": {key: f"Bearer {TOKEN}"}})
            assert await client.receive() == {"type": "connection_ack"}
    for headers in ({"authorization": f"Bearer {TOKEN}"}, {"cookie": f"mirrorflow_session={TOKEN}"}):
        for message in ({"type": "connection_init", "payload": None}, {"type": "connection_init"}):
            async with endpoint.client(additional_headers=headers) as client:
                await client.send(message)
                assert await client.receive() == {"type": "connection_ack"}


async def test_strangers_are_turned_away(endpoint: Endpoint) -> None:
    """Asking before connection_init is 4401; a wrong token, or none, is 4403."""
    async with endpoint.client() as client:
        await client.subscribe("1", "{ hello }")
        assert await client.closed() == 4401
    for payload in ({"Authorization": "Bearer wrong"}, {}, None):
        async with endpoint.client() as client:
            await client.send({"type": "connection_init", "payload": payload})
            assert await client.closed() == 4403


async def test_nobody_is_let_in_while_the_database_is_away(endpoint: Endpoint, world: World) -> None:
    """1013 says "try again later", and a client does; 4403 would say that its token is wrong."""
    world.away = True
    async with endpoint.client() as client:
        await client.send({"type": "connection_init", "payload": {"Authorization": f"Bearer {TOKEN}"}})
        assert await client.closed() == 1013


async def test_only_one_subprotocol_is_spoken(endpoint: Endpoint) -> None:
    """Others, the legacy graphql-ws too, are closed with 4406; ours is picked from among several."""
    for protocols in (("graphql-ws",), ()):
        async with endpoint.client(protocols=protocols) as client:
            assert await client.closed() == 4406
    async with endpoint.client(protocols=("graphql-ws", PROTOCOL)) as client:
        assert client.socket.subprotocol == PROTOCOL


async def test_pages_of_other_sites_are_refused(endpoint: Endpoint) -> None:
    """A socket from a foreign origin is refused at the handshake; ours and our friends' are not."""
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus):
            async with endpoint.client(origin=origin):
                pass
    own = endpoint.address.replace("ws://", "http://").removesuffix("/graphql")
    for origin in (own, "https://friend.example"):
        async with endpoint.client(origin=origin) as client:
            await client.init()


async def test_silence_is_not_waited_for(world: World) -> None:
    """A socket that does not say who it is in time is closed with 4408; pings don't count."""
    async with serving(world, socket_init_seconds=0.05) as endpoint, endpoint.client() as client:
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        assert await client.closed() == 4408


async def test_pings_are_answered(endpoint: Endpoint) -> None:
    """With the same payload; a pong of the client's own accord is fine."""
    async with endpoint.client() as client:
        await client.init()
        await client.send({"type": "pong"})
        await client.send({"type": "ping", "payload": {"a": 1}})
        assert await client.receive() == {"type": "pong", "payload": {"a": 1}}


async def test_a_used_id_closes_the_socket(endpoint: Endpoint) -> None:
    """Two operations under one id at the same time: 4409."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("1", "subscription { endless }")
        await client.subscribe("1", "subscription { endless }")
        assert await client.closed() == 4409


async def test_complete_from_the_client_closes_the_generator(endpoint: Endpoint, world: World) -> None:
    """``complete`` ends one operation at once, and its id may be used again; an unknown id is ignored."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("1", "subscription { endless }")
        await client.receive()
        await client.send({"type": "complete", "id": "1"})
        await client.send({"type": "complete", "id": "never was"})
        await until(lambda: world.closed == ["endless"])
        await client.subscribe("1", "{ hello }")
        assert (await client.receive())["payload"]["data"]


async def test_nothing_is_left_when_a_client_goes(endpoint: Endpoint, world: World) -> None:
    """However a client goes, its generators are closed and its queries cancelled."""
    for abrupt in (False, True):
        world.closed.clear()
        async with endpoint.client() as client:
            await client.init()
            await client.subscribe("1", "subscription { endless }")
            await client.receive()
            await client.subscribe("2", "{ hang }")
            await world.started.wait()
            if abrupt:
                client.socket.transport.abort()
        await until(lambda: sorted(world.closed) == ["endless", "hang"])
        await until(lambda: endpoint.open == endpoint.subscriptions == 0)


async def test_frames_have_a_limit(endpoint: Endpoint) -> None:
    """256 KiB; more is closed with 1009, before it is read whole."""
    async with endpoint.client() as client:
        await client.init()
        await client.subscribe("1", "{ hello }" + " " * 256 * 1024)
        assert await client.closed() == 1009


async def test_operations_per_socket_have_a_limit(world: World) -> None:
    """One too many gets an ``error``; the others go on, and a finished one makes room."""
    async with serving(world, subscriptions_per_socket=2) as endpoint, endpoint.client() as client:
        await client.init()
        for id in ("1", "2"):
            await client.subscribe(id, "subscription { endless }")
            await client.receive()
        await client.subscribe("3", "{ hello }")
        message = await client.receive()
        assert (message["id"], message["type"]) == ("3", "error")
        assert message["payload"][0]["extensions"]["code"] == "SUBSCRIPTION_LIMIT_EXCEEDED"
        await client.send({"type": "complete", "id": "1"})
        await client.subscribe("3", "{ hello }")
        assert (await client.receive())["type"] == "next"


async def test_sockets_per_user_have_a_limit(world: World) -> None:
    """Counted by user, given back when a socket closes."""
    async with serving(world, sockets_per_user=1) as endpoint:
        async with endpoint.client() as first:
            await first.init()
            async with endpoint.client() as second:
                await second.send(INIT)
                assert await second.closed() == 4429
            async with endpoint.client() as other:
                await other.send({"type": "connection_init", "payload": {"authorization": "another-token"}})
                assert await other.receive() == {"type": "connection_ack"}
        await until(lambda: endpoint.open == 0)
        async with endpoint.client() as again:
            await again.init()


async def test_a_revoked_token_ends_its_streams(world: World) -> None:
    """The token is looked at again and again; once it is not valid the socket closes with 4403."""
    async with serving(world, socket_check_seconds=0.02) as endpoint, endpoint.client() as client:
        await client.init()
        await client.subscribe("1", "subscription { endless }")
        await client.receive()
        assert await client.receive() == {"type": "ping"}
        del world.tokens[TOKEN]
        assert await client.closed() == 4403
        await until(lambda: world.closed == ["endless"])


async def test_a_slow_reader_holds_back_its_own_stream_only(endpoint: Endpoint, world: World) -> None:
    """A generator produces no more than the socket takes; other clients are served meanwhile."""
    async with endpoint.client(max_queue=1) as slow:
        await slow.init()
        await slow.subscribe("1", "subscription { endless(padding: 100000) }")
        before = -1
        while before != world.produced:  # the buffers between us fill up, then it stands still
            before = world.produced
            async with endpoint.client() as other:
                await other.init()
                for _ in range(20):
                    await other.subscribe("1", "{ hello }")
                    assert (await other.receive())["type"] == "next"
                    assert (await other.receive())["type"] == "complete"
        assert world.produced < 1000
        slow.socket.transport.abort()
    await until(lambda: world.closed == ["endless"])


async def test_the_same_address_answers_http(endpoint: Endpoint) -> None:
    """Sockets and requests share the address."""
    async with httpx.AsyncClient() as http:
        response = await http.post(endpoint.address.replace("ws", "http", 1), json={"query": "{ hello }"})
        assert response.json()["data"]


async def test_a_server_that_stops_does_not_wait_for_its_sockets(world: World) -> None:
    """Open sockets are closed with 1012 and their generators end."""
    async with AsyncExitStack() as clients:
        async with serving(world) as endpoint:
            client = await clients.enter_async_context(endpoint.client())
            await client.init()
            await client.subscribe("1", "subscription { endless }")
            await client.receive()
        assert await client.closed() == 1012
        assert world.closed == ["endless"]
