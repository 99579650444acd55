"""Definitions in memory: documents read from outside, and the pinned versions that instances run."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from db.session import Database
from db.store import workflows as store
from flow import documents, parsing, spellings
from flow.definition import Definition, TypeInfo
from flow.errors import Invalid, NotFound, Problem
from flow.problems import ProblemCode, Problems

#: Definitions are kept up to this many nodes together: a few hundred megabytes at the very worst.
MAX_NODES_KEPT = 100_000
_ANY_SIZE = documents.Limits(sys.maxsize)


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document from outside.

    ``stored`` is how it is kept: canonical, or, where it has problems, as given, so that their pointers fit.
    ``canonical`` has its keys spelled as they should be in any case.
    """

    stored: dict[str, Any]
    canonical: Mapping[str, Any]
    definition: Definition | None
    problems: tuple[Problem, ...]

    def require_valid(self) -> None:
        """Raise Invalid with every problem, if there is one."""
        if self.problems:
            raise Invalid(list(self.problems), path=("definition",))

    def name(self, otherwise: str) -> str:
        """The document's name if it can be one."""
        name = self.canonical.get("name")
        return name if isinstance(name, str) and name.strip() and len(name) <= 255 else otherwise


def read_document(
    document: Any, types: Mapping[str, TypeInfo], limits: documents.Limits = documents.Limits()
) -> ReadDocument:
    """Read JSON values, or text (JSON or YAML).

    Raises Invalid only for what can't be kept even as a DRAFT: text that can't be read, values that are not JSON,
    anything but an object.
    """
    value = parsing.parse(document) if isinstance(document, str | bytes) else document
    unfit = Problems()
    parsing.check_values(value, unfit)
    if not isinstance(value, dict):
        unfit.add("", ProblemCode.WRONG_TYPE, "A definition is an object.")
    if unfit:
        raise Invalid(unfit.sorted(), path=("definition",))
    definition, problems = documents.read(value, types, limits)
    if definition is None:
        return ReadDocument(value, spellings.canonical(value).document, None, tuple(problems))
    stored = documents.export(definition)
    return ReadDocument(stored, stored, definition, ())


@dataclass(frozen=True, slots=True)
class PinnedVersion:
    """A version as its instances run it. ``workflow_name`` is the name in this version, whatever it is called now."""

    version_id: str
    definition: Definition
    project_id: str
    workflow_id: str
    workflow_name: str


class Definitions:
    """Versions by id, the most recently used ones in memory. Versions are immutable, so none is ever stale."""

    def __init__(self, db: Database, node_types: Callable[[], Mapping[str, TypeInfo]]) -> None:
        self._db = db
        self._node_types = node_types
        self._kept: OrderedDict[str, PinnedVersion] = OrderedDict()
        self._nodes = 0
        self._loading: dict[str, asyncio.Future[PinnedVersion]] = {}

    async def get(self, version_id: str) -> PinnedVersion:
        """The version; many callers at once read it once. Raises NotFound, or Invalid if it has problems."""
        kept = self._kept.get(version_id)
        if kept is not None:
            self._kept.move_to_end(version_id)
            return kept
        while (loading := self._loading.get(version_id)) is not None:
            try:
                return await asyncio.shield(loading)
            except asyncio.CancelledError:
                if not loading.cancelled():
                    raise  # we are cancelled, and not the one who was loading: then it is our turn
        self._loading[version_id] = loading = asyncio.get_running_loop().create_future()
        try:
            version = await self._load(version_id)
        except BaseException as error:
            if isinstance(error, Exception):
                loading.set_exception(error)
                loading.exception()  # read here, so that nobody else waiting is no complaint
            else:
                loading.cancel()
            raise
        else:
            loading.set_result(version)
            self._keep(version)
            return version
        finally:
            del self._loading[version_id]

    def forget(self, workflow_id: str) -> None:
        """Drop the versions of a workflow that is gone for good."""
        for version in [version for version in self._kept.values() if version.workflow_id == workflow_id]:
            self._drop(version.version_id)

    async def _load(self, version_id: str) -> PinnedVersion:
        row = await self._db.read(store.version_anywhere, version_id)
        if row is None:
            raise NotFound("workflow version", version_id)
        # It was within the limits when it was stored, and runs whatever they are now.
        read = await asyncio.to_thread(read_document, row.definition, self._node_types(), _ANY_SIZE)
        read.require_valid()
        assert read.definition is not None
        return PinnedVersion(version_id, read.definition, row.project_id, row.workflow_id, read.definition.name)

    def _keep(self, version: PinnedVersion) -> None:
        self._kept[version.version_id] = version
        self._nodes += len(version.definition.nodes)
        while self._nodes > MAX_NODES_KEPT and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, version_id: str) -> None:
        self._nodes -= len(self._kept.pop(version_id).definition.nodes)
