"""What many types of the schema share: the Node interface, the enums of the states, failures, large outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
import strawberry
from strawberry import field

from engine.access import Actor, Permission
from flow import errors
from flow import events as e
from flow.definition import Join, On
from flow.errors import Category
from flow.states import InstanceStatus, NodeStatus, SkipReason, WorkflowStatus
from graph.scalars import JSON, BigInt

strawberry.enum(InstanceStatus, description="The life of one run.")
strawberry.enum(NodeStatus, description="The life of one node in one run.")
strawberry.enum(SkipReason, description="Why a node was not run.")
strawberry.enum(
    WorkflowStatus,
    description="The life of a workflow. DRAFT does not run; HIDDEN is ACTIVE but left out of lists.",
)
strawberry.enum(Category, name="ErrorCategory", description="What kind of failure a node met.")
strawberry.enum(Join, description="When a node starts, given how its incoming edges settled.")
strawberry.enum(On, name="EdgeOn", description="Which end of its source an edge follows.")


def choice(value: str, description: str) -> str:
    """An enum's value with its description for the schema."""
    return cast(str, strawberry.enum_value(value, description=description))


def derived(description: str) -> Callable[[Callable[..., Any]], Any]:
    """A field that is worked out when it is asked for; every other field is a plain attribute."""

    def decorate(resolve: Callable[..., Any]) -> Any:
        return strawberry.field(resolver=resolve, description=description)

    return decorate


@strawberry.interface(description="Anything with an id: look it up again with `node(id)`.")
class Node:
    """As Relay has it."""

    id: strawberry.ID = field(description="Its id, unique among everything; opaque.")


@strawberry.type(description="Why a node's attempt, or an instance, failed.")
class Failure:
    """See ``flow.errors.Failure``."""

    code: str = field(description="A stable code, such as NODE_TIMEOUT.")
    category: Category = field(description="What kind of failure it is; retry policies speak in these words.")
    message: str = field(description="A sentence for people.")
    node_id: str | None = field(description="The node that failed, if it was one.")
    attempt: int | None = field(description="The attempt that failed, from 1.")
    retryable: bool | None = field(description="The handler's own word on retrying; null: its category decides.")
    details: JSON = field(description="What else is known, as an object.")
    traceback: str | None = field(description="The handler's traceback, for those who may edit the workflow.")


@strawberry.type(description="A value that is too large to be answered inline.")
class OutputArtifact:
    """See ``flow.events.Artifact``."""

    id: strawberry.ID = field(description="Its id in the artifact store.")
    sha256: str = field(description="The SHA-256 of its content, in hexadecimal.")
    size: BigInt = field(description="Its size in bytes.")
    media_type: str = field(description="What it is, such as application/json.")
    preview: str = field(description="The first 1,000 characters.")
    url: str = field(description="Where it is downloaded, on this server, with the same token.")


@strawberry.type(description="What an attempt used; null where the platform can't tell.")
class ResourceUsage:
    """See ``flow.events.Usage``."""

    cpu_seconds: float | None = field(description="Seconds of CPU time.")
    memory_mb_seconds: float | None = field(description="Megabytes of memory times seconds.")
    peak_memory_mb: float | None = field(description="The most memory at one time, in megabytes.")


@strawberry.type(description="How far a node has come, by its own word.")
class NodeProgress:
    """Done of total."""

    done: float = field(description="How much is done.")
    total: float | None = field(description="How much there is to do, if that is known.")
    message: str | None = field(description="What it is doing.")


def may_see_tracebacks(actor: Actor | None) -> bool:
    """Tracebacks are for the owners of workflows: those who may edit them."""
    return actor is not None and actor.may(Permission.WORKFLOW_WRITE)


def stored_failure(error: Mapping[str, Any] | None, actor: Actor | None) -> Failure | None:
    """The failure in a row, if there is one."""
    return None if error is None else failure(msgspec.convert(error, errors.Failure), actor)


def failure(error: errors.Failure, actor: Actor | None) -> Failure:
    """The failure as this caller may see it: the traceback is for those who may edit workflows."""
    return Failure(
        code=error.code,
        category=error.category,
        message=error.message,
        node_id=error.node_id,
        attempt=error.attempt,
        retryable=error.retryable,
        details=cast(JSON, error.details),
        traceback=error.traceback if may_see_tracebacks(actor) else None,
    )


def output_artifact(artifact: e.Artifact | Mapping[str, Any] | None) -> OutputArtifact | None:
    """The reference to a large output."""
    if artifact is None:
        return None
    if not isinstance(artifact, e.Artifact):
        artifact = msgspec.convert(artifact, e.Artifact)
    return OutputArtifact(
        id=strawberry.ID(artifact.id),
        sha256=artifact.sha256,
        size=BigInt(artifact.size),
        media_type=artifact.media_type,
        preview=artifact.preview,
        url=f"/artifacts/{artifact.id}",
    )


def resource_usage(usage: e.Usage | Mapping[str, Any] | None) -> ResourceUsage | None:
    """What an attempt used."""
    if usage is None:
        return None
    if not isinstance(usage, e.Usage):
        usage = msgspec.convert(usage, e.Usage)
    return ResourceUsage(
        cpu_seconds=usage.cpu_seconds,
        memory_mb_seconds=usage.memory_mb_seconds,
        peak_memory_mb=usage.peak_memory_mb,
    )
