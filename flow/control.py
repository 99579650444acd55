"""What the control nodes decide: branches, loops, waits and children. Pure: a decision is an action.

The parameters are rendered here; whatever is wrong with them fails the node for good (BAD_PARAMETERS).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import msgspec

from flow import controls, expressions, mapping
from flow import events as e
from flow.actions import Action, Complete, Fail, Spawn, Wait
from flow.errors import Category, Failure
from flow.expressions import ExpressionError
from flow.expressions import Scope as Names
from flow.history import NodeState
from flow.jsonschemas import schema_fault
from flow.scopes import Loop, Scope, plain
from flow.views import last_outputs

if TYPE_CHECKING:
    from flow.books import Books

T = TypeVar("T", bound=msgspec.Struct)


class Refused(Exception):
    """The node fails with this."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def decide(run: Books, path: str, now: datetime) -> Action:
    """What a control node does that has just started (loops aside: they act by their iterations)."""
    try:
        return _decided(run, path, now)
    except ExpressionError as error:
        return Fail(path, error.failure(path))
    except Refused as refused:
        return Fail(path, msgspec.structs.replace(refused.failure, node_id=path))


def _decided(run: Books, path: str, now: datetime) -> Action:
    node = run.node(path)
    input = run.input(path)
    names = run.names(path, input)
    match controls.PARAMETERS[node.type]:
        case controls.Condition:
            condition = msgspec.convert(node.parameters, controls.Condition)
            return Complete(path, _passed_on(input) | {"branch": _branch(condition, names)})
        case controls.Delay:
            delay = _rendered(node.parameters, controls.Delay, names)
            until = _until(delay.until if delay.until is not None else delay.duration, now)
            return Wait(path, e.Timer(until)) if until is not None and until > now else Complete(path, input)
        case controls.WaitSignal:
            signal = _rendered(node.parameters, controls.WaitSignal, names)
            return Wait(path, e.ForSignal(signal.name, _until(signal.deadline, now), _schema(signal.schema)))
        case controls.Approval:
            asked = _rendered(node.parameters, controls.Approval, names)
            until = _until(asked.deadline, now)
            who = tuple(asked.who)
            return Wait(path, e.ForApproval(asked.title, _schema(asked.form), who, until, asked.on_timeout))
        case controls.ChildWorkflow:
            child = _rendered(node.parameters, controls.ChildWorkflow, names)
            given = input if child.input is msgspec.UNSET else child.input
            waits = _flag(child.wait)
            return Spawn(path, child.workflow, child.version, given, waits, child.on_parent_end)
        case _:
            raise AssertionError(node.type)


def answered(path: str, state: NodeState) -> Action:
    """What a waiting node does that got its answer."""
    match state.answer:
        case e.SignalReceived(payload=payload):
            return Complete(path, payload)
        case e.ApprovalAnswered(approved=approved, answer=answer, comment=comment, by=by):
            return Complete(path, _approval(approved, answer, comment, by))
        case e.ChildEnded(status="COMPLETED", output=output, artifact=artifact):
            return Complete(path, output, artifact)
        case e.ChildEnded(instance_id=id, status=status, error=error):
            why = f": {error.message}" if error is not None else "."
            details: dict[str, Any] = {"instance_id": id, "status": status}
            if error is not None:
                details["error"] = plain(error)
            category = error.category if error is not None else Category.CANCELED
            return Fail(
                path, Failure("CHILD_FAILED", category, f"The child {id} ended {status}{why}", path, details=details)
            )
        case None:
            raise AssertionError(path)
        case _:
            assert_never(state.answer)


def expired(run: Books, path: str, state: NodeState) -> Action:
    """What a waiting node does whose time is over."""
    match state.awaited:
        case e.Timer():
            try:
                return Complete(path, run.input(path))
            except ExpressionError as error:
                return Fail(path, error.failure(path))
        case e.ForApproval(on_timeout="approve" | "reject" as then):
            return Complete(path, _approval(then == "approve", None, None, None, timed_out=True))
        case e.ForApproval(title=title):
            return Fail(path, _too_late(path, f"Nobody answered {title!r} in time."))
        case e.ForSignal(name=name):
            return Fail(path, _too_late(path, f"The signal {name!r} did not come in time."))
        case _:
            raise AssertionError(state.awaited)


def _too_late(path: str, message: str) -> Failure:
    return Failure("WAIT_TIMEOUT", Category.TIMEOUT, message, path)


def _approval(approved: bool, answer: Any, comment: str | None, by: str | None, timed_out: bool = False) -> Any:
    return {"approved": approved, "answer": answer, "comment": comment, "by": by, "timed_out": timed_out}


def _branch(condition: controls.Condition, names: Names) -> str | None:
    for case in condition.cases:
        if expressions.truthy(expressions.search(case.when, names)):
            return case.name
    return condition.default


def _passed_on(input: Any) -> dict[str, Any]:
    if isinstance(input, dict):
        return dict(input)
    return {} if input is None else {mapping.VALUE_KEY: input}


# ---- loops ----------------------------------------------------------------------------------------------------


def enter(run: Books, scope: Scope, id: str) -> Loop:
    """The loop, before its first iteration. Raises ExpressionError, Refused."""
    path = scope.prefix + id
    node = scope.graph.nodes[id]
    input = run.input(path)
    names = run.names(path, input)
    # The body, the output and the condition are for the iterations; they are not rendered here.
    later = ("body", "output", "while", "items")
    given = {key: value for key, value in node.parameters.items() if key not in later}
    given = {**expressions.render(given, names), "body": {"nodes": [{}]}}
    settings = _converted(given, controls.Loop)
    condition = node.parameters.get("while")
    items = None if condition is not None else _items(node.parameters.get("items"), names)
    limit = controls.DEFAULT_MAX_ITERATIONS if items is None else controls.DEFAULT_MAX_ITEMS
    if settings.max_iterations is not None:
        limit = _whole(settings.max_iterations, "max_iterations", controls.MAX_ITERATIONS)
    if items is not None and len(items) > limit:
        raise Refused(limit_reached(path, limit, f"The list has {len(items):,} items"))
    return Loop(
        path=path,
        scope=scope,
        body=scope.graph.bodies[id],
        input=input,
        items=items,
        condition=condition,
        concurrency=1 if items is None else _whole(settings.concurrency, "concurrency", controls.MAX_CONCURRENCY),
        max_iterations=limit,
        collect=settings.on_error == "collect",
        output=node.parameters.get("output") or {},
    )


def _items(given: Any, names: Names) -> list[Any]:
    if isinstance(given, str):
        found = expressions.render(given, names) if "{{" in given else expressions.search(given, names)
    else:
        found = expressions.render(given, names)
    if not isinstance(found, list):
        kind = "null" if found is None else type(found).__name__
        message = f"A loop goes through a list; its `items` ({str(given)[:200]}) give {kind}."
        raise Refused(Failure("NOT_A_LIST", Category.VALIDATION, message))
    return found


def limit_reached(path: str, limit: int, what: str) -> Failure:
    """Why a loop stops that would go on for too long."""
    message = f"{what}; the loop's `max_iterations` is {limit:,}."
    return Failure("LOOP_LIMIT", Category.RESOURCE, message, path)


def goes_on(run: Books, loop: Loop) -> bool:
    """Whether the condition of a ``while`` loop asks for another iteration. Raises ExpressionError."""
    assert loop.condition is not None
    names = run.names(loop.path, loop.input) | {"index": loop.next, "last": loop.last}
    return expressions.truthy(expressions.search(loop.condition, names))


def names_of(loop: Loop, index: int) -> dict[str, Any]:
    """What the expressions of an iteration see of it."""
    names: dict[str, Any] = {"index": index}
    if loop.items is not None:
        names["item"] = loop.items[index]
    else:
        names["last"] = loop.last
    if loop.scope.loop is not None:
        names["outer"] = loop.scope.names
    return names


def iteration_output(run: Books, scope: Scope) -> Any:
    """What an iteration gives that went well. Raises ExpressionError."""
    loop = scope.loop
    assert loop is not None
    if loop.output:
        return mapping.apply(loop.output, run.scope_names(scope, scope.names))
    outputs = last_outputs(scope.graph, run.snapshot, scope.prefix)
    if sum(not edges for edges in scope.graph.outgoing.values()) == 1:
        return next(iter(outputs.values()), None)
    return outputs


def iteration_failed(loop: Loop, index: int, failure: Failure) -> Failure:
    """Why a loop fails whose iteration failed."""
    message = f"Iteration {index} failed at {failure.node_id or loop.path}: {failure.message}"
    return Failure(
        failure.code,
        failure.category,
        message,
        loop.path,
        details={**failure.details, "index": index, "path": failure.node_id},
    )


# ---- parameters -----------------------------------------------------------------------------------------------


def _rendered(parameters: dict[str, Any], kind: type[T], names: Names) -> T:
    return _converted(expressions.render(parameters, names), kind)


def _converted(parameters: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as error:
        raise Refused(_bad(f"The parameters are not as they should be: {error}.")) from None


def _bad(message: str) -> Failure:
    return Failure("BAD_PARAMETERS", Category.VALIDATION, message)


def _until(given: str | float | None, now: datetime) -> datetime | None:
    if given is None:
        return None
    try:
        until = controls.moment(given, now)
    except ValueError as error:
        raise Refused(_bad(f"{str(error)[0].upper()}{str(error)[1:]}.")) from None
    return min(until, now + timedelta(days=36_525))


def _schema(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is not None and (fault := schema_fault(given)) is not None:
        raise Refused(_bad(f"The schema is not a JSON Schema at {fault[0] or 'the top'}: {fault[1]}"))
    return given


def _whole(given: Any, name: str, most: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
        raise Refused(_bad(f"`{name}` is {given!r}; it is a whole number from 1 to {most:,}."))
    return given


def _flag(given: Any) -> bool:
    if not isinstance(given, bool):
        raise Refused(_bad(f"`wait` is {given!r}; it is true or false."))
    return given
