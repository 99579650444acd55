"""What changes workflows: one mutation for each step of their lives. The decisions are the engine's."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import strawberry
from strawberry import argument

from engine.access import Permission
from engine.workflows import Changed
from flow import errors, states
from flow.versions import FIRST
from flow.versions import SemVer as FlowSemVer
from graph import changes as c
from graph.definitions import document
from graph.permissions import Info, caller, mutation
from graph.scalars import BigInt
from graph.versions import version
from graph.workflows import Workflow, workflow

WRITE = Permission.WORKFLOW_WRITE
Step = TypeVar("Step", bound=c.StepPayload)
Version = TypeVar("Version", bound=c.VersionPayload)
THIS = "Which workflow."


@strawberry.type
class WorkflowMutation:
    """The life of workflows."""

    @mutation(WRITE, "Make a new workflow.")
    async def workflow_create(
        self, info: Info, input: Annotated[c.WorkflowCreateInput, argument(description="The new workflow.")]
    ) -> c.WorkflowCreateResult:
        """By the engine."""
        changed = await info.context.engine.workflows.create(
            caller(info),
            document(input.definition),
            status=_status(input.status),
            change_note=input.change_note,
            version=FlowSemVer.parse(input.version) if input.version else FIRST,
            label=input.label,
        )
        return await _version_payload(c.WorkflowCreatePayload, info, changed)

    @mutation(WRITE, "Change a workflow's definition: makes a new current version, or none if nothing differs.")
    async def workflow_update(
        self, info: Info, input: Annotated[c.WorkflowUpdateInput, argument(description="The change.")]
    ) -> c.WorkflowUpdateResult:
        """By the engine."""
        changed = await info.context.engine.workflows.update(
            caller(info),
            input.id,
            input.base_version,
            document(input.definition),
            bump=input.bump,
            change_note=input.change_note,
            label=input.label,
            publish=input.publish,
        )
        return await _version_payload(c.WorkflowUpdatePayload, info, changed)

    @mutation(WRITE, "Make a version beside the current one.")
    async def workflow_version_create(
        self, info: Info, input: Annotated[c.WorkflowVersionCreateInput, argument(description="The version.")]
    ) -> c.WorkflowVersionCreateResult:
        """By the engine."""
        changed = await info.context.engine.workflows.version_create(
            caller(info),
            input.workflow,
            document(input.definition),
            base_version_id=input.base_version,
            bump=input.bump,
            change_note=input.change_note,
            label=input.label,
        )
        return await _version_payload(c.WorkflowVersionCreatePayload, info, changed)

    @mutation(WRITE, "Go back to an old version: makes a new current version equal to it.")
    async def workflow_version_restore(
        self, info: Info, input: Annotated[c.WorkflowVersionRestoreInput, argument(description="Where to go back to.")]
    ) -> c.WorkflowVersionRestoreResult:
        """By the engine."""
        changed = await info.context.engine.workflows.version_restore(
            caller(info),
            input.workflow,
            input.version,
            base_version_id=input.base_version,
            change_note=input.change_note,
        )
        return await _version_payload(c.WorkflowVersionRestorePayload, info, changed)

    @mutation(WRITE, "Name a version, or take its name away.")
    async def workflow_version_label(
        self, info: Info, input: Annotated[c.WorkflowVersionLabelInput, argument(description="The name.")]
    ) -> c.WorkflowVersionLabelResult:
        """By the engine."""
        changed = await info.context.engine.workflows.version_label(caller(info), input.version, input.label)
        return await _version_payload(c.WorkflowVersionLabelPayload, info, changed)

    @mutation(WRITE, "DRAFT to ACTIVE: it can run, and its triggers fire. Its definition must have no problem.")
    async def workflow_publish(
        self, info: Info, input: Annotated[c.WorkflowPublishInput, argument(description=THIS)]
    ) -> c.WorkflowPublishResult:
        """By the engine."""
        return await _payload(
            c.WorkflowPublishPayload, info, await info.context.engine.workflows.publish(caller(info), input.id)
        )

    @mutation(WRITE, "INACTIVE or ARCHIVED to ACTIVE: its triggers fire again.")
    async def workflow_activate(
        self, info: Info, input: Annotated[c.WorkflowActivateInput, argument(description=THIS)]
    ) -> c.WorkflowActivateResult:
        """By the engine."""
        return await _payload(
            c.WorkflowActivatePayload, info, await info.context.engine.workflows.activate(caller(info), input.id)
        )

    @mutation(WRITE, "ACTIVE or HIDDEN to INACTIVE: its triggers stop; it can still be run by hand.")
    async def workflow_deactivate(
        self, info: Info, input: Annotated[c.WorkflowDeactivateInput, argument(description=THIS)]
    ) -> c.WorkflowDeactivateResult:
        """By the engine."""
        return await _payload(
            c.WorkflowDeactivatePayload, info, await info.context.engine.workflows.deactivate(caller(info), input.id)
        )

    @mutation(WRITE, "Leave it out of lists; it works on.")
    async def workflow_hide(
        self, info: Info, input: Annotated[c.WorkflowHideInput, argument(description=THIS)]
    ) -> c.WorkflowHideResult:
        """By the engine."""
        return await _payload(
            c.WorkflowHidePayload, info, await info.context.engine.workflows.hide(caller(info), input.id)
        )

    @mutation(WRITE, "HIDDEN to ACTIVE: it is in lists again.")
    async def workflow_show(
        self, info: Info, input: Annotated[c.WorkflowShowInput, argument(description=THIS)]
    ) -> c.WorkflowShowResult:
        """By the engine."""
        return await _payload(
            c.WorkflowShowPayload, info, await info.context.engine.workflows.show(caller(info), input.id)
        )

    @mutation(WRITE, "Make it read-only, and not to be run, until it is activated again.")
    async def workflow_archive(
        self, info: Info, input: Annotated[c.WorkflowArchiveInput, argument(description=THIS)]
    ) -> c.WorkflowArchiveResult:
        """By the engine."""
        return await _payload(
            c.WorkflowArchivePayload, info, await info.context.engine.workflows.archive(caller(info), input.id)
        )

    @mutation(WRITE, "Bring a deleted workflow back: INACTIVE, or as a DRAFT if its definition has problems.")
    async def workflow_restore(
        self, info: Info, input: Annotated[c.WorkflowRestoreInput, argument(description=THIS)]
    ) -> c.WorkflowRestoreResult:
        """By the engine."""
        return await _payload(
            c.WorkflowRestorePayload, info, await info.context.engine.workflows.restore(caller(info), input.id)
        )

    @mutation(WRITE, "Delete a workflow: to be restored, or for good if you say so and nothing of it runs.")
    async def workflow_delete(
        self, info: Info, input: Annotated[c.WorkflowDeleteInput, argument(description="Which one, and how.")]
    ) -> c.WorkflowDeleteResult:
        """By the engine."""
        actor = caller(info)
        changed = await info.context.engine.workflows.delete(actor, input.id, permanent=input.permanent)
        info.context.refresh()
        row = await info.context.load.workflow.load(input.id)
        return c.WorkflowDeletePayload(
            id=input.id,
            workflow=None if row is None else workflow(row, actor),
            change_seq=BigInt(changed.change_seq),
        )

    @mutation(WRITE, "Make a workflow from a document, or a new version of the one of that name.")
    async def workflow_import(
        self, info: Info, input: Annotated[c.WorkflowImportInput, argument(description="The document.")]
    ) -> c.WorkflowImportResult:
        """By the engine."""
        on_conflict: Literal["refuse", "new_version"] = (
            "new_version" if input.on_conflict is c.OnConflict.NEW_VERSION else "refuse"
        )
        changed = await info.context.engine.workflows.import_(
            caller(info),
            document(input.definition),
            on_conflict=on_conflict,
            status=_status(input.status),
            change_note=input.change_note,
        )
        return await _version_payload(c.WorkflowImportPayload, info, changed)

    @mutation(
        Permission.WORKFLOW_READ, "Write a definition down, to keep it or to import it elsewhere. Changes nothing."
    )
    async def workflow_export(
        self, info: Info, input: Annotated[c.WorkflowExportInput, argument(description="Which one, and how.")]
    ) -> c.WorkflowExportResult:
        """By the engine."""
        text = await info.context.engine.workflows.export(
            caller(info),
            input.id,
            version_id=input.version,
            format="json" if input.format is c.ExportFormat.JSON else "yaml",
        )
        return c.WorkflowExportPayload(workflow=await _workflow(info, input.id), text=text)

    @mutation(WRITE, "Copy a workflow under another name. The copy is a DRAFT.")
    async def workflow_duplicate(
        self, info: Info, input: Annotated[c.WorkflowDuplicateInput, argument(description="Which one, and its name.")]
    ) -> c.WorkflowDuplicateResult:
        """By the engine."""
        changed = await info.context.engine.workflows.duplicate(
            caller(info), input.id, input.name, version_id=input.version, change_note=input.change_note
        )
        return await _version_payload(c.WorkflowDuplicatePayload, info, changed)


def _status(given: c.InitialStatus) -> Literal[states.WorkflowStatus.DRAFT, states.WorkflowStatus.ACTIVE]:
    return states.WorkflowStatus.DRAFT if given is c.InitialStatus.DRAFT else states.WorkflowStatus.ACTIVE


async def _workflow(info: Info, id: str) -> Workflow:
    """The workflow as it is now."""
    info.context.refresh()
    row = await info.context.load.workflow.load(id)
    if row is None:
        raise errors.NotFound("workflow", id)
    return workflow(row, caller(info))


async def _payload(kind: type[Step], info: Info, changed: Changed) -> Step:
    return kind(
        workflow=await _workflow(info, changed.workflow_id),
        changed=changed.changed,
        change_seq=BigInt(changed.change_seq),
    )


async def _version_payload(kind: type[Version], info: Info, changed: Changed) -> Version:
    found = await _workflow(info, changed.workflow_id)
    row = await info.context.load.version.load(changed.version_id or "")
    if row is None:
        raise errors.NotFound("workflow version", changed.version_id or "")
    return kind(workflow=found, version=version(row), changed=changed.changed, change_seq=BigInt(changed.change_seq))
