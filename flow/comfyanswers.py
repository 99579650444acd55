"""What a ComfyUI server says: to a prompt, of where a prompt is, of how far it is. Pure.

Whatever a server answers is data of a stranger: every type is checked, and None stands for "not ComfyUI's answer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flow.comfyui import plain
from flow.errors import Category, Failure

# ---- what the server says to a prompt -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The prompt is queued as ``prompt_id``. ``invalid``: node ids whose outputs were dropped, with the reason."""

    prompt_id: str
    invalid: Mapping[str, str]


_ID = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")


def is_prompt_id(value: Any) -> bool:
    """Whether a server's word for a prompt can be one; it becomes part of addresses."""
    return isinstance(value, str) and _ID.match(value) is not None


def accepted(body: Any) -> Accepted | None:
    """What a 200 to a prompt says, None if it isn't ComfyUI's answer."""
    if not isinstance(body, dict) or not is_prompt_id(body.get("prompt_id")):
        return None
    return Accepted(body["prompt_id"], node_errors(body))


def node_errors(body: Any) -> dict[str, str]:
    """Node id → what is wrong with it, of an answer to a prompt."""
    said = body.get("node_errors") if isinstance(body, dict) else None
    if not isinstance(said, dict):
        return {}
    found: dict[str, str] = {}
    for id, about in list(said.items())[:100]:
        about = about if isinstance(about, dict) else {}
        errors = about.get("errors")
        reasons = [_sentence(error) for error in (errors if isinstance(errors, list) else [])[:5]]
        kind = about.get("class_type")
        found[plain(id, 200)] = (
            f"{plain(kind, 200)}: {'; '.join(reasons)}" if isinstance(kind, str) else "; ".join(reasons)
        )
    return found


def _sentence(error: Any) -> str:
    if not isinstance(error, dict):
        return plain(error, 500)
    message, details = plain(error.get("message"), 500), plain(error.get("details"), 500)
    return f"{message} ({details})" if details and details != message else message


def rejected(status: int, body: Any) -> Failure | None:
    """Why a prompt was refused (HTTP 400), None if it isn't ComfyUI's answer."""
    said = body.get("error") if isinstance(body, dict) else None
    if status != 400 or said is None:
        return None
    wrong = node_errors(body)
    reasons = [_sentence(said)] + [f"node {id}: {reason}" for id, reason in wrong.items()]
    code = plain(said.get("type"), 100) if isinstance(said, dict) else ""
    return Failure(
        "COMFYUI_REJECTED",
        Category.VALIDATION,
        f"ComfyUI refused the graph: {'; '.join(reason for reason in reasons if reason)}"[:4_000],
        details={"type": code, "node_errors": wrong},
    )


def partly_invalid(invalid: Mapping[str, str]) -> Failure:
    """A 200 whose ``node_errors`` say that some outputs were dropped."""
    reasons = "; ".join(f"node {id}: {reason}" for id, reason in invalid.items())
    message = f"ComfyUI dropped outputs that are not valid: {reasons}"[:4_000]
    return Failure("COMFYUI_NODE_ERRORS", Category.VALIDATION, message, details={"node_errors": dict(invalid)})


# ---- where a prompt is ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pending:
    """It waits; so many are ``ahead`` of it (None: unknown)."""

    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """It is worked on. ``nodes``: how many its graph has, 0 if that isn't known."""

    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Unknown:
    """The server doesn't know it: it was never sent, or the server has forgotten."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """It is done: outputs by node and key. ``note`` is what its sender had written on it."""

    outputs: Mapping[str, Any]
    note: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """It failed, or was interrupted (category CANCELED)."""

    failure: Failure


State = Pending | Running | Unknown | Succeeded | Broken

#: Under this key of a prompt's ``extra_data`` its sender's note travels.
NOTE = "mirrorflow"


def in_history(prompt_id: str, body: Any) -> Succeeded | Broken | Unknown | None:
    """What ``GET /history/{id}`` says, None if it isn't ComfyUI's answer."""
    if not isinstance(body, dict):
        return None
    entry = body.get(prompt_id)
    if entry is None:
        return Unknown()
    if not isinstance(entry, dict):
        return None
    queued = entry.get("prompt")
    return _ended(entry.get("status"), entry.get("outputs"), _extra(queued))


def in_jobs(prompt_id: str, body: Any) -> State | None:
    """What ``GET /api/jobs/{id}`` says, None if it isn't a job."""
    if not isinstance(body, dict) or body.get("id") != prompt_id:
        return None
    match body.get("status"):
        case "pending":
            return Pending()
        case "in_progress":
            workflow = body.get("workflow")
            graph = workflow.get("prompt") if isinstance(workflow, dict) else None
            return Running(len(graph) if isinstance(graph, dict) else 0)
        case "completed" | "failed" | "cancelled" as ended:
            status = body.get("execution_status")
            workflow = body.get("workflow")
            extra = workflow.get("extra_data") if isinstance(workflow, dict) else None
            found = _ended(status, body.get("outputs"), extra if isinstance(extra, dict) else {})
            if ended == "cancelled" and not (isinstance(found, Broken) and found.failure.category is Category.CANCELED):
                return Broken(_interrupted({}))
            if ended == "failed" and not isinstance(found, Broken):
                error = body.get("execution_error")
                return Broken(_failed(error if isinstance(error, dict) else {}))
            return found
    return None


def is_queue(body: Any) -> bool:
    """Whether this is what ``GET /queue`` answers."""
    return isinstance(body, dict) and all(isinstance(body.get(key), list) for key in ("queue_running", "queue_pending"))


def in_queue(prompt_id: str, body: Mapping[str, Any]) -> Pending | Running | Unknown:
    """What ``GET /queue`` says of the prompt."""
    running, pending = body["queue_running"], body["queue_pending"]
    for item in running:
        if _is(item, prompt_id):
            return Running(len(item[2]) if len(item) > 2 and isinstance(item[2], dict) else 0)
    mine = next((item for item in pending if _is(item, prompt_id)), None)
    if mine is None:
        return Unknown()
    return Pending(len(running) + sum(1 for item in pending if _number(item) < _number(mine)))


def queued_for(client_id: str, body: Mapping[str, Any]) -> str | None:
    """The id of a prompt in ``GET /queue`` that this client sent; the oldest builds number prompts themselves."""
    for item in (*body["queue_running"], *body["queue_pending"]):
        if _extra(item).get("client_id") == client_id and is_prompt_id(item[1]):
            return str(item[1])
    return None


def _is(item: Any, prompt_id: str) -> bool:
    return isinstance(item, list) and len(item) > 1 and item[1] == prompt_id


def _number(item: Any) -> float:
    number = item[0] if isinstance(item, list) and item else None
    return float(number) if isinstance(number, int | float) else 0.0


def _extra(queued: Any) -> dict[str, Any]:
    """The ``extra_data`` of a prompt as it stands in the queue and the history: number, id, graph, extra, outputs."""
    extra = queued[3] if isinstance(queued, list) and len(queued) > 3 else None
    return extra if isinstance(extra, dict) else {}


def _ended(status: Any, outputs: Any, extra: Mapping[str, Any]) -> Succeeded | Broken | None:
    status = status if isinstance(status, dict) else {}
    said = status.get("messages")
    messages = {
        message[0]: message[1] if isinstance(message[1], dict) else {}
        for message in (said if isinstance(said, list) else [])
        if isinstance(message, list) and len(message) >= 2 and isinstance(message[0], str)
    }
    # An interrupt reads "error" too.
    if "execution_interrupted" in messages:
        return Broken(_interrupted(messages["execution_interrupted"]))
    if status.get("status_str") == "error" or "execution_error" in messages:
        return Broken(_failed(messages.get("execution_error", {})))
    if not isinstance(outputs, dict):
        return None
    note = extra.get(NOTE)
    return Succeeded(outputs, note if isinstance(note, dict) else {})


def _interrupted(about: Mapping[str, Any]) -> Failure:
    at = f" at node {plain(about['node_id'], 200)}" if about.get("node_id") is not None else ""
    return Failure("COMFYUI_INTERRUPTED", Category.CANCELED, f"The prompt was interrupted{at}.")


def _failed(about: Mapping[str, Any]) -> Failure:
    kind = plain(about.get("exception_type"), 200)
    said = plain(about.get("exception_message"), 2_000).strip()
    node, node_type = plain(about.get("node_id"), 200), plain(about.get("node_type"), 200)
    where = f" at node {node}" if node else ""
    where += f" ({node_type})" if node_type else ""
    traceback = about.get("traceback")
    lines = [plain(line, 2_000) for line in traceback[-50:]] if isinstance(traceback, list) else []
    memory = "OutOfMemory" in kind
    return Failure(
        "COMFYUI_OUT_OF_MEMORY" if memory else "COMFYUI_FAILED",
        Category.RESOURCE if memory else Category.CODE,
        f"ComfyUI failed{where}: {said or kind or 'it gave no reason.'}",
        details={"node_id": node, "node_type": node_type, "exception_type": kind},
        traceback="".join(lines) or None,
    )


# ---- how far it is --------------------------------------------------------------------------------------------


class Tally:
    """How far a prompt is, from what the socket says. The socket may be silent, late or wrong: it is only a hint."""

    __slots__ = ("_done", "_parts", "_prompt_id", "nodes", "said")

    def __init__(self, prompt_id: str) -> None:
        self._prompt_id = prompt_id
        self._done: set[str] = set()
        self._parts: dict[str, float] = {}
        self.nodes = 0
        self.said = ""

    @property
    def share(self) -> float | None:
        """From 0 to 1; None while the number of nodes isn't known."""
        if not self.nodes:
            return None
        parts = sum(part for node, part in self._parts.items() if node not in self._done)
        return min(1.0, (len(self._done) + parts) / max(self.nodes, len(self._done)))

    def take(self, event: Any) -> bool | None:
        """Take a message of the socket: True if it says that the prompt has ended, None if it isn't about it."""
        data = event.get("data") if isinstance(event, dict) else None
        if not isinstance(data, dict) or data.get("prompt_id") != self._prompt_id:
            return None
        node = data.get("node")
        match event.get("type"):
            case "execution_cached":
                nodes = data.get("nodes")
                self._done.update(id for id in (nodes if isinstance(nodes, list) else []) if isinstance(id, str))
            case "executing" if node is None:
                return True
            case "executing" if isinstance(node, str):
                # A node begins where the one before has ended.
                self._done.update(id for id in self._parts if id != node)
                self._parts.setdefault(node, 0.0)
                self.said = f"node {plain(node, 100)}"
            case "progress" if isinstance(node, str):
                self._parts[node] = _part(data)
            case "progress_state":
                states = data.get("nodes")
                for id, state in states.items() if isinstance(states, dict) else ():
                    if isinstance(state, dict) and state.get("state") != "pending":
                        self._parts[id] = _part(state)
                        if state.get("state") == "finished":
                            self._done.add(id)
            case "executed" if isinstance(node, str):
                self._done.add(node)
            case "execution_success" | "execution_error" | "execution_interrupted":
                return True
        return False


def _part(data: Mapping[str, Any]) -> float:
    value, most = data.get("value"), data.get("max")
    if not isinstance(value, int | float) or not isinstance(most, int | float) or not most > 0:
        return 0.0
    share = value / most
    return min(1.0, max(0.0, share)) if share == share else 0.0
