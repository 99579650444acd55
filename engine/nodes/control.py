"""Nodes that only look at their input: they pass it on, reshape it, check it, write it down, or stop there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from engine.nodes.contract import Context, NodeError, Placement, node
from flow import jsonschemas
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
