"""Nodes that only look at their input: they pass it on, reshape it, check it, write it down, or stop there.

And those that the flow decides by itself (``flow.control``): their functions here are never called, they only
declare the type.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from engine.nodes.contract import Context, NodeError, Placement, node
from flow import controls, jsonschemas
from flow.errors import Category

Describe = msgspec.Meta

MAX_PROBLEMS = 100


@node("core/noop", title="Nothing", icon="circle")
async def noop(ctx: Context[dict[str, Any]]) -> Any:
    """Gives its input on: a place for branches to meet."""
    return ctx.input


class Transform(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    output: Annotated[Any, Describe(description="Any JSON; the templates in it are what is computed.")]


@node("core/transform", title="Transform", icon="shuffle", parameters=Transform)
async def transform(ctx: Context[Transform]) -> Any:
    """Gives `output`, with every template in it resolved: picks, renames and reshapes by expressions."""
    return ctx.parameters.output


class LogParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: Annotated[Any, Describe(description="What to write; anything but text is written as JSON.")]
    level: Annotated[Literal["debug", "info", "warning", "error"], Describe(description="How loud.")] = "info"
    fields: Annotated[dict[str, Any], Describe(description="More to keep with the line.")] = {}


@node("core/log", title="Log", icon="file-text", parameters=LogParameters)
async def log(ctx: Context[LogParameters]) -> Any:
    """Writes a line to the node's log and gives its input on."""
    said = ctx.parameters
    message = said.message if isinstance(said.message, str) else msgspec.json.encode(said.message).decode()
    ctx.log.write(said.level, message, said.fields)
    return ctx.input


class Fail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: Annotated[str, Describe(description="Why.")] = "This node fails by definition."
    category: Annotated[Category, Describe(description="What kind of failure it is.")] = Category.CODE
    code: Annotated[str, Describe(description="A stable code for programs.")] = "FAILED_BY_DEFINITION"
    retryable: Annotated[bool | None, Describe(description="Overrules what the category says of retries.")] = None


@node("core/fail", title="Fail", icon="x-octagon", parameters=Fail)
async def fail(ctx: Context[Fail]) -> None:
    """Fails with the given message and category: the end of a branch that must not be taken."""
    why = ctx.parameters
    raise NodeError(why.message, category=why.category, code=why.code, retryable=why.retryable)


class Validate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[dict[str, Any], Describe(description="The JSON Schema (2020-12) that the value must meet.")]
    value: Annotated[Any, Describe(description="What to check; the node's input if it is left out.")] = msgspec.UNSET


# In a process, because a schema can take for ever (alternatives within alternatives), and a thread can't be stopped.
@node("core/validate", title="Validate", icon="check-square", parameters=Validate, placement=Placement.PROCESS)
def validate(ctx: Context[Validate]) -> Any:
    """Checks a value against a JSON Schema and gives it on; if it doesn't fit, fails with every mismatch."""
    value = ctx.input if ctx.parameters.value is msgspec.UNSET else ctx.parameters.value
    schema = ctx.parameters.schema
    if (fault := jsonschemas.schema_fault(schema)) is not None:
        pointer, why = fault
        raise NodeError(
            f"The schema is not a JSON Schema at {pointer or 'the top'}: {why}",
            category=Category.VALIDATION,
            code="BAD_SCHEMA",
            details={"pointer": pointer},
        )
    mismatches = jsonschemas.mismatches(jsonschemas.validator(schema), value)
    if mismatches:
        first = mismatches[0]
        raise NodeError(
            f"The value does not fit the schema at {first.pointer or 'the top'}: {first.message}",
            category=Category.VALIDATION,
            code="VALUE_INVALID",
            details={"problems": [{"pointer": m.pointer, "message": m.message} for m in mismatches[:MAX_PROBLEMS]]},
        )
    return value


# ---- decided by the flow --------------------------------------------------------------------------------------


@node("core/condition", title="Condition", icon="git-branch", parameters=controls.Condition, placement=Placement.FLOW)
def condition() -> None:
    """Takes the first case that is true, or the default.

    Gives its input on with the branch's name as `branch`; an edge follows a branch by `case: name`.
    """


@node("core/loop", title="Loop", icon="repeat", parameters=controls.Loop, placement=Placement.FLOW)
def loop() -> None:
    """Runs its body once for each item of a list, or as long as an expression is true.

    The body's nodes see `item`, `index` (with `while` also `last`, the last iteration's output), in a nested loop the
    outer ones under `outer`. Gives `{items: [...], failed: [...]}` in the order of the items; a failed item is null.
    """


@node("core/workflow", title="Workflow", icon="workflow", parameters=controls.ChildWorkflow, placement=Placement.FLOW)
def workflow() -> None:
    """Runs another workflow as a child, and gives the child's output; or goes on at once with its id."""


@node("core/delay", title="Delay", icon="timer", parameters=controls.Delay, placement=Placement.FLOW)
def delay() -> None:
    """Waits for a while, or until an instant, and gives its input on. It holds no worker meanwhile."""


@node(
    "core/wait-signal", title="Wait for signal", icon="radio", parameters=controls.WaitSignal, placement=Placement.FLOW
)
def wait_signal() -> None:
    """Waits for a signal of this name and gives its payload. One that came before is kept, and used."""


@node("core/approval", title="Approval", icon="user-check", parameters=controls.Approval, placement=Placement.FLOW)
def approval() -> None:
    """Waits for a person's answer, and gives `{approved, answer, comment, by, timed_out}`."""
