"""What each change of a workflow takes, and what it answers: an input, a payload and a result for every mutation.

They look alike now and are apart all the same, so that one can grow without breaking the clients of another.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import strawberry
from strawberry import field

from flow.versions import Bump
from graph.definitions import DefinitionInput
from graph.objects import choice
from graph.results import Conflict, NotFound, PermissionDenied, ValidationFailed
from graph.scalars import BigInt, SemVer
from graph.versions import WorkflowVersion
from graph.workflows import Workflow

# ---- inputs ---------------------------------------------------------------------------------------------------


@strawberry.enum(description="What a new workflow begins as.")
class InitialStatus(Enum):
    """Two of the states."""

    ACTIVE = choice("ACTIVE", "Runs at once; the definition must have no problem.")
    DRAFT = choice("DRAFT", "Does not run; the definition may have problems, which are kept.")


@strawberry.enum(description="What an import does where the project has a workflow of that name.")
class OnConflict(Enum):
    """Refuse or go on."""

    REFUSE = choice("refuse", "Is refused as a Conflict.")
    NEW_VERSION = choice("new_version", "Makes a new version of it, if anything differs.")


@strawberry.enum(description="How a definition is written down.")
class ExportFormat(Enum):
    """Two notations of one document."""

    YAML = choice("yaml", "YAML, for people.")
    JSON = choice("json", "JSON, for programs.")


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
        description="The id of the version that you started from. If it is no longer current, nothing is "
        "overwritten: Conflict."
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


@strawberry.input(description="Which workflow to delete, and how.")
class WorkflowDeleteInput:
    """See ``engine.workflows``."""

    id: strawberry.ID = field(description="The workflow's id.")
    permanent: bool = field(
        default=False,
        description="False: it can be restored. True: it, its versions and its instances are gone for good.",
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


@strawberry.input(description="Which workflow to publish.")
class WorkflowPublishInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to activate.")
class WorkflowActivateInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to deactivate.")
class WorkflowDeactivateInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to hide.")
class WorkflowHideInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to show.")
class WorkflowShowInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to archive.")
class WorkflowArchiveInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


@strawberry.input(description="Which workflow to restore.")
class WorkflowRestoreInput:
    """By id."""

    id: strawberry.ID = field(description="The workflow's id.")


# ---- payloads -------------------------------------------------------------------------------------------------


@strawberry.type
class StepPayload:
    """What every step of a workflow's life answers; the schema has its children only."""

    workflow: Workflow = field(description="The workflow after the change.")
    changed: bool = field(description="False if everything was as asked for already: nothing was written.")
    change_seq: BigInt = field(description="Your stream has caught up when it is here.")


@strawberry.type
class VersionPayload(StepPayload):
    """What every change of a definition answers; the schema has its children only."""

    version: WorkflowVersion = field(description="The version that was made, named or restored.")


@strawberry.type(description="The workflow was made.")
class WorkflowCreatePayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The definition was changed.")
class WorkflowUpdatePayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The version was made.")
class WorkflowVersionCreatePayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The old version is current again, as a new one.")
class WorkflowVersionRestorePayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The version has its name.")
class WorkflowVersionLabelPayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The document was stored.")
class WorkflowImportPayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="The copy was made.")
class WorkflowDuplicatePayload(VersionPayload):
    """The workflow and the version."""


@strawberry.type(description="Done: DRAFT to ACTIVE.")
class WorkflowPublishPayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: INACTIVE or ARCHIVED to ACTIVE.")
class WorkflowActivatePayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: ACTIVE or HIDDEN to INACTIVE.")
class WorkflowDeactivatePayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: ACTIVE or INACTIVE to HIDDEN.")
class WorkflowHidePayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: HIDDEN to ACTIVE.")
class WorkflowShowPayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: read-only, not to be run.")
class WorkflowArchivePayload(StepPayload):
    """The workflow."""


@strawberry.type(description="Done: a deleted workflow to INACTIVE.")
class WorkflowRestorePayload(StepPayload):
    """The workflow."""


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


# ---- results --------------------------------------------------------------------------------------------------

WorkflowCreateResult = Annotated[
    WorkflowCreatePayload | ValidationFailed | Conflict | PermissionDenied,
    strawberry.union("WorkflowCreateResult", description="The workflow was made, or why not."),
]
WorkflowUpdateResult = Annotated[
    WorkflowUpdatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowUpdateResult", description="The definition was changed, or why not."),
]
WorkflowVersionCreateResult = Annotated[
    WorkflowVersionCreatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowVersionCreateResult", description="The version was made, or why not."),
]
WorkflowVersionRestoreResult = Annotated[
    WorkflowVersionRestorePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union(
        "WorkflowVersionRestoreResult", description="The old version is current again, as a new one, or why not."
    ),
]
WorkflowVersionLabelResult = Annotated[
    WorkflowVersionLabelPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowVersionLabelResult", description="The version has its name, or why not."),
]
WorkflowImportResult = Annotated[
    WorkflowImportPayload | ValidationFailed | Conflict | PermissionDenied,
    strawberry.union("WorkflowImportResult", description="The document was stored, or why not."),
]
WorkflowDuplicateResult = Annotated[
    WorkflowDuplicatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowDuplicateResult", description="The copy was made, or why not."),
]
WorkflowPublishResult = Annotated[
    WorkflowPublishPayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowPublishResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowActivateResult = Annotated[
    WorkflowActivatePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowActivateResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowDeactivateResult = Annotated[
    WorkflowDeactivatePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowDeactivateResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowHideResult = Annotated[
    WorkflowHidePayload | ValidationFailed | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowHideResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowShowResult = Annotated[
    WorkflowShowPayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowShowResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowArchiveResult = Annotated[
    WorkflowArchivePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowArchiveResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowRestoreResult = Annotated[
    WorkflowRestorePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowRestoreResult", description="The workflow after the step, or why it was not taken."),
]
WorkflowDeleteResult = Annotated[
    WorkflowDeletePayload | NotFound | Conflict | PermissionDenied,
    strawberry.union("WorkflowDeleteResult", description="The workflow is deleted, or why not."),
]
WorkflowExportResult = Annotated[
    WorkflowExportPayload | NotFound | PermissionDenied,
    strawberry.union("WorkflowExportResult", description="The text, or why there is none."),
]
