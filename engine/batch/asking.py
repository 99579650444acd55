"""What somebody asks of a task, checked against the project: its workflow, folders, servers; every problem at once."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from db.session import Database
from db.store.servers import StoredServer
from engine import clock
from engine.access import ROLES, Actor
from engine.batch.expansion import Chunk, FoundFile, walk_of
from engine.definitions import PinnedVersion
from engine.files import Files, PathRefused
from engine.output import MAX_OUTPUT
from engine.servers.servers import LOCAL_NAME, Availability, availability
from engine.workflows import Workflows
from flow import batches, comfyui
from flow.errors import Conflict, Invalid, NotFound, Problem
from flow.parsing import check_values
from flow.problems import ProblemCode, Problems
from flow.servers import ServerType
from flow.states import WorkflowStatus
from flow.tasks import BATCH, REPORTED, WORKFLOW, BatchSpec, RunSpec, TaskStatus
from flow.versions import input_problems

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: A dry run gives up counting after this time: somebody waits for the answer.
PLAN_S = 4.0
MAX_MESSAGE = 10_000  # characters of a runner's report


@dataclass(frozen=True, slots=True)
class Resolved:
    """A task that can be stored: ``spec`` has ids and real paths for names."""

    spec: BatchSpec | RunSpec
    workflow_id: str
    version_id: str
    name: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """What a walk through the folders counted."""

    files: int
    bytes: int
    first: tuple[FoundFile, ...]
    warnings: dict[str, int]
    more: bool


class Asking:
    """Resolves what callers ask. Raises NotFound, Invalid, Conflict as ``engine.tasks`` says."""

    def __init__(self, database: Database, workflows: Workflows, files: Files) -> None:
        self._database = database
        self._workflows = workflows
        self._files = files

    async def batch(self, actor: Actor, spec: BatchSpec) -> Resolved:
        """The batch with every name resolved."""
        problems = spec_problems(spec)
        version = await self.version(actor, spec.workflow_id, spec.workflow_name, spec.version_id)
        folders, output, wrong = await asyncio.to_thread(self._paths, spec)
        if problems or wrong:
            raise Invalid([*problems, *wrong], path=("input",))
        asked = {f"/servers/{place}": server for place, server in enumerate(spec.servers)}
        servers = await self.fitting(actor.project_id, asked, version)
        schema = version.definition.input_schema
        resolved = msgspec.structs.replace(
            spec,
            workflow_id=version.workflow_id,
            workflow_name=version.workflow_name,
            version_id=version.version_id,
            target_folders=batches.without_nested(folders, recursive=spec.recursive),
            file_patterns=spec.file_patterns or batches.default_patterns(schema),
            servers=servers,
            output_root=output,
        )
        name = spec.name or batches.describe(resolved)
        return Resolved(resolved, version.workflow_id, version.version_id, name, servers)

    async def run(self, actor: Actor, spec: RunSpec) -> Resolved:
        """The single run with every name resolved. A node runs in a workflow of its own that is not listed."""
        problems = spec_problems(spec)
        problems += json_problems("input", spec.input)
        if spec.type == BATCH:
            problems.append(Problem("/type", ProblemCode.UNKNOWN_VALUE.value, "A batch is asked for with its folders."))
        if problems:
            raise Invalid(problems, path=("input",))
        server = None
        if spec.server is not None:
            [server] = await self._database.read(self._server_ids, actor.project_id, (spec.server,))
        if spec.type == WORKFLOW:
            version = await self.version(actor, spec.workflow_id, spec.workflow_name, spec.version_id)
            if wrong := input_problems(version.definition.input_schema, spec.input):
                raise Invalid(wrong, path=("input",))
            name = spec.name or version.workflow_name
        else:
            version = await self._node(actor, spec)
            name = spec.name or spec.type
        if server is not None:
            await self.fitting(actor.project_id, {"/server": server}, version)
        resolved = msgspec.structs.replace(
            spec,
            workflow_id=version.workflow_id,
            workflow_name=version.workflow_name,
            version_id=version.version_id,
            server=server,
        )
        servers = () if server is None else (server,)
        return Resolved(resolved, version.workflow_id, version.version_id, name, servers)

    async def version(self, actor: Actor, id: str | None, name: str | None, version_id: str | None) -> PinnedVersion:
        """The version to run. Raises NotFound, Conflict if the workflow may not be run."""
        if id is not None:
            workflow = await self._workflows.get(actor, id)
        else:
            found = await self._workflows.named(actor, name or "")
            if found is None:
                raise NotFound("workflow", name or "", path=("input", "workflow"))
            workflow = found
        status = WorkflowStatus(workflow.status)
        if not status.runnable:
            message = f"The workflow {workflow.name!r} is {status}: publish, activate or restore it first."
            raise Conflict(message, status=status.value)
        wanted = version_id or workflow.current_version_id or ""
        version = await self._workflows.version(wanted)
        if version.workflow_id != workflow.id:
            raise NotFound("workflow version", wanted, path=("input", "version"))
        return version

    async def _node(self, actor: Actor, spec: RunSpec) -> PinnedVersion:
        """The version of one node with these parameters, in the hidden workflow of its type."""
        document = {
            "name": f"task: {spec.type}"[: batches.MAX_NAME],
            "description": "Made for tasks of one node.",
            "triggers": [{"id": "task", "type": "api"}],
            "nodes": [{"id": "node", "type": spec.type, "parameters": spec.parameters}],
            "output_mapping": {"output": '$.nodes."node".output'},
            "metadata": {"made_for": "tasks"},
        }
        maker = Actor(actor.user_id, actor.name, actor.project_id, ROLES["editor"], actor.token_id)
        try:
            changed = await self._workflows.import_(maker, document, on_conflict="new_version")
        except Invalid as refusal:
            found = [
                Problem(problem.pointer.replace("/nodes/0", "", 1), problem.code, problem.message)
                for problem in refusal.problems
            ]
            raise Invalid(found, path=("input",)) from None
        workflow = await self._workflows.get(maker, changed.workflow_id)
        if workflow.status == WorkflowStatus.ACTIVE:
            await self._workflows.hide(maker, changed.workflow_id)
        return await self._workflows.version(changed.version_id or "")

    # ---- servers

    def _server_ids(self, connection: Connection, project_id: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """A store function: ids for ids or names; for none the project's own ``local`` server, if it still has it."""
        found = [availability(connection, project_id, each).server for each in asked]
        if not asked and (own := self._own(connection, project_id)) is not None:
            found.append(own)
        return tuple(dict.fromkeys(server.id for server in found))

    def _own(self, connection: Connection, project_id: str) -> StoredServer | None:
        try:
            server = availability(connection, project_id, LOCAL_NAME).server
        except NotFound:
            return None
        return server if server.type == ServerType.LOCAL and server.enabled else None

    async def available(self, project_id: str, servers: tuple[str, ...]) -> Availability | None:
        """The first of the servers that can take work now, or else the first; None for none: this engine itself."""
        found = await self._database.read(self._available, project_id, servers)
        return next((each for each in found if each.available), found[0] if found else None)

    def _available(self, connection: Connection, project_id: str, servers: tuple[str, ...]) -> list[Availability]:
        return [availability(connection, project_id, id) for id in servers]

    async def servers_of(self, project_id: str, asked: tuple[str, ...]) -> tuple[str, ...]:
        """The ids of the servers that a batch would run on. Raises NotFound."""
        return await self._database.read(self._server_ids, project_id, asked)

    async def fitting(self, project_id: str, asked: Mapping[str, str], version: PinnedVersion) -> tuple[str, ...]:
        """As ``servers_of``, of servers by the place that names them, such as ``/servers/0``.

        Raises Invalid, pointing there, if one of them can't run the workflow at all.
        """
        why = comfyui.misfit(version.definition)

        def found(connection: Connection) -> tuple[str, ...]:
            problems = []
            for pointer, each in asked.items() if why is not None else ():
                server = availability(connection, project_id, each).server
                if server.type == ServerType.COMFYUI:
                    problems.append(Problem(pointer, "COMFYUI_WORKFLOW", f"The server {server.name!r}: {why}"))
            if problems:
                raise Invalid(problems, path=("input",))
            return self._server_ids(connection, project_id, tuple(asked.values()))

        return await self._database.read(found)

    # ---- folders

    def _paths(self, spec: BatchSpec) -> tuple[list[str], str | None, list[Problem]]:
        """The real folders and output root, and what is wrong with them. Reads the disk."""
        folders, problems = [], []
        for place, asked in enumerate(spec.target_folders[: batches.MAX_FOLDERS]):
            try:
                found = self._files.reading(asked)
                if not found.is_dir():
                    raise PathRefused("NOT_A_FOLDER", f"{asked!r} is not a folder.")
                if not os.access(found, os.R_OK | os.X_OK):
                    raise PathRefused("FOLDER_UNREADABLE", f"The folder {asked!r} can't be read.")
            except (PathRefused, OSError) as refused:
                code = refused.code if isinstance(refused, PathRefused) else "FOLDER_UNREADABLE"
                problems.append(Problem(f"/targetFolders/{place}", code, str(refused)))
            else:
                folders.append(str(found))
        if spec.output_root is None:
            return folders, None, problems
        try:
            output = self._output(spec.output_root, folders)
        except (PathRefused, OSError) as refused:
            code = refused.code if isinstance(refused, PathRefused) else "OUTPUT_NOT_WRITABLE"
            return folders, None, [*problems, Problem("/outputRoot", code, str(refused))]
        return folders, str(output), problems

    def _output(self, asked: str, folders: list[str]) -> Path:
        output = self._files.writing(asked)
        inside = next((folder for folder in folders if batches.inside(str(output), folder)), None)
        if inside is not None:
            message = f"{asked!r} lies in the target folder {inside!r}: outputs would become inputs. Name one outside."
            raise PathRefused("OUTPUT_IN_TARGET", message)
        there = output
        while not there.exists():
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise PathRefused("OUTPUT_NOT_WRITABLE", f"{asked!r} is no folder that can be written.")
        return output

    async def planned(self, spec: BatchSpec, first: int) -> Planned:
        """Count what the folders hold, without keeping it."""
        pieces = walk_of(spec, self._files.allows).chunks()
        files, size, shown, warnings = 0, 0, list[FoundFile](), Counter[str]()
        until = clock.monotonic() + PLAN_S
        while clock.monotonic() < until:
            chunk: Chunk | None = await asyncio.to_thread(next, pieces, None)
            if chunk is None:
                return Planned(files, size, tuple(shown), dict(warnings), more=False)
            files += len(chunk.files)
            size += sum(file.size for file in chunk.files)
            shown += chunk.files[: first - len(shown)]
            warnings.update(chunk.warnings)
        return Planned(files, size, tuple(shown), dict(warnings), more=True)


def spec_problems(spec: BatchSpec | RunSpec) -> list[Problem]:
    """What is wrong with a task, whatever it refers to."""
    texts = json_problems("name", spec.name) + json_problems("description", spec.description)
    return batches.option_problems(spec) + texts + json_problems("parameters", spec.parameters)


def report_problems(
    status: TaskStatus, progress: float | None, message: str | None, result: Any, error: str | None
) -> list[Problem]:
    """What is wrong with a runner's report."""
    found = json_problems("result", result) + json_problems("message", message) + json_problems("error", error)
    if status not in REPORTED:
        words = ", ".join(REPORTED)
        found.append(Problem("/status", ProblemCode.UNKNOWN_VALUE.value, f"A report says one of {words}."))
    if progress is not None and not 0 <= progress <= 1:
        found.append(Problem("/progress", ProblemCode.OUT_OF_RANGE.value, "A progress is from 0 to 1."))
    for name, text in (("message", message), ("error", error)):
        if text is not None and len(text) > MAX_MESSAGE:
            problem = f"It has at most {MAX_MESSAGE:,} characters."
            found.append(Problem(f"/{name}", ProblemCode.OUT_OF_RANGE.value, problem))
    if not found and len(msgspec.json.encode(result)) > MAX_OUTPUT:
        found.append(Problem("/result", ProblemCode.TOO_LARGE.value, f"It has at most {MAX_OUTPUT:,} bytes."))
    return found


def json_problems(name: str, value: Any) -> list[Problem]:
    """What JSON has no word for, or the databases can't store."""
    found = Problems()
    check_values(value, found)
    return [Problem(f"/{name}{problem.pointer}", problem.code, problem.message) for problem in found.sorted()]
