"""Letters from people and other instances: which still mean something, and what a retry by hand resets."""

from __future__ import annotations

import msgspec

from flow import events as e
from flow.books import MAX_EVENTS, Books
from flow.errors import Conflict
from flow.graph import split
from flow.scopes import Scope
from flow.states import InstanceStatus, NodeStatus, SkipReason


def reopening(books: Books, asked: e.InstanceReopened) -> e.InstanceReopened:
    """The event by which a FAILED instance goes on: ``asked``, with every node that is PENDING again.

    Those are the named ones, every other failed node that the run could only fail by again, what was cancelled or
    skipped because the run ended, and what was skipped behind any of them. Of a loop, the iterations that were not
    completed go on. Raises Conflict if the run has no room for more events.
    """
    if books.snapshot.last_seq >= MAX_EVENTS:
        raise Conflict(f"The run has {MAX_EVENTS:,} events, so it can't go on; start a new one.", status="FAILED")
    reset: list[str] = []
    _gather(books, books.root, asked.paths, reset)
    return msgspec.structs.replace(asked, reset=tuple(reset))


def _gather(books: Books, scope: Scope, named: tuple[str, ...], reset: list[str]) -> None:
    nodes, prefix = books.snapshot.nodes, scope.prefix
    again: dict[str, None] = {}
    for id, node in scope.graph.nodes.items():
        path = prefix + id
        if (state := nodes.get(path)) is None:
            continue
        match state.status:
            case NodeStatus.FAILED:
                meant = any(name == path or name.startswith(f"{path}[") for name in named)
                anew = node.fail_on_error or meant
            case NodeStatus.CANCELED:
                anew = True
            case _:
                anew = state.skip_reason == SkipReason.INSTANCE_ENDED
        if anew:
            again[id] = None
    behind = list(again)
    while behind:
        for edge in scope.graph.outgoing[behind.pop()]:
            target = nodes.get(prefix + edge.target)
            if target is not None and target.status is NodeStatus.SKIPPED and edge.target not in again:
                again[edge.target] = None
                behind.append(edge.target)
    for id in again:
        reset.append(prefix + id)
        if (loop := books.loops.get(prefix + id)) is not None:
            for kept in loop.kept.values():
                _gather(books, kept, named, reset)


def accepts(books: Books, letter: e.AnyEvent) -> bool:
    """Whether this letter still means something; otherwise it is to be dropped, not recorded."""
    snapshot = books.snapshot
    if snapshot.status.terminal or snapshot.created is None:
        return isinstance(letter, e.InstanceReopened) and snapshot.status is InstanceStatus.FAILED
    match letter:
        case e.CancelRequested():
            return snapshot.cancel is None
        case e.InstancePaused():
            return snapshot.status is not InstanceStatus.PAUSED
        case e.InstanceResumed():
            return snapshot.status is InstanceStatus.PAUSED
        case e.InstanceReopened():
            return False
        case e.ApprovalAnswered(path=path):
            state = snapshot.nodes.get(path)
            return (
                path in snapshot.waiting
                and state is not None
                and state.answer is None
                and (isinstance(state.awaited, e.ForApproval))
            )
        case e.ChildEnded(path=path, instance_id=id):
            state = snapshot.nodes.get(path)
            return (
                path in snapshot.waiting
                and state is not None
                and state.answer is None
                and (state.awaited == e.ForChild(id))
            )
        case e.ValueSet(path=path, what=what):
            return path not in snapshot.offered and _may_set(books, path, what)
        case e.NodeLog(path=path, attempt=attempt) | e.NodeProgress(path=path, attempt=attempt):
            return path in snapshot.offered and snapshot.nodes[path].attempt == attempt
        case (
            e.NodeStarted(path=path, attempt=attempt)
            | e.NodeCompleted(path=path, attempt=attempt)
            | e.NodeFailed(path=path, attempt=attempt)
            | e.NodeCanceled(path=path, attempt=attempt)
            | e.NodeLost(path=path, attempt=attempt)
        ):
            return path in snapshot.offered and snapshot.nodes[path].attempt == attempt
        case _:
            return True


def _may_set(books: Books, path: str, what: str) -> bool:
    prefix, id = split(path)
    scope = books.scopes.get(prefix)
    if scope is None or id not in scope.graph.nodes:
        return False
    status = books.status_of(path)
    if status in (NodeStatus.PENDING, NodeStatus.RETRYING):
        return True
    if what == "input" or status not in (NodeStatus.WAITING, NodeStatus.COMPLETED, NodeStatus.FAILED):
        return False
    if status is NodeStatus.WAITING:
        return True
    paused = books.snapshot.pause
    if status is NodeStatus.FAILED and (paused is None or (paused.path, paused.phase) != (path, e.Phase.AFTER)):
        return False
    return all(
        books.status_of(prefix + edge.target) is NodeStatus.PENDING for edge in scope.graph.outgoing[id]
    ) and not (scope.loop is None and books.snapshot.status.terminal)
