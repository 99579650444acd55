"""Versions of workflows: the definition typed, as a document, and in the older batch form."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

import strawberry
from strawberry import field

from db.store import keyset
from flow import definition as d
from flow import errors, older
from flow.definition import Join, On
from graph.nodes import Resources
from graph.objects import Node, derived
from graph.permissions import Info, caller
from graph.results import Problem
from graph.scalars import JSON, SemVer

if TYPE_CHECKING:
    from graph.workflows import Workflow


# ---- the parts of a definition --------------------------------------------------------------------------------


@strawberry.type(description="How often, and how long apart, a failed attempt is made again.")
class RetryPolicy:
    """See ``flow.definition.RetryPolicy``."""

    max: int = field(description="Retries at most, not counting the first attempt.")
    base: timedelta = field(description="The wait before the first retry.")
    factor: float = field(description="Each wait is this many times the one before.")
    cap: timedelta = field(description="No wait is longer.")
    jitter: float = field(description="The share of a wait that is left to chance, 0 to 1.")
    total_timeout: timedelta | None = field(description="How long all attempts together may take.")
    retry_on: list[str] = field(
        description="Only these categories or codes are retried; empty: as their category says."
    )
    never_on: list[str] = field(description="These categories or codes are never retried.")


@strawberry.type(description="How long a node's result may be used again.")
class CachePolicy:
    """See ``flow.definition.Cache``."""

    ttl: timedelta = field(description="How long a result is good for.")
    key: str | None = field(description="An expression for the key; null: everything that the node gets.")


@strawberry.type(description="Where a node stands on the canvas.")
class Position:
    """In pixels."""

    x: float = field(description="To the right.")
    y: float = field(description="Downwards.")


@strawberry.type(description="One step of a workflow, with every default filled in.")
class DefinitionNode:
    """See ``flow.definition.Node``."""

    id: str = field(description="Its id in the definition.")
    type: str = field(description="Its node type, such as image/preprocess.")
    name: str | None = field(description="Its label for people.")
    parameters: JSON = field(description="The handler's parameters, templates and all.")
    join: Join = field(description="When it starts, given how its incoming edges settled.")
    fail_on_error: bool = field(description="True: its final failure fails the instance.")
    retry: RetryPolicy = field(description="How failed attempts are made again.")
    timeout: timedelta = field(description="How long one attempt may take.")
    heartbeat_timeout: timedelta | None = field(description="How long an attempt may be silent.")
    cache: CachePolicy | None = field(description="Whether its result may be used again.")
    resources: Resources | None = field(description="What it needs; null: what its type needs.")
    runs_on: list[str] = field(description="Labels that a worker must have.")
    on_lost: str = field(description="retry or fail, when its worker died in the middle of it.")
    position: Position | None = field(description="Where it stands on the canvas; null: laid out.")


@strawberry.type(description="From one node to another.")
class DefinitionEdge:
    """See ``flow.definition.Edge``."""

    source: str = field(description="The node that it comes from.")
    target: str = field(description="The node that it leads to.")
    on: On = field(description="Which end of its source it follows.")
    condition: str | None = field(description="A JMESPath expression on the source's output that must be true.")
    mapping: JSON = field(
        description="Target path to `$.<jmespath>` on the source's output, or a literal; empty: all of it."
    )


@strawberry.type(description="What starts a workflow by itself.")
class DefinitionTrigger:
    """See ``flow.definition.TriggerSpec``."""

    id: str = field(description="Its id in the definition.")
    type: str = field(description="manual, api, schedule, filesystem, webhook …")
    config: JSON = field(description="What its type needs to know.")
    input_mapping: JSON = field(description="How its payload becomes the instance's input.")


def definition_node(node: d.Node) -> DefinitionNode:
    """A node as the schema shows it."""
    r = node.retry
    return DefinitionNode(
        id=node.id,
        type=node.type,
        name=node.name,
        parameters=cast(JSON, node.parameters),
        join=node.join,
        fail_on_error=node.fail_on_error,
        retry=RetryPolicy(
            max=r.max,
            base=r.base,
            factor=r.factor,
            cap=r.cap,
            jitter=r.jitter,
            total_timeout=r.total_timeout,
            retry_on=list(r.retry_on),
            never_on=list(r.never_on),
        ),
        timeout=node.timeout,
        heartbeat_timeout=node.heartbeat_timeout,
        cache=CachePolicy(ttl=node.cache.ttl, key=node.cache.key) if node.cache else None,
        resources=(
            Resources(cpu=node.resources.cpu, memory=node.resources.memory, gpu=node.resources.gpu)
            if node.resources
            else None
        ),
        runs_on=list(node.runs_on),
        on_lost=node.on_lost,
        position=Position(x=node.position.x, y=node.position.y) if node.position else None,
    )


def definition_edge(edge: d.Edge) -> DefinitionEdge:
    """An edge as the schema shows it."""
    return DefinitionEdge(
        source=edge.source,
        target=edge.target,
        on=edge.on,
        condition=edge.condition,
        mapping=cast(JSON, edge.mapping),
    )


# ---- versions -------------------------------------------------------------------------------------------------


@strawberry.type(description="One immutable definition of a workflow.")
class WorkflowVersion(Node):
    """A row of ``workflow_versions``."""

    version: SemVer = field(description="Its number.")
    label: str | None = field(description="What somebody named it.")
    change_note: str | None = field(description="What was changed, in its author's words.")
    created_at: datetime = field(description="When it was made.")
    created_by: str | None = field(description="Who made it: a user's id.")
    problems: list[Problem] = field(description="What is wrong with it; only a DRAFT's version can have problems.")
    workflow_id: strawberry.Private[str]
    parent_id: strawberry.Private[str | None]

    @derived("The workflow that it is a version of.")
    async def workflow(self, info: Info) -> Annotated[Workflow, strawberry.lazy("graph.workflows")]:
        """By loader."""
        from graph.workflows import workflow

        row = await info.context.load.workflow.load(self.workflow_id)
        if row is None:
            raise errors.NotFound("workflow", self.workflow_id)
        return workflow(row, caller(info))

    @derived("The version that it was made from; null for the first.")
    async def parent(self, info: Info) -> Annotated[WorkflowVersion, strawberry.lazy("graph.versions")] | None:
        """By loader."""
        row = await info.context.load.version.load(self.parent_id) if self.parent_id else None
        return None if row is None else version(row)

    @derived("The whole definition in its canonical form (with problems: as it was given).")
    async def definition(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _document(info, self.id))

    @derived("Its steps. Empty where problems keep it from being read.")
    async def nodes(self, info: Info) -> list[DefinitionNode]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [definition_node(node) for node in graph.definition.nodes] if graph else []

    @derived("Its edges. Empty where problems keep it from being read.")
    async def edges(self, info: Info) -> list[DefinitionEdge]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [definition_edge(edge) for edge in graph.definition.edges] if graph else []

    @derived("What starts it. Empty where problems keep it from being read.")
    async def triggers(self, info: Info) -> list[DefinitionTrigger]:
        """Typed, with defaults."""
        graph = await info.context.load.graph.load(self.id)
        return [
            DefinitionTrigger(
                id=trigger.id,
                type=trigger.type,
                config=cast(JSON, trigger.config),
                input_mapping=cast(JSON, trigger.input_mapping),
            )
            for trigger in (graph.definition.triggers if graph else ())
        ]

    @derived("The JSON Schema that an instance's input must fit, if there is one.")
    async def input_schema(self, info: Info) -> JSON | None:
        """As it is stored."""
        return cast(JSON | None, (await _document(info, self.id)).get("input_schema"))

    @derived("Constants that expressions can use.")
    async def parameters(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _legacy(info, self.id, "parameters") or {})

    @derived("What the workflow is for, such as image processing.")
    async def scenario(self, info: Info) -> str | None:
        """As it is stored."""
        found = await _legacy(info, self.id, "scenario")
        return found if isinstance(found, str) else None

    @derived("How the instance's output is made from its nodes' outputs; empty: all terminal nodes.")
    async def output_mapping(self, info: Info) -> JSON:
        """As it is stored."""
        return cast(JSON, await _legacy(info, self.id, "output_mapping") or {})

    @derived(
        "Older batch form: how files become the input. Of an imported batch workflow as it was given, "
        "else the `input_mapping` of each trigger by id."
    )
    async def input_mapping(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        found = await _legacy(info, self.id, "input_mapping")
        if found is None:
            graph = await info.context.load.graph.load(self.id)
            found = {each.id: each.input_mapping for each in (graph.definition.triggers if graph else ())}
        return cast(JSON, found)

    @derived(
        "Older batch form: the workflow's own graph. Of an imported batch workflow what it gave, ComfyUI's graph "
        "as it stood, else the definition."
    )
    async def workflow_config(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        return cast(JSON, older.field(await _document(info, self.id), "workflow_config"))

    @derived(
        "Older batch form: settings by node. Of an imported batch workflow as it was given, else each "
        "node's parameters by id."
    )
    async def node_config(self, info: Info) -> JSON:
        """Kept from an import, or derived."""
        found = await _legacy(info, self.id, "node_config")
        if found is None:
            graph = await info.context.load.graph.load(self.id)
            found = {each.id: each.parameters for each in (graph.definition.nodes if graph else ())}
        return cast(JSON, found)


async def _document(info: Info, id: str) -> dict[str, Any]:
    document = await info.context.load.document.load(id)
    if document is None:
        raise errors.NotFound("workflow version", id)
    return document


async def _legacy(info: Info, id: str, key: str) -> Any:
    """What an import in the older form gave under this key, or else what the definition has there."""
    return older.field(await _document(info, id), key)


def version(row: keyset.Record) -> WorkflowVersion:
    """The row as the schema shows it."""
    return WorkflowVersion(
        id=strawberry.ID(row.id),
        version=SemVer(f"{row.major}.{row.minor}.{row.patch}"),
        label=row.label,
        change_note=row.change_note,
        created_at=row.created_at,
        created_by=row.created_by,
        problems=[_problem(each) for each in row.problems],
        workflow_id=row.workflow_id,
        parent_id=row.parent_id,
    )


def _problem(stored: Mapping[str, str]) -> Problem:
    return Problem(code=stored["code"], pointer=stored["pointer"], message=stored["message"])
