"""The schema: every query, mutation and subscription in one place, and its text as the contract.

``python -m graph.schema > schema.graphql`` exports it.
"""

from __future__ import annotations

import sys
from functools import cache

import strawberry
from graphql import (
    GraphQLArgument,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    GraphQLSchema,
    Undefined,
)
from strawberry.schema.config import StrawberryConfig

from graph.batches import BatchMutation, BatchQuery
from graph.bulk import BulkMutation
from graph.comparing import ComparingQuery
from graph.controlling import ControlMutation
from graph.debugging import DebugMutation, DebugQuery
from graph.definitions import DefinitionQuery
from graph.editing import WorkflowMutation
from graph.events import KINDS
from graph.forking import ForkMutation
from graph.instances import InstanceQuery
from graph.limiting import LimitMutation
from graph.scalars import SCALARS
from graph.server import ServerQuery
from graph.server_editing import ServersMutation
from graph.servers import ServersQuery, ServersSubscription
from graph.starting import InstanceMutation
from graph.subscriptions import InstanceSubscription
from graph.task_streams import TaskSubscription
from graph.tasking import TaskMutation
from graph.tasks import TaskQuery
from graph.workers import WorkerMutation, WorkerQuery, WorkerSubscription
from graph.workflows import WorkflowQuery


@strawberry.type(description="Everything that can be looked at.")
class Query(
    ServerQuery,
    WorkflowQuery,
    DefinitionQuery,
    InstanceQuery,
    ComparingQuery,
    DebugQuery,
    WorkerQuery,
    ServersQuery,
    TaskQuery,
    BatchQuery,
):
    """The fields are where their concepts are."""


@strawberry.type(description="Everything that can be done. Each answers a union: what was done, or why it was not.")
class Mutation(
    WorkflowMutation,
    InstanceMutation,
    ControlMutation,
    ForkMutation,
    DebugMutation,
    BulkMutation,
    LimitMutation,
    WorkerMutation,
    ServersMutation,
    TaskMutation,
    BatchMutation,
):
    """The fields are where their concepts are."""


@strawberry.type(description="Everything that can be followed.")
class Subscription(InstanceSubscription, WorkerSubscription, ServersSubscription, TaskSubscription):
    """The fields are where their concepts are."""


@cache
def build_schema() -> strawberry.Schema:
    """The schema. It holds no state: what resolvers work with comes in the context (``graph.context``)."""
    schema = strawberry.Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=list(KINDS.values()),
        config=StrawberryConfig(scalar_map=SCALARS),
    )
    _leave_out_null_defaults(schema._schema)
    return schema


def _leave_out_null_defaults(schema: GraphQLSchema) -> None:
    """`= null` says nothing that an optional argument does not say, and code generators stumble over it."""
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            inputs: list[GraphQLInputField | GraphQLArgument] = list(kind.fields.values())
        elif isinstance(kind, GraphQLObjectType | GraphQLInterfaceType):
            inputs = [argument for each in kind.fields.values() for argument in each.args.values()]
        else:
            continue
        for each in inputs:
            if each.default_value is None:
                each.default_value = Undefined


def sdl() -> str:
    """The schema as text."""
    return build_schema().as_str() + "\n"


if __name__ == "__main__":
    sys.stdout.write(sdl())
