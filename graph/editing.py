"""What changes workflows: one mutation for each step of their lives, each with a payload and its refusals."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

import strawberry
from strawberry import argument, field

from engine.access import Permission
from engine.workflows import Changed
from flow import errors, states
from flow.versions import FIRST
from flow.versions import SemVer as FlowSemVer
from graph.definitions import Bump, DefinitionInput, document
from graph.permissions import Info, caller, mutation
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed
from graph.scalars import BigInt, SemVer
from graph.workflows import Workflow, WorkflowVersion, version, workflow

WRITE = Permission.WORKFLOW_WRITE


# ---- inputs ---------------------------------------------------------------------------------------------------


@strawberry.enum(description="What a new workflow begins as.")
class InitialStatus(Enum):
    """Two of the states."""

    ACTIVE = strawberry.enum_value("ACTIVE", description="Runs at once; the definition must have no problem.")
    DRAFT = strawberry.enum_value("DRAFT", description="Does not run; the definition may have problems, which are kept.")


@strawberry.enum(description="What an import does where the project has a workflow of that name.")
class OnConflict(Enum):
    """Refuse or go on."""

    REFUSE = strawberry.enum_value("refuse", description="Is refused as a Conflict.")
    NEW_VERSION = strawberry.enum_value("new_version", description="Makes a new version of it, if anything differs.")


@strawberry.enum(description="How a definition is written down.")
class ExportFormat(Enum):
    """Two notations of one document."""

    YAML = strawberry.enum_value("yaml", description="YAML, for people.")
    JSON = strawberry.enum_value("json", description="JSON, for programs.")


@strawberry.input(description="A new workflow.")
class WorkflowCreateInput:
    """See ``engine.workflows``."""

    definition: DefinitionInput = field(description="Its definition, which holds its name.")
    status: InitialStatus = field(default=InitialStatus.ACTIVE, description="What it begins as.")
    version: SemVer | None = field(default=None, description="The first version's number; 1.0.0 if left out.")
    label: str | None = field(default=None, description="A name for the first version.")
    change_note: str | None = field(default=None, description="What this version is, in your words.")


@strawberry.input(description="A change of a workflow's definition: it makes a new current version.")
class WorkflowUpdateInput:
    """See ``engine.workflows``."""

    id: strawberry.ID = field(description="The workflow's id.")
    base_version: strawberry.ID = field(
        description="The id of the version that you started from. If it is no longer current, nothing is overwritten: Conflict."
    )
    definition: DefinitionInput = field(description="The whole new definition.")
    bump: Bump | None = field(default=None, description="The kind of change; derived if left out.")
    label: str | None = field(default=None, description="A name for the new version.")
    change_note: str | None = field(default=None, description="What you changed, in your words.")
    publish: bool = field(default=False, description="Also make a DRAFT ACTIVE.")


@strawberry.input(description="A version beside the current one, to be tried, compared and restored later.")
class WorkflowVersionCreateInput:
    """See ``engine.workflows``."""

    workflow: strawberry.ID = field(description="The workflow's id.")
    definition: DefinitionInput = field(description="The version's whole definition.")
    base_version: strawberry.ID | None = field(
        default=None, description="The id of the version that it descends from; the current one if left out."
    )
    bump: Bump | None = field(default=None, description="The kind of change; derived if left out.")
    label: str | None = field(default=None, description="A name for the version.")
    change_note: str | None = field(default=None, description="What you changed, in your words.")


@strawberry.input(description="Go back: make a new current version equal to an old one.")
class WorkflowVersionRestoreInput:
    """See ``engine.workflows``."""

    workflow: strawberry.ID = field(description="The workflow's id.")
    version: strawberry.ID = field(description="The id of the version to go back to.")
    base_version: strawberry.ID | None = field(
        default=None, description="Only if this version's id is still the current one's; else Conflict."
    )
    change_note: str | None = field(default=None, description="Why, in your words.")


@strawberry.input(description="A name for a version.")
class WorkflowVersionLabelInput:
    """See ``engine.workflows``."""

    version: strawberry.ID = field(description="The version's id.")
    label: str | None = field(default=None, description="Its name; null takes the name away.")


@strawberry.input(description="Which workflow.")
class WorkflowIdInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to delete, and how.")
class WorkflowDeleteInput:
    """See ``engine.workflows``."""

    id: strawberry.ID = field(description="The workflow's id.")
    permanent: bool = field(
        default=False, description="False: it can be restored. True: it, its versions and its instances are gone for good."
    )


@strawberry.input(description="A workflow from a document, such as an export.")
class WorkflowImportInput:
    """See ``engine.workflows``."""

    definition: DefinitionInput = field(description="The document; older spellings and ComfyUI graphs are read too.")
    on_conflict: OnConflict = field(default=OnConflict.REFUSE, description="What to do where its name exists.")
    status: InitialStatus = field(default=InitialStatus.ACTIVE, description="What a new workflow begins as.")
    change_note: str | None = field(default=None, description="What this version is, in your words.")


@strawberry.input(description="Which definition to write down, and how.")
class WorkflowExportInput:
    """See ``engine.workflows``."""

    id: strawberry.ID = field(description="The workflow's id.")
    version: strawberry.ID | None = field(default=None, description="A version's id; the current one's if left out.")
    format: ExportFormat = field(default=ExportFormat.YAML, description="YAML or JSON.")


@strawberry.input(description="A copy under another name. It is a DRAFT, so that no trigger fires twice unseen.")
class WorkflowDuplicateInput:
    """See ``engine.workflows``."""

    id: strawberry.ID = field(description="The workflow's id.")
    name: str = field(description="The copy's name.")
    version: strawberry.ID | None = field(default=None, description="A version's id; the current one's if left out.")
    change_note: str | None = field(default=None, description="Why, in your words.")


# ---- payloads and results -------------------------------------------------------------------------------------


@strawberry.type(description="The workflow after the change.")
class WorkflowPayload:
    """The workflow, and how far the change is in the project's order."""

    workflow: Workflow = field(description="The workflow.")
    changed: bool = field(description="False if everything was as asked for already: nothing was written.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The workflow and the version that was made.")
class WorkflowVersionPayload:
    """The version too."""

    workflow: Workflow = field(description="The workflow.")
    version: WorkflowVersion = field(description="The version that was made, named or restored.")
    changed: bool = field(description="False if everything was as asked for already: nothing was written.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="The workflow is deleted.")
class WorkflowDeletePayload:
    """Its id, for it may be gone."""

    id: strawberry.ID = field(description="The workflow's id.")
    workflow: Workflow | None = field(description="The workflow; null if it is gone for good.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type(description="A definition as text. Importing it changes nothing.")
class WorkflowExportPayload:
    """The text."""

    workflow: Workflow = field(description="The workflow.")
    text: str = field(description="The definition.")


WorkflowVersionResult = Annotated[
    WorkflowVersionPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowVersionResult", description="A workflow with the version that was made, or why not."),
]
WorkflowCreateResult = Annotated[
    WorkflowVersionPayload | ValidationFailed | Conflict | PermissionDenied,
    strawberry.union("WorkflowCreateResult", description="A new workflow with its version, or why there is none."),
]
WorkflowResult = Annotated[
    WorkflowPayload | NotFound | Conflict | ValidationFailed | PermissionDenied,
    strawberry.union("WorkflowResult", description="The workflow after the change, or why it was not changed."),
]
WorkflowDeleteResult = Annotated[
    WorkflowDeletePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowDeleteResult", description="The deleted workflow, or why it is not deleted."),
]
WorkflowExportResult = Annotated[
    WorkflowExportPayload | NotFound | PermissionDenied,
    strawberry.union("WorkflowExportResult", description="The text, or why there is none."),
]

WorkflowInput = Annotated[WorkflowIdInput, argument(name="input", description="Which workflow.")]


@strawberry.type
class WorkflowMutation:
    """The life of workflows."""

    @mutation(WRITE, "Make a new workflow.")
    async def workflow_create(
        self, info: Info, input: Annotated[WorkflowCreateInput, argument(description="The new workflow.")]
    ) -> WorkflowCreateResult:
        """By the engine."""
        changed = await info.context.engine.workflows.create(
            caller(info),
            document(input.definition),
            status=_status(input.status),
            change_note=input.change_note,
            version=FlowSemVer.parse(input.version) if input.version else FIRST,
            label=input.label,
        )
        return await _version_payload(info, changed)

    @mutation(WRITE, "Change a workflow's definition: makes a new current version, or none if nothing differs.")
    async def workflow_update(
        self, info: Info, input: Annotated[WorkflowUpdateInput, argument(description="The change.")]
    ) -> WorkflowVersionResult:
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
        return await _version_payload(info, changed)

    @mutation(WRITE, "Make a version beside the current one.")
    async def workflow_version_create(
        self, info: Info, input: Annotated[WorkflowVersionCreateInput, argument(description="The version.")]
    ) -> WorkflowVersionResult:
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
        return await _version_payload(info, changed)

    @mutation(WRITE, "Go back to an old version: makes a new current version equal to it.")
    async def workflow_version_restore(
        self, info: Info, input: Annotated[WorkflowVersionRestoreInput, argument(description="Where to go back to.")]
    ) -> WorkflowVersionResult:
        """By the engine."""
        changed = await info.context.engine.workflows.version_restore(
            caller(info),
            input.workflow,
            input.version,
            base_version_id=input.base_version,
            change_note=input.change_note,
        )
        return await _version_payload(info, changed)

    @mutation(WRITE, "Name a version, or take its name away.")
    async def workflow_version_label(
        self, info: Info, input: Annotated[WorkflowVersionLabelInput, argument(description="The name.")]
    ) -> WorkflowVersionResult:
        """By the engine."""
        changed = await info.context.engine.workflows.version_label(caller(info), input.version, input.label)
        return await _version_payload(info, changed)

    @mutation(WRITE, "DRAFT to ACTIVE: it can run, and its triggers fire. Its definition must have no problem.")
    async def workflow_publish(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.publish(caller(info), input.id))

    @mutation(WRITE, "INACTIVE or ARCHIVED to ACTIVE: its triggers fire again.")
    async def workflow_activate(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.activate(caller(info), input.id))

    @mutation(WRITE, "ACTIVE or HIDDEN to INACTIVE: its triggers stop; it can still be run by hand.")
    async def workflow_deactivate(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.deactivate(caller(info), input.id))

    @mutation(WRITE, "Leave it out of lists; it works on.")
    async def workflow_hide(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.hide(caller(info), input.id))

    @mutation(WRITE, "HIDDEN to ACTIVE: it is in lists again.")
    async def workflow_show(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.show(caller(info), input.id))

    @mutation(WRITE, "Make it read-only, and not to be run, until it is activated again.")
    async def workflow_archive(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.archive(caller(info), input.id))

    @mutation(WRITE, "Bring a deleted workflow back: INACTIVE, or as a DRAFT if its definition has problems.")
    async def workflow_restore(self, info: Info, input: WorkflowInput) -> WorkflowResult:
        """By the engine."""
        return await _payload(info, await info.context.engine.workflows.restore(caller(info), input.id))

    @mutation(WRITE, "Delete a workflow: to be restored, or for good if you say so and nothing of it runs.")
    async def workflow_delete(
        self, info: Info, input: Annotated[WorkflowDeleteInput, argument(description="Which one, and how.")]
    ) -> WorkflowDeleteResult:
        """By the engine."""
        actor = caller(info)
        changed = await info.context.engine.workflows.delete(actor, input.id, permanent=input.permanent)
        info.context.refresh()
        row = await info.context.load.workflow.load(input.id)
        return WorkflowDeletePayload(
            id=input.id,
            workflow=None if row is None else workflow(row, actor),
            change_seq=BigInt(changed.change_seq),
        )

    @mutation(WRITE, "Make a workflow from a document, or a new version of the one of that name.")
    async def workflow_import(
        self, info: Info, input: Annotated[WorkflowImportInput, argument(description="The document.")]
    ) -> WorkflowCreateResult:
        """By the engine."""
        on_conflict: Literal["refuse", "new_version"] = (
            "new_version" if input.on_conflict is OnConflict.NEW_VERSION else "refuse"
        )
        changed = await info.context.engine.workflows.import_(
            caller(info),
            document(input.definition),
            on_conflict=on_conflict,
            status=_status(input.status),
            change_note=input.change_note,
        )
        return await _version_payload(info, changed)

    @mutation(Permission.WORKFLOW_READ, "Write a definition down, to keep it or to import it elsewhere. Changes nothing.")
    async def workflow_export(
        self, info: Info, input: Annotated[WorkflowExportInput, argument(description="Which one, and how.")]
    ) -> WorkflowExportResult:
        """By the engine."""
        text = await info.context.engine.workflows.export(
            caller(info),
            input.id,
            version_id=input.version,
            format="json" if input.format is ExportFormat.JSON else "yaml",
        )
        return WorkflowExportPayload(workflow=await _workflow(info, input.id), text=text)

    @mutation(WRITE, "Copy a workflow under another name. The copy is a DRAFT.")
    async def workflow_duplicate(
        self, info: Info, input: Annotated[WorkflowDuplicateInput, argument(description="Which one, and its name.")]
    ) -> WorkflowVersionResult:
        """By the engine."""
        changed = await info.context.engine.workflows.duplicate(
            caller(info), input.id, input.name, version_id=input.version, change_note=input.change_note
        )
        return await _version_payload(info, changed)


def _status(given: InitialStatus) -> Literal[states.WorkflowStatus.DRAFT, states.WorkflowStatus.ACTIVE]:
    return states.WorkflowStatus.DRAFT if given is InitialStatus.DRAFT else states.WorkflowStatus.ACTIVE


async def _workflow(info: Info, id: str) -> Workflow:
    """The workflow as it is now."""
    info.context.refresh()
    row = await info.context.load.workflow.load(id)
    if row is None:
        raise errors.NotFound("workflow", id)
    return workflow(row, caller(info))


async def _payload(info: Info, changed: Changed) -> WorkflowPayload:
    return WorkflowPayload(
        workflow=await _workflow(info, changed.workflow_id),
        changed=changed.changed,
        change_seq=BigInt(changed.change_seq),
    )


async def _version_payload(info: Info, changed: Changed) -> WorkflowVersionPayload:
    found = await _workflow(info, changed.workflow_id)
    row = await info.context.load.version.load(changed.version_id or "")
    if row is None:
        raise errors.NotFound("workflow version", changed.version_id or "")
    return WorkflowVersionPayload(
        workflow=found, version=version(row), changed=changed.changed, change_seq=BigInt(changed.change_seq)
    )
