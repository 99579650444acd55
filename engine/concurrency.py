"""A new instance, with the concurrency key that its workflow gives it.

Whether it may begin is decided in the journal's transaction (``db.store.admission``), so that it holds for any number
of processes.
"""

from __future__ import annotations

import msgspec

from db.store.journal import Create
from engine import clock
from flow import events as e
from flow import expressions
from flow.definition import Definition
from flow.errors import Invalid, Problem
from flow.expressions import ExpressionError
from flow.problems import ProblemCode

MAX_KEY = 255  # characters


def new_instance(
    project_id: str,
    definition: Definition,
    created: e.InstanceCreated,
    idempotency_key: str | None = None,
    *,
    current: bool = False,
    worker: str | None = None,
    lease_s: float = 15.0,
) -> Create:
    """The entry for the journal. Raises Invalid if the concurrency key can't be worked out from the input."""
    rule = definition.concurrency
    if rule is not None:
        created = msgspec.structs.replace(created, concurrency_key=key(definition, created))
    return Create(
        instance_id=clock.new_id("inst"),
        project_id=project_id,
        created=e.Recorded(1, clock.now(), created),
        idempotency_key=idempotency_key,
        current=current,
        worker=worker if rule is None else None,
        lease_s=lease_s,
        limit=rule.limit if rule is not None else None,
        on_conflict=rule.on_conflict if rule is not None else "queue",
    )


def key(definition: Definition, created: e.InstanceCreated) -> str:
    """The run's concurrency key: text, or the JSON of another value; without a rule for it all runs have the same.

    It sees what templates see before the first node: ``input`` and its keys, ``trigger``, ``parameters``.
    """
    rule = definition.concurrency
    if rule is None or rule.key is None:
        return ""
    payload = created.trigger.payload
    scope = expressions.scope(
        input=created.input,
        trigger={**(payload if isinstance(payload, dict) else {}), "type": created.trigger.type},
        nodes={},
        parameters={**definition.parameters, **created.parameters},
    )
    try:
        value = expressions.search(rule.key, scope)
    except ExpressionError as error:
        raise _unusable(error.message) from None
    if value is None:
        raise _unusable(f"`{rule.key}` gives nothing for this input")
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if len(text) > MAX_KEY:
        raise _unusable(f"it has more than {MAX_KEY} characters")
    return text


def _unusable(why: str) -> Invalid:
    message = f"The concurrency key of this run can't be worked out: {why}."
    return Invalid([Problem("/input", ProblemCode.BAD_INPUT, message)], path=("input",))
