"""GraphQL over WebSocket: the protocol graphql-transport-ws, and no other.

One task per operation writes straight to the socket and waits until the socket takes it. A slow
reader therefore holds its own generators back and costs no memory here; what it misses meanwhile
is the bus's business. (A reader that never reads is freed by the kernel: ``TCP_USER_TIMEOUT`` on
the listening socket, see ``mirrorflow.server``.)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing, suppress
from typing import Any

import structlog
from graphql import OperationType
from starlette.websockets import WebSocket, WebSocketDisconnect

from flow.errors import WorkflowError
from graph.access import Authenticate, ContextFactory, User, bearer, credentials, origin_allowed
from graph.documents import Refused
from graph.errors import RequestError
from graph.execution import Answer, Execution, encoded
from graph.request import Ask, ask, decoded

PROTOCOL = "graphql-transport-ws"
log = structlog.get_logger("graph")


class Closed(Exception):
    """The socket must be closed with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class GraphQLOverWebSocket:
    """The socket half of the endpoint."""

    def __init__(
        self,
        execution: Execution,
        *,
        authenticate: Authenticate,
        context: ContextFactory,
        allowed_origins: frozenset[str] = frozenset(),
    ) -> None:
        self.execution = execution
        self.authenticate = authenticate
        self.context = context
        self.sockets = Counter[str]()
        self._allowed_origins = allowed_origins

    async def serve(self, socket: WebSocket) -> None:
        """Speak with one client until either side closes."""
        if not origin_allowed(socket, self._allowed_origins):
            await socket.close(4403, "Forbidden: pages of other sites may not use this server")
            return
        if PROTOCOL not in socket.scope.get("subprotocols", ()):
            await socket.accept()
            await socket.close(4406, "Subprotocol not acceptable")
            return
        await socket.accept(PROTOCOL)
        conversation = _Conversation(self, socket)
        self.execution.metrics.sockets.inc()
        try:
            await conversation.run()
        except Closed as closed:
            self.execution.metrics.closed.labels(str(closed.code)).inc()
            await _close(socket, closed)
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("socket failed", request_id=socket.scope.get("request_id", "-"))
            await _close(socket, Closed(4500, "Internal server error"))
        finally:
            self.execution.metrics.sockets.dec()
            if conversation.user is not None:
                self.sockets[conversation.user.user_id] -= 1
                self.sockets += Counter()  # forgets those at zero


class _Conversation:
    def __init__(self, endpoint: GraphQLOverWebSocket, socket: WebSocket) -> None:
        self.endpoint = endpoint
        self.execution = endpoint.execution
        self.limits = endpoint.execution.limits
        self.socket = socket
        self.user: User | None = None
        self.tasks: asyncio.TaskGroup
        self.running: dict[str, asyncio.Task[None]] = {}
        self._token: str | None = None
        self._request_id: str = socket.scope.get("request_id", "-")

    async def run(self) -> None:
        """Hear the client until it goes (WebSocketDisconnect) or must be sent away (Closed); all its tasks end here."""
        try:
            async with asyncio.TaskGroup() as self.tasks:
                try:
                    async with asyncio.timeout(self.limits.socket_init_seconds):
                        while self.user is None:
                            await self._hear(await self._receive())
                except TimeoutError:
                    raise Closed(4408, "Connection initialisation timeout") from None
                self.tasks.create_task(self._watch())
                while True:
                    await self._hear(await self._receive())
        except ExceptionGroup as ended:
            raise ended.exceptions[0] from None

    async def _receive(self) -> dict[str, Any]:
        received = await self.socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code") or 1005)
        text = received.get("text")
        if text is None:
            raise Closed(4400, "Only text frames are understood")
        if len(text) > self.limits.socket_frame_bytes:
            raise Closed(1009, "Message too big")
        try:
            message = decoded(text)
        except RequestError as error:
            raise Closed(4400, error.message) from None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise Closed(4400, "A message is a JSON object with a string member 'type'")
        return message

    async def _hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"type": "connection_init"}:
                await self._initialise(_payload(message))
            case {"type": "ping"}:
                payload = _payload(message)
                await self._send({"type": "pong"} if payload is None else {"type": "pong", "payload": payload})
            case {"type": "pong"}:
                _payload(message)
            case {"type": "subscribe", "id": str(id), "payload": dict(payload)} if id:
                await self._subscribe(id, payload)
            case {"type": "complete", "id": str(id)} if id:
                if (task := self.running.pop(id, None)) is not None:
                    task.cancel()
            case {"type": "subscribe"}:
                raise Closed(4400, "A subscribe message needs a string 'id' and an object 'payload'")
            case {"type": "complete"}:
                raise Closed(4400, "A complete message needs a string 'id'")
            case _:
                raise Closed(4400, "Unknown message type")

    async def _initialise(self, payload: dict[str, Any] | None) -> None:
        if self.user is not None:
            raise Closed(4429, "Too many initialisation requests")
        named = next((v for k, v in (payload or {}).items() if k.lower() == "authorization"), None)
        self._token = bearer(named) or credentials(self.socket)[0]
        try:
            user = await self.endpoint.authenticate(self._token) if self._token else None
        except WorkflowError as error:  # the database is away; it says nothing about the token
            raise Closed(1013, error.message) from None
        if user is None:
            raise Closed(4403, "Forbidden: send a valid token as connection parameter 'Authorization'")
        if self.endpoint.sockets[user.user_id] >= self.limits.sockets_per_user:
            raise Closed(4429, f"Too many sockets: {self.limits.sockets_per_user} per user")
        self.endpoint.sockets[user.user_id] += 1
        self.user = user
        await self._send({"type": "connection_ack"})

    async def _watch(self) -> None:
        """Ends the conversation when its token is no longer valid; pings, so that idle proxies keep it open."""
        while True:
            await asyncio.sleep(self.limits.socket_check_seconds)
            assert self._token is not None
            try:
                user = await self.endpoint.authenticate(self._token)
            except WorkflowError as error:  # the database is away; it says nothing about the token
                log.warning("token not checked", request_id=self._request_id, error=error.message)
                continue
            if user is None or self.user is None or user.user_id != self.user.user_id:
                raise Closed(4403, "Forbidden: the token is no longer valid")
            await self._send({"type": "ping"})

    async def _subscribe(self, id: str, payload: dict[str, Any]) -> None:
        if self.user is None:
            raise Closed(4401, "Unauthorized: send connection_init first")
        if id in self.running:
            raise Closed(4409, f"Subscriber for {id[:64]} already exists")
        try:
            question = ask(payload)
        except RequestError as error:
            raise Closed(4400, error.message) from None
        if len(self.running) >= self.limits.subscriptions_per_socket:
            message = f"A socket carries at most {self.limits.subscriptions_per_socket} operations at a time."
            refusal = RequestError(429, "SUBSCRIPTION_LIMIT_EXCEEDED", message)
            await self._tell(id, self.execution.refused(refusal, self._request_id))
        else:
            self.running[id] = self.tasks.create_task(self._operate(id, question))

    async def _operate(self, id: str, question: Ask) -> None:
        """Carry out one operation and tell its client; nothing that goes wrong in it may touch the others."""
        request_id = f"{self._request_id}/{id[:64]}"
        try:
            operation, cost = self.execution.operation(question, signed_in=True)
            context = self.endpoint.context(self.user, self.socket)
            if operation.kind is OperationType.SUBSCRIPTION:
                sent = self.execution.metrics.messages.labels(operation.field)
                async with aclosing(self.execution.stream(operation, question, context, request_id)) as answers:
                    async for answer in answers:
                        if not await self._tell(id, answer):
                            return
                        sent.inc()
                        await asyncio.sleep(0)  # a long replay must not keep the loop from everybody else
            elif not await self._tell(id, await self.execution.answer(operation, cost, question, context, request_id)):
                return
            self._forget(id)
            await self._send({"type": "complete", "id": id})
        except (Refused, RequestError) as refusal:
            await self._tell(id, self.execution.refused(refusal, request_id))
        finally:
            self._forget(id)

    async def _tell(self, id: str, answer: Answer) -> bool:
        """Send the answer as ``next``; or as ``error``, its operation's last word (then False), if it has no data."""
        if answer.executed:
            await self._send({"type": "next", "id": id, "payload": answer})
            return True
        self._forget(id)
        await self._send({"type": "error", "id": id, "payload": answer.errors})
        return False

    def _forget(self, id: str) -> None:
        # Before the last message goes out: the client may use the id again as soon as it has read it.
        if self.running.get(id) is asyncio.current_task():
            del self.running[id]

    async def _send(self, message: dict[str, Any]) -> None:
        text = encoded(message).decode()
        try:
            await self.socket.send({"type": "websocket.send", "text": text})
        except RuntimeError:  # Starlette's word for a socket that was closed meanwhile
            raise WebSocketDisconnect(1006) from None


def _payload(message: dict[str, Any]) -> dict[str, Any] | None:
    payload = message.get("payload")
    if not isinstance(payload, dict | None):
        raise Closed(4400, "A payload is a JSON object")
    return payload


async def _close(socket: WebSocket, closed: Closed) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # the client may have been quicker
        # A close frame holds 125 bytes: two for the code, the rest for the reason.
        await socket.close(closed.code, closed.reason.encode()[:120].decode(errors="ignore"))
