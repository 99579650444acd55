"""A real ``mirrorflow serve`` in a process of its own, for tests and benchmarks.

    async with Server(tmp_path) as server:
        data = await server.graphql("{ viewer { name } }")
        async for payload in server.subscribe("subscription ($id: ID!) { … }", {"id": id}):
            …
        server.kill()            # SIGKILL to the whole process group
        await server.restart()   # same data folder, same port

The server's output is kept and shown when it does not start or a query fails.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "test-token-0123456789abcdef"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 45.0
T = TypeVar("T")


class QueryFailed(Exception):
    """The answer had top-level errors; ``errors`` as they came."""

    def __init__(self, errors: list[dict[str, Any]], output: str = "") -> None:
        super().__init__(f"{errors}\n--- server ---\n{output[-4000:]}" if output else str(errors))
        self.errors = errors


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_until(condition: Callable[[], Awaitable[T]], within: float = 15.0) -> T:
    """The first true answer of ``condition``, asked every 20 ms. Raises TimeoutError after ``within`` seconds."""
    async with asyncio.timeout(within):
        while True:
            if answer := await condition():
                return answer
            await asyncio.sleep(0.02)


class Server:
    """One server process over one data folder; the port and the token stay the same over restarts.

    ``command`` is what it runs: ``serve``, or ``worker``, which has no public interface.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        command: str = "serve",
        env: Mapping[str, str] | None = None,
        args: tuple[str, ...] = (),
        token: str = TOKEN,
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.command = command
        self.token = token
        self.port = port or free_port()
        self.args = args
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MIRRORFLOW_")},
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "MIRRORFLOW_DATA_DIR": str(data_dir),
            "MIRRORFLOW_PORT": str(self.port),
            "MIRRORFLOW_TOKEN": token,
            "MIRRORFLOW_SOCKETS_PER_USER": "10000",
            "MIRRORFLOW_SUBSCRIPTIONS_PER_SOCKET": "1000",
            **(env or {}),
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._told = threading.Event()
        # No connection is kept, so that the client belongs to no event loop and a killed server leaves none half open.
        self._http = httpx.AsyncClient(
            timeout=90, verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    # -- the process

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """All that this and earlier processes over the folder wrote to stdout and stderr."""
        return "".join(self._lines)

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert not self.running, "the server runs already"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._told.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mirrorflow", self.command, *self.args],
            env=self.env,
            cwd=self.data_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._reader.start()

    async def start(self, within: float = START_TIMEOUT_S) -> Self:
        """Start the process and wait for its line ``ready in …``. Raises RuntimeError with its output if none came."""
        self.spawn()
        return await self.ready(within)

    async def ready(self, within: float = START_TIMEOUT_S) -> Self:
        """Wait for the line ``ready in …`` of a process that was spawned. Raises RuntimeError as ``start`` does."""
        told = await asyncio.to_thread(self._told.wait, within)
        if not told or not self.running:
            self.kill()
            raise RuntimeError(f"the server did not start:\n{self.output[-8000:]}")
        return self

    def kill(self) -> None:
        """SIGKILL the whole process group, as a power button would, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self._reap(10)

    def send_signal(self, number: int) -> None:
        """Send a signal to the whole process group, and don't wait."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def stop(self, signal_number: int = signal.SIGTERM, within: float = STOP_TIMEOUT_S) -> int:
        """Ask the process to stop and wait; its exit code. After ``within`` s it is killed: TimeoutError."""
        if self._process is None:
            return 0
        if self.running:
            self._process.send_signal(signal_number)
        return await self.gone(within)

    async def gone(self, within: float = STOP_TIMEOUT_S) -> int:
        """Wait for the process to end by itself; its exit code. After ``within`` s it is killed: TimeoutError."""
        assert self._process is not None, "the server was not started"
        try:
            await asyncio.to_thread(self._process.wait, within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"the server did not stop:\n{self.output[-4000:]}") from None
        self.send_signal(signal.SIGKILL)  # a node's process that outlived its server would keep the pipe open
        self._reap(10)
        return self._process.returncode

    async def restart(self) -> Self:
        """Kill it if it lives, then start it again over the same folder and port."""
        if self.running:
            self.kill()
        return await self.start()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self.running:
            self.kill()
        await self._http.aclose()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                self._lines.append(line)
                if "ready in" in line:
                    self._told.set()
        self._told.set()

    def _reap(self, timeout: float) -> None:
        if self._process is not None:
            self._process.wait(timeout)
        if self._reader is not None:
            self._reader.join(timeout)

    # -- its public interface

    async def request(self, method: str, path: str, *, token: str | None = "", **kwargs: Any) -> httpx.Response:
        """One HTTP request, with the server's token unless another (or None) is given."""
        headers = dict(kwargs.pop("headers", None) or {})
        bearer = self.token if token == "" else token
        if bearer is not None:
            headers.setdefault("Authorization", f"Bearer {bearer}")
        return await self._http.request(method, self.url + path, headers=headers, **kwargs)

    async def post(self, query: str, variables: Mapping[str, Any] | None = None, **kwargs: Any) -> httpx.Response:
        """POST a GraphQL document; the raw response."""
        return await self.request("POST", "/graphql", json={"query": query, "variables": variables or {}}, **kwargs)

    async def graphql(self, query: str, variables: Mapping[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
        """POST a GraphQL document; its ``data``. Raises QueryFailed if there are top-level errors."""
        response = await self.post(query, variables, **kwargs)
        try:
            answer = response.json()
        except ValueError:
            raise QueryFailed(
                [{"message": f"HTTP {response.status_code}: {response.text[:500]}"}], self.output
            ) from None
        if answer.get("errors"):
            raise QueryFailed(answer["errors"], self.output)
        if "data" not in answer:  # a refusal from before GraphQL: whoever asks can't be told from anybody now
            raise QueryFailed([answer], self.output)
        data: dict[str, Any] = answer["data"]
        return data

    @asynccontextmanager
    async def socket(self, *, token: str | None = "") -> AsyncIterator[ClientConnection]:
        """A websocket after ``connection_init`` and its acknowledgement."""
        bearer = self.token if token == "" else token
        async with connect(
            f"ws://127.0.0.1:{self.port}/graphql",
            subprotocols=[Subprotocol("graphql-transport-ws")],
            compression=None,
            max_size=None,
            max_queue=None,  # a client whose queue is full does not hear the answer to its own close frame
            ping_interval=None,
            close_timeout=2,
            proxy=None,
        ) as socket:
            payload = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
            await socket.send(msgspec.json.encode({"type": "connection_init", "payload": payload}), text=True)
            ack = msgspec.json.decode(await socket.recv())
            assert ack["type"] == "connection_ack", ack
            yield socket

    async def subscribe(
        self, query: str, variables: Mapping[str, Any] | None = None, *, token: str | None = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The ``data`` of each message of one subscription on a socket of its own, until it completes.

        Raises QueryFailed on errors and ``websockets.ConnectionClosed`` when the server goes away.
        Close the generator (``contextlib.aclosing``) to leave early.
        """
        async with self.socket(token=token) as socket:
            payload = {"query": query, "variables": dict(variables or {})}
            await socket.send(msgspec.json.encode({"id": "1", "type": "subscribe", "payload": payload}), text=True)
            async for text in socket:
                message = msgspec.json.decode(text)
                match message["type"]:
                    case "next":
                        if message["payload"].get("errors"):
                            raise QueryFailed(message["payload"]["errors"], self.output)
                        yield message["payload"]["data"]
                    case "error":
                        raise QueryFailed(message["payload"], self.output)
                    case "complete":
                        return
                    case "ping":
                        await socket.send('{"type":"pong"}')
