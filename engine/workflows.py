"""The life of workflows and their versions: created, changed, published, hidden, archived, deleted.

Documents are read and checked before the transaction; the decision is made in it, under the project's row
(``changes.take``), so that two editors never overwrite each other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from db.session import Database
from db.store import changes
from db.store import workflows as store
from db.store.workflows import StoredVersion, StoredWorkflow
from engine import clock
from engine import workflow_rules as rules
from engine.access import Actor, Permission
from engine.definitions import Definitions, PinnedVersion, ReadDocument, read_document
from flow import documents, older
from flow.definition import MAX_NODES, TypeInfo
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.states import WORKFLOW_TRANSITIONS, WorkflowStatus, WorkflowStep, after
from flow.versions import FIRST, Bump, SemVer, bump, first_number, kind_of_change

if TYPE_CHECKING:
    from sqlalchemy import Connection

DELETE_BATCH = 200


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change left behind. ``changed`` is False if everything was as asked for already: nothing was written.

    ``version_id`` is the version that was made, or else the current one. ``change_seq`` is the change's place in
    the project.
    """

    workflow_id: str
    version_id: str | None
    change_seq: int
    changed: bool = True


class _AsItWas(Exception):
    """Ends a transaction that has nothing to write: its place in the project's order is given back."""

    def __init__(self, result: Changed) -> None:
        self.result = result


class Workflows:
    """Changes to the workflows of a project.

    Every method raises NotFound for what is not in the actor's project, Denied without the permission,
    StorageUnavailable if nothing can be stored now; ``publish(project_id, change_seq)`` is called after each commit.
    """

    def __init__(
        self,
        db: Database,
        node_types: Callable[[], Mapping[str, TypeInfo]],
        publish: Callable[[str, int], None],
        max_nodes: int = MAX_NODES,
        *,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self._db = db
        self._node_types = node_types
        self._limits = documents.Limits(max_nodes)
        self._publish = publish
        self._now = now
        self._definitions = Definitions(db, node_types)

    # Looking

    async def version(self, version_id: str) -> PinnedVersion:
        """The definition that an instance runs, in whatever project; kept in memory, for versions never change.

        Raises NotFound, or Invalid if the version has problems (a DRAFT's, or a node type that is gone).
        """
        return await self._definitions.get(version_id)

    async def get(self, actor: Actor, workflow_id: str) -> StoredWorkflow:
        """The workflow, whatever its status."""
        actor.require(Permission.WORKFLOW_READ)
        return rules.found(await self._db.read(store.workflow, actor.project_id, workflow_id), workflow_id)

    async def named(self, actor: Actor, name: str) -> StoredWorkflow | None:
        """The workflow of that name, whatever its status."""
        actor.require(Permission.WORKFLOW_READ)
        return await self._db.read(store.workflow_named, actor.project_id, name)

    async def validate(self, actor: Actor, document: Any) -> list[Problem]:
        """Everything that is wrong with a document (JSON values, or text: JSON or YAML)."""
        actor.require(Permission.WORKFLOW_READ)
        try:
            return list((await self._read(document)).problems)
        except Invalid as refusal:
            return refusal.problems

    async def export(
        self, actor: Actor, workflow_id: str, *, version_id: str | None = None, format: Literal["yaml", "json"] = "yaml"
    ) -> str:
        """The definition as text: the current version's, or that of the version named. Import gives the same again."""
        workflow = await self.get(actor, workflow_id)
        version = await self._version(actor, workflow_id, version_id or workflow.current_version_id or "")
        if format == "json":
            return json.dumps(version.definition, ensure_ascii=False, indent=2) + "\n"
        return documents.to_yaml(version.definition)

    # Making

    async def create(
        self,
        actor: Actor,
        document: Any,
        *,
        status: Literal[WorkflowStatus.DRAFT, WorkflowStatus.ACTIVE] = WorkflowStatus.ACTIVE,
        change_note: str | None = None,
        version: SemVer = FIRST,
        label: str | None = None,
    ) -> Changed:
        """A new workflow from a document. Raises Invalid with every problem (a DRAFT is stored with its problems),
        Conflict if the name is taken.
        """
        if version.prerelease:
            raise rules.invalid("/version", f"{version} has a pre-release part; a workflow's versions are like 1.2.3.")
        read = await self._read(document)
        if status is not WorkflowStatus.DRAFT:
            read.require_valid()
        return await self._create(actor, read, status, change_note, version, label)

    async def duplicate(
        self,
        actor: Actor,
        workflow_id: str,
        name: str,
        *,
        version_id: str | None = None,
        change_note: str | None = None,
    ) -> Changed:
        """A copy under another name. It is a DRAFT: two workflows with the same triggers must not both fire unseen."""
        workflow = await self.get(actor, workflow_id)
        version = await self._version(actor, workflow_id, version_id or workflow.current_version_id or "")
        read = await self._read(version.definition | {"name": name})
        rules.require_name(read)
        note = change_note or f"Copy of {workflow.name} {SemVer(*version.number)}"
        return await self._create(actor, read, WorkflowStatus.DRAFT, note, FIRST, None)

    async def import_(
        self,
        actor: Actor,
        document: Any,
        *,
        on_conflict: Literal["refuse", "new_version"] = "refuse",
        status: Literal[WorkflowStatus.DRAFT, WorkflowStatus.ACTIVE] = WorkflowStatus.ACTIVE,
        change_note: str | None = None,
    ) -> Changed:
        """A workflow from text (JSON or YAML) or values. Where its name exists, a Conflict or a new version of it;
        nothing changes if that would equal the current one. One of the older batch form keeps its number, and is
        HIDDEN if it was.
        """
        read = await self._read(document)
        if status is not WorkflowStatus.DRAFT:
            read.require_valid()
        existing = await self.named(actor, read.name(""))
        if existing is None or on_conflict == "refuse":
            hidden = status is WorkflowStatus.ACTIVE and older.hidden(read.canonical)
            begins = WorkflowStatus.HIDDEN if hidden else status
            return await self._create(actor, read, begins, change_note, first_number(read.canonical), None)
        base = existing.current_version_id or ""
        return await self._new_version(actor, existing.id, base, read, kind=None, change_note=change_note)

    async def update(
        self,
        actor: Actor,
        workflow_id: str,
        base_version_id: str,
        document: Any,
        *,
        bump: Bump | None = None,
        change_note: str | None = None,
        label: str | None = None,
        publish: bool = False,
    ) -> Changed:
        """Make a new current version, starting from ``base_version_id``; ``publish`` also makes a DRAFT ACTIVE.

        The kind of change is derived unless ``bump`` names it. Raises Conflict with both versions if the base is no
        longer current, Invalid with every problem unless the workflow stays a DRAFT. A document equal to the current
        one makes no version. Another ``name`` in the document renames the workflow.
        """
        read = await self._read(document)
        return await self._new_version(
            actor, workflow_id, base_version_id, read, kind=bump, change_note=change_note, label=label, publish=publish
        )

    async def version_create(
        self,
        actor: Actor,
        workflow_id: str,
        document: Any,
        *,
        base_version_id: str | None = None,
        bump: Bump | None = None,
        change_note: str | None = None,
        label: str | None = None,
    ) -> Changed:
        """Make a version beside the current one, which stays current: to be tried, compared, restored later.

        It descends from ``base_version_id`` (the current version if none is named), which need not be current.
        """
        read = await self._read(document)
        base = base_version_id or (await self.get(actor, workflow_id)).current_version_id or ""
        return await self._new_version(
            actor, workflow_id, base, read, kind=bump, change_note=change_note, label=label, make_current=False
        )

    async def version_restore(
        self,
        actor: Actor,
        workflow_id: str,
        version_id: str,
        *,
        base_version_id: str | None = None,
        change_note: str | None = None,
    ) -> Changed:
        """Make a new current version equal to an old one. With ``base_version_id``, only if that is still current."""
        workflow = await self.get(actor, workflow_id)
        old = await self._version(actor, workflow_id, version_id)
        read = await self._read(old.definition)
        note = change_note or f"Version {SemVer(*old.number)} restored"
        base = base_version_id or workflow.current_version_id or ""
        return await self._new_version(actor, workflow_id, base, read, kind=None, change_note=note)

    async def version_label(self, actor: Actor, version_id: str, label: str | None) -> Changed:
        """Name a version, or take its name away with None."""
        rules.check_remarks(label, None)

        def change(conn: Connection, seq: int) -> Changed:
            version = store.version(conn, actor.project_id, version_id)
            if version is None:
                raise NotFound("workflow version", version_id)
            workflow = rules.writable(conn, actor, version.workflow_id)
            if version.label == label:
                raise _AsItWas(Changed(workflow.id, version_id, workflow.change_seq, changed=False))
            store.set_label(conn, actor.project_id, version_id, label)
            store.update_workflow(conn, actor.project_id, workflow.id, **self._touched(actor, seq))
            return Changed(workflow.id, version_id, seq)

        return await self._change(actor, change)

    # The workflow as a whole

    async def publish(self, actor: Actor, workflow_id: str) -> Changed:
        """DRAFT → ACTIVE. Raises Invalid while its current version has problems."""
        return await self._step(actor, workflow_id, WorkflowStep.PUBLISH)

    async def activate(self, actor: Actor, workflow_id: str) -> Changed:
        """INACTIVE or ARCHIVED → ACTIVE. Raises Invalid if its current version has problems."""
        return await self._step(actor, workflow_id, WorkflowStep.ACTIVATE)

    async def deactivate(self, actor: Actor, workflow_id: str) -> Changed:
        """Triggers stop; it can still be run by hand."""
        return await self._step(actor, workflow_id, WorkflowStep.DEACTIVATE)

    async def hide(self, actor: Actor, workflow_id: str) -> Changed:
        """Leave it out of lists; it works on. An INACTIVE one is activated by it, so it may have no problems."""
        return await self._step(actor, workflow_id, WorkflowStep.HIDE)

    async def show(self, actor: Actor, workflow_id: str) -> Changed:
        """HIDDEN → ACTIVE."""
        return await self._step(actor, workflow_id, WorkflowStep.SHOW)

    async def archive(self, actor: Actor, workflow_id: str) -> Changed:
        """Read-only from now on, and not to be run."""
        return await self._step(actor, workflow_id, WorkflowStep.ARCHIVE)

    async def restore(self, actor: Actor, workflow_id: str) -> Changed:
        """Bring a deleted workflow back: INACTIVE, or as a DRAFT if it has problems."""
        return await self._step(actor, workflow_id, WorkflowStep.RESTORE)

    async def delete(self, actor: Actor, workflow_id: str, *, permanent: bool = False) -> Changed:
        """Delete so that it can be restored; ``permanent`` removes it, its versions and its instances for good.

        Raises Conflict if it is to go for good while instances run, or at all while a task uses it.
        """
        if not permanent:
            return await self._step(actor, workflow_id, WorkflowStep.DELETE)

        def bar(conn: Connection, seq: int) -> Changed:
            """No instance runs, and none starts from now on."""
            workflow = rules.found(store.workflow(conn, actor.project_id, workflow_id), workflow_id)
            if running := store.open_instances(conn, workflow_id):
                message = f"{running} instances of {workflow.name} have not ended. Cancel them first."
                raise Conflict(message, open=running)
            rules.require_unused(conn, workflow)
            gone = self._touched(actor, seq) | {"deleted_at": self._now(), "deleted_by": actor.user_id}
            store.update_workflow(conn, actor.project_id, workflow_id, status=WorkflowStatus.DELETED, **gone)
            return Changed(workflow_id, None, seq)

        def remove(conn: Connection, seq: int) -> Changed:
            store.delete_workflow(conn, actor.project_id, workflow_id)
            return Changed(workflow_id, None, seq)

        await self._change(actor, bar)
        while await self._db.write(store.delete_instances, workflow_id, DELETE_BATCH):
            pass
        self._definitions.forget(workflow_id)
        return await self._change(actor, remove)

    # Inside

    async def _read(self, document: Any) -> ReadDocument:
        """Off the event loop: a large document takes a while."""
        return await asyncio.to_thread(read_document, document, self._node_types(), self._limits)

    async def _version(self, actor: Actor, workflow_id: str, version_id: str) -> StoredVersion:
        version = await self._db.read(store.version, actor.project_id, version_id)
        if version is None or version.workflow_id != workflow_id:
            raise NotFound("workflow version", version_id)
        return version

    async def _change(self, actor: Actor, change: Callable[[Connection, int], Changed]) -> Changed:
        actor.require(Permission.WORKFLOW_WRITE)
        try:
            result = await self._db.write(lambda conn: change(conn, changes.take(conn, actor.project_id)))
        except _AsItWas as nothing:
            return nothing.result
        self._publish(actor.project_id, result.change_seq)
        return result

    def _touched(self, actor: Actor, seq: int) -> dict[str, Any]:
        return {"change_seq": seq, "updated_at": self._now(), "updated_by": actor.user_id}

    async def _create(
        self,
        actor: Actor,
        read: ReadDocument,
        status: WorkflowStatus,
        change_note: str | None,
        number: SemVer,
        label: str | None,
    ) -> Changed:
        id = clock.new_id("wf")
        name = read.name(f"untitled-{id[-6:]}")

        def change(conn: Connection, seq: int) -> Changed:
            rules.require_free(conn, actor, name)
            at = self._now()
            version = self._stored_version(actor, read, id, number, None, change_note, label)
            store.insert_workflow(
                conn,
                StoredWorkflow(
                    id=id,
                    project_id=actor.project_id,
                    name=name,
                    **rules.described(read),
                    status=status,
                    current_version_id=version.id,
                    change_seq=seq,
                    created_at=at,
                    created_by=actor.user_id,
                    updated_at=at,
                    updated_by=actor.user_id,
                ),
            )
            store.insert_version(conn, version)
            return Changed(id, version.id, seq)

        return await self._change(actor, change)

    async def _new_version(
        self,
        actor: Actor,
        workflow_id: str,
        base_id: str,
        read: ReadDocument,
        *,
        kind: Bump | None,
        change_note: str | None,
        label: str | None = None,
        publish: bool = False,
        make_current: bool = True,
    ) -> Changed:
        base = await self._version(actor, workflow_id, base_id)
        if kind is None:
            kind = await self._kind_of_change(base, read)

        def change(conn: Connection, seq: int) -> Changed:
            workflow = rules.writable(conn, actor, workflow_id)
            if make_current and workflow.current_version_id != base_id:
                raise rules.stale(conn, workflow, base)
            status = WorkflowStatus(workflow.status)
            if publish:
                status = after(WORKFLOW_TRANSITIONS, status, WorkflowStep.PUBLISH)
            if status is not WorkflowStatus.DRAFT:
                read.require_valid()
            as_current = rules.same(base, read)
            if as_current and not publish:
                raise _AsItWas(Changed(workflow_id, base_id, workflow.change_seq, changed=False))
            values = self._touched(actor, seq) | {"status": status}
            version_id = base_id
            if not as_current:
                highest = SemVer(*(store.highest_number(conn, workflow_id) or base.number))
                version = self._stored_version(
                    actor, read, workflow_id, bump(highest, kind), base_id, change_note, label
                )
                store.insert_version(conn, version)
                version_id = version.id
                if make_current:
                    name = read.name(workflow.name)
                    if name != workflow.name:
                        rules.require_free(conn, actor, name)
                    values |= rules.described(read) | {"name": name, "current_version_id": version_id}
            store.update_workflow(conn, actor.project_id, workflow_id, **values)
            return Changed(workflow_id, version_id, seq)

        return await self._change(actor, change)

    async def _step(self, actor: Actor, workflow_id: str, step: WorkflowStep) -> Changed:
        seen = await self.get(actor, workflow_id)
        version = await self._version(actor, workflow_id, seen.current_version_id or "")
        read = await self._read(version.definition) if step in rules.NEED_CHECKING else None

        def change(conn: Connection, seq: int) -> Changed:
            workflow = rules.found(store.workflow(conn, actor.project_id, workflow_id), workflow_id)
            before = WorkflowStatus(workflow.status)
            status = after(WORKFLOW_TRANSITIONS, before, step)
            if workflow.current_version_id != version.id:
                raise rules.stale(conn, workflow, version)
            if not status.runnable:
                rules.require_unused(conn, workflow)
            values = self._touched(actor, seq)
            if read is not None:
                if status in rules.LIVE and before not in rules.LIVE:
                    read.require_valid()
                if version.problems and not read.problems:
                    store.settle_version(conn, actor.project_id, version.id, read.stored)
                if step is WorkflowStep.RESTORE and read.problems:
                    status = WorkflowStatus.DRAFT  # INACTIVE could be run, and what has problems can't
            if step is WorkflowStep.DELETE:
                values |= {"deleted_at": values["updated_at"], "deleted_by": actor.user_id}
            elif step is WorkflowStep.RESTORE:
                values |= {"deleted_at": None, "deleted_by": None}
            store.update_workflow(conn, actor.project_id, workflow_id, status=status, **values)
            return Changed(workflow_id, version.id, seq)

        return await self._change(actor, change)

    async def _kind_of_change(self, base: StoredVersion, read: ReadDocument) -> Bump:
        """PATCH where one of them has problems, so that there is nothing to compare."""
        if read.definition is None or base.problems:
            return Bump.PATCH
        old = (await self._read(base.definition)).definition
        return Bump.PATCH if old is None else kind_of_change(old, read.definition)

    def _stored_version(
        self,
        actor: Actor,
        read: ReadDocument,
        workflow_id: str,
        number: SemVer,
        parent_id: str | None,
        change_note: str | None,
        label: str | None,
    ) -> StoredVersion:
        rules.check_remarks(label, change_note)
        return StoredVersion(
            id=clock.new_id("wfv"),
            workflow_id=workflow_id,
            project_id=actor.project_id,
            number=(number.major, number.minor, number.patch),
            parent_id=parent_id,
            definition=read.stored,
            problems=tuple(msgspec.to_builtins(problem) for problem in read.problems),
            label=label,
            change_note=change_note,
            created_at=self._now(),
            created_by=actor.user_id,
        )
