"""Definitions as documents: how they are given, checked and compared."""

from __future__ import annotations

from typing import Annotated, Any

import strawberry
from strawberry import UNSET, argument, field

from engine.access import Permission
from flow import errors, schemas, versions
from flow.definition import Definition
from flow.versions import Bump, ChangeKind
from graph.permissions import Info, caller, query
from graph.results import Problem, problem
from graph.scalars import JSON

strawberry.enum(Bump, name="VersionBump", description="The kind of a change: breaking, a feature, a fix.")
strawberry.enum(ChangeKind, name="DiffKind", description="What happened to one thing.")


@strawberry.input(one_of=True, description="A workflow definition: exactly one of these.")
class DefinitionInput:
    """JSON values or text."""

    json: JSON | None = field(default=UNSET, description="The document as a JSON object.")
    text: str | None = field(default=UNSET, description="The document as text: YAML or JSON.")


@strawberry.type(description="One difference between two definitions.")
class DiffEntry:
    """See ``flow.versions.Change``."""

    key: str = field(description="A node's or trigger's id, `source → target` of an edge, or a JSON pointer.")
    kind: ChangeKind = field(description="What happened to it.")
    before: JSON | None = field(description="As it was; null if it was added.")
    after: JSON | None = field(description="As it is; null if it was removed.")
    parts: list[DiffEntry] = field(description="The differences within a changed node, edge or trigger.")


@strawberry.type(description="What changed between two versions.")
class WorkflowDiff:
    """See ``flow.DefinitionDiff``."""

    bump: Bump = field(description="What the whole change means for those who use the workflow.")
    identical: bool = field(description="True if nothing differs.")
    nodes: list[DiffEntry] = field(description="Nodes, by id.")
    edges: list[DiffEntry] = field(description="Edges, by `source → target`.")
    triggers: list[DiffEntry] = field(description="Triggers, by id.")
    parameters: list[DiffEntry] = field(description="Parameters, by JSON pointer.")
    settings: list[DiffEntry] = field(description="Everything else, by JSON pointer.")


def document(given: DefinitionInput) -> Any:
    """What the engine reads: values or text."""
    return given.text if given.text is not UNSET and given.text is not None else given.json


def _entry(change: versions.Change) -> DiffEntry:
    return DiffEntry(
        key=change.key,
        kind=change.kind,
        before=change.before,
        after=change.after,
        parts=[_entry(part) for part in change.parts],
    )


@strawberry.type
class DefinitionQuery:
    """Checking and comparing."""

    @query(Permission.WORKFLOW_READ, "Everything that is wrong with a definition; empty: it is valid. Stores nothing.")
    async def definition_validate(
        self, info: Info, definition: Annotated[DefinitionInput, argument(description="The definition.")]
    ) -> list[Problem]:
        """By the engine."""
        found = await info.context.engine.workflows.validate(caller(info), document(definition))
        return [problem(each) for each in found]

    @query(
        Permission.NODE_TYPE_READ,
        "The JSON Schema (2020-12) of a definition, with the parameters of every node type: editors complete by it.",
    )
    async def definition_schema(self, info: Info) -> JSON:
        """Of this server's node types."""
        return JSON(schemas.definition_schema(info.context.engine.registry.type_infos()))

    @query(
        Permission.WORKFLOW_READ,
        "What changed from one version to another, of the same workflow or not. "
        "Versions with problems can't be compared.",
    )
    async def workflow_diff(
        self,
        info: Info,
        from_: Annotated[strawberry.ID, argument(name="from", description="The older version's id.")],
        to: Annotated[strawberry.ID, argument(description="The newer version's id.")],
    ) -> WorkflowDiff:
        """Pure comparison."""
        old, new = [await _definition(info, id, name) for id, name in ((from_, "from"), (to, "to"))]
        diff = versions.diff(old, new)
        return WorkflowDiff(
            bump=diff.bump,
            identical=diff.empty,
            nodes=[_entry(each) for each in diff.nodes],
            edges=[_entry(each) for each in diff.edges],
            triggers=[_entry(each) for each in diff.triggers],
            parameters=[_entry(each) for each in diff.parameters],
            settings=[_entry(each) for each in diff.settings],
        )


async def _definition(info: Info, id: str, argument: str) -> Definition:
    if await info.context.load.version.load(id) is None:
        raise errors.NotFound("workflow version", id, path=(argument,))
    graph = await info.context.load.graph.load(id)
    if graph is None:
        raise errors.Conflict(f"The version {id} has problems, so it can't be compared.", path=(argument,))
    return graph.definition
