"""What can be done with a run under way: pause it, resume it, signal it, answer it, let a failed one go on."""

from __future__ import annotations

from typing import Annotated

import strawberry
from strawberry import argument, field

from engine.access import Permission
from flow import errors
from graph.instances import Instance
from graph.nodes import NodeExecution, execution, split_id
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed
from graph.scalars import JSON, BigInt
from graph.starting import reread

# ---- inputs ---------------------------------------------------------------------------------------------------


@strawberry.input(description="Which instance to pause.")
class InstancePauseInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")


@strawberry.input(description="Which instance to resume.")
class InstanceResumeInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")


@strawberry.input(description="A signal, and for whom it is.")
class InstanceSignalInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")
    name: str = field(description="The signal's name, as its `core/wait-signal` node says it.")
    payload: JSON | None = field(default=None, description="What comes with it: the waiting node's output.")


@strawberry.input(description="An answer, and to what.")
class ApprovalAnswerInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The instance's id.")
    path: str = field(description="The approval's place in the run: its node's id, in a loop its path.")
    approved: bool = field(description="True for yes.")
    answer: JSON | None = field(default=None, description="The form, filled in; it must fit the approval's `form`.")
    comment: str | None = field(default=None, description="What there is to say about it.")


@strawberry.input(description="Which failed node to run again.")
class NodeExecutionRetryInput:
    """See ``engine.controls``."""

    id: strawberry.ID = field(description="The node execution's id.")


# ---- payloads -------------------------------------------------------------------------------------------------


@strawberry.type(description="The pause is recorded: no node is started any more, running ones finish.")
class InstancePausePayload:
    """What is being paused."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The instance goes on.")
class InstanceResumePayload:
    """What is being resumed."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The signal is stored: for the node that waits for it, or the first that will.")
class InstanceSignalPayload:
    """Who got a signal."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The answer is stored, and the run goes on.")
class ApprovalAnswerPayload:
    """What was answered."""

    instance: Instance = field(description="The instance.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The node runs again, and its instance is RUNNING.")
class NodeExecutionRetryPayload:
    """What runs again."""

    instance: Instance = field(description="The instance.")
    node_execution: NodeExecution = field(description="The node.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


InstancePauseResult = Annotated[
    InstancePausePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("InstancePauseResult", description="A paused instance, or why it is not."),
]
InstanceResumeResult = Annotated[
    InstanceResumePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("InstanceResumeResult", description="A resumed instance, or why it is not."),
]
InstanceSignalResult = Annotated[
    InstanceSignalPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("InstanceSignalResult", description="A signalled instance, or why it is not."),
]
ApprovalAnswerResult = Annotated[
    ApprovalAnswerPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("ApprovalAnswerResult", description="An answered approval, or why it is not."),
]
NodeExecutionRetryResult = Annotated[
    NodeExecutionRetryPayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("NodeExecutionRetryResult", description="A node that runs again, or why it does not."),
]


@strawberry.type
class ControlMutation:
    """Letters to runs."""

    @mutation(Permission.INSTANCE_RUN, "Pause a run: running nodes finish, none is started. Twice is once.")
    async def instance_pause(
        self, info: Info, input: Annotated[InstancePauseInput, argument(description="Which one.")]
    ) -> InstancePauseResult:
        """Asks the holder to pause."""
        change_seq = await info.context.engine.instances.pause(caller(info), input.id)
        return InstancePausePayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(Permission.INSTANCE_RUN, "Let a paused run go on, whether somebody or a debugger paused it.")
    async def instance_resume(
        self, info: Info, input: Annotated[InstanceResumeInput, argument(description="Which one.")]
    ) -> InstanceResumeResult:
        """Asks the holder to go on."""
        change_seq = await info.context.engine.instances.resume(caller(info), input.id)
        return InstanceResumePayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(
        Permission.INSTANCE_RUN,
        "Send a signal to a run. One that comes before a node waits for it is kept for the first that will.",
    )
    async def instance_signal(
        self, info: Info, input: Annotated[InstanceSignalInput, argument(description="The signal.")]
    ) -> InstanceSignalResult:
        """Stores the signal."""
        change_seq = await info.context.engine.instances.signal(caller(info), input.id, input.name, input.payload)
        return InstanceSignalPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(
        Permission.INSTANCE_READ,
        "Answer the approval that a run waits for. Whom the approval names may answer; if it names nobody, whoever "
        "may run instances. Once answered it takes no second answer.",
    )
    async def approval_answer(
        self, info: Info, input: Annotated[ApprovalAnswerInput, argument(description="The answer.")]
    ) -> ApprovalAnswerResult:
        """Stores the answer."""
        change_seq = await info.context.engine.instances.answer(
            caller(info), input.id, input.path, input.approved, input.answer, input.comment
        )
        return ApprovalAnswerPayload(instance=await reread(info, input.id), change_seq=BigInt(change_seq))

    @mutation(
        Permission.INSTANCE_RUN,
        "Run a failed node of a FAILED run again, and let the run go on from there: what was skipped or stopped "
        "because of it becomes PENDING again.",
    )
    async def node_execution_retry(
        self, info: Info, input: Annotated[NodeExecutionRetryInput, argument(description="Which node.")]
    ) -> NodeExecutionRetryResult:
        """Reopens the run."""
        named = split_id(input.id)
        if named is None:
            raise errors.NotFound("node execution", input.id, path=("input", "id"))
        instance_id, path = named
        change_seq = await info.context.engine.instances.retry(caller(info), instance_id, [path])
        shown = await reread(info, instance_id)
        row = await info.context.load.node.load((instance_id, path))
        if row is None:
            raise errors.NotFound("node execution", input.id, path=("input", "id"))
        return NodeExecutionRetryPayload(
            instance=shown, node_execution=execution(row, caller(info)), change_seq=BigInt(change_seq)
        )
