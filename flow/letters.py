"""Whether a letter can still become history: what was right when it was posted may have been overtaken since."""

from __future__ import annotations

from flow import events as e
from flow.history import Snapshot
from flow.states import INSTANCE_TRANSITIONS, NODE_TRANSITIONS, NodeStatus


def fits(snapshot: Snapshot, event: e.AnyEvent) -> bool:
    """Whether the event means anything to the instance as it is now. One that doesn't is dropped."""
    if snapshot.status.terminal:
        return False
    match event:
        case e.CancelRequested():
            return snapshot.cancel is None
        case e.InstancePaused() | e.InstanceResumed():
            return (snapshot.status, type(event)) in INSTANCE_TRANSITIONS
        case e.ApprovalAnswered(path=path):
            return _awaits(snapshot, path, e.ForApproval)
        case e.ChildEnded(path=path, instance_id=child):
            return _awaits(snapshot, path, e.ForChild) and snapshot.nodes[path].awaited == e.ForChild(child)
        case e.ValueSet(path=path, what=what):
            return _settable(snapshot, path, what)
        case _:
            return True


def _awaits(snapshot: Snapshot, path: str, kind: type[e.Awaited]) -> bool:
    return (
        path in snapshot.waiting
        and isinstance(snapshot.nodes[path].awaited, kind)
        and snapshot.nodes[path].answer is None
    )


def _settable(snapshot: Snapshot, path: str, what: str) -> bool:
    state = snapshot.nodes.get(path)
    if state is None:  # a node of the outermost graph, or the one that the debugger stopped at
        return "/" not in path or (snapshot.pause is not None and snapshot.pause.path == path)
    if what == "input":
        return state.status in (NodeStatus.PENDING, NodeStatus.RETRYING)
    return (state.status, e.ValueSet) in NODE_TRANSITIONS
