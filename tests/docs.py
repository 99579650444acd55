"""The generated pages of ``docs/``: ``python -m tests.docs`` writes them, ``--check`` says which are out of date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.nodes import reference
from engine.nodes.registry import Registry
from flow import schemas, servers, states, tasks
from mirrorflow.settings import PREFIX, Settings

DOCS = Path(__file__).parents[1] / "docs"


def states_page() -> str:
    """The state machines as pictures, drawn from the tables of ``flow/states.py``."""
    machines: list[tuple[str, type[StrEnum], Mapping[Any, StrEnum], StrEnum]] = [
        ("Instance", states.InstanceStatus, states.INSTANCE_TRANSITIONS, states.InstanceStatus.PENDING),
        ("Node execution", states.NodeStatus, states.NODE_TRANSITIONS, states.NodeStatus.PENDING),
        ("Workflow", states.WorkflowStatus, states.WORKFLOW_TRANSITIONS, states.WorkflowStatus.DRAFT),
        ("Server", servers.ServerStatus, servers.SERVER_TRANSITIONS, servers.ServerStatus.OFFLINE),
        ("Task", tasks.TaskStatus, tasks.TASK_TRANSITIONS, tasks.TaskStatus.PENDING),
        ("Task item", tasks.TaskStatus, tasks.ITEM_TRANSITIONS, tasks.TaskStatus.PENDING),
    ]
    parts = [
        "# States\n\nGenerated from the tables in `flow/` by `make docs`. A step that isn't drawn here is refused, "
        "changes nothing, and reaches the client as `Conflict`.\n"
    ]
    for title, kind, table, first in machines:
        parts.append(f"\n## {title}\n\n{kind.__doc__}\n\n```mermaid\nstateDiagram-v2\n")
        parts += [f"    {line}\n" for line in _arrows(table, first)]
        parts.append("```\n")
    return "".join(parts)


def _arrows(table: Mapping[Any, StrEnum], first: StrEnum) -> Iterable[str]:
    yield f"[*] --> {first}"
    labels: dict[tuple[str, str], list[str]] = {}
    for (state, step), after in table.items():
        labels.setdefault((str(state), str(after)), []).append(_label(step))
    for (start, end), steps in labels.items():
        yield f"{start} --> {end}: {', '.join(steps)}"
    leaving = {str(state) for state, _ in table}
    yield from (
        f"{last} --> [*]" for last in dict.fromkeys(str(state) for state in table.values()) if last not in leaving
    )


def _label(step: object) -> str:
    tag = getattr(getattr(step, "__struct_config__", None), "tag", None)
    return str(tag or step).replace("instance.", "").replace("node.", "")


def settings_page() -> str:
    """Every setting: its names, default and meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{PREFIX}{name.upper()}` | {_default(name, field.default)} | {field.description} |\n")
    return (
        "# Settings\n\nGenerated from `mirrorflow/settings.py` by `make docs`. A flag of `mirrorflow serve` wins over "
        "the environment, the environment over `.env` in the working folder. `mirrorflow config` prints what is in "
        "effect and where it came from; secrets are masked. A value that can't be used stops the start with one line "
        "and exit code 2.\n\n| name | default | meaning |\n|---|---|---|\n" + "".join(rows)
    )


def _default(name: str, value: Any) -> str:
    if name == "processes":
        return "number of CPUs"
    text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    return f"`{text}`" if text not in ("", (), None) else ""


def nodes_page() -> str:
    """Every built-in node type."""
    built_in = (kind for kind in Registry.load().all() if kind.handler.__module__.startswith("engine.nodes."))
    return reference.page(built_in)


def definition_schema() -> str:
    """The JSON Schema of a definition with the built-in node types, for editors."""
    return json.dumps(schemas.definition_schema(Registry.load().type_infos()), indent=2, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "definition.schema.json": definition_schema,
    "states.md": states_page,
    "settings.md": settings_page,
    "node-reference.md": nodes_page,
}


def outdated() -> list[str]:
    """The names of the generated pages that are not as they would be written now."""
    return [name for name, page in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != page()]


def main() -> None:
    """Write the pages, or with ``--check`` fail if one would change."""
    if "--check" in sys.argv:
        if names := outdated():
            sys.exit(f"docs/{', docs/'.join(names)} out of date: run `make docs` and commit.")
        return
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
