"""Breaking changes of the schema need a line in the changelog: ``python -m tests.schema_changes`` fails otherwise.

A change is told when CHANGELOG.md's section "Unreleased" names what it breaks (``Type.field``, ``Type`` or
``@directive``). The schema is compared with that of the last release (tag ``v*``), or before the first
release with that of the commit before.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from graphql import build_schema
from graphql.utilities import find_breaking_changes

ROOT = Path(__file__).parents[1]


def untold(before: str, after: str, changelog: str) -> list[str]:
    """The breaking changes from ``before`` to ``after`` (both SDL) that "Unreleased" doesn't name."""
    unreleased = re.search(r"^## \[?Unreleased.*?(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    told = set(re.findall(r"@?\w+(?:\.\w+)*", unreleased[0])) if unreleased else set()
    old = build_schema(before)
    elements = set(old.type_map) | {f"@{directive.name}" for directive in old.directives}
    changes = find_breaking_changes(old, build_schema(after))
    return [change.description for change in changes if not told & _broken(change.description, elements)]


def _broken(change: str, elements: set[str]) -> set[str]:
    """What the sentence is about: the members it names (``Type.field``), or else the types and directives."""
    names = set(re.findall(r"@?\w+(?:\.\w+)*", change))
    return {name for name in names if "." in name} or names & elements


def _git(*args: str) -> str | None:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    """Compare the schema in the working folder with the last one that people could build on."""
    base = (_git("describe", "--tags", "--match", "v*", "--abbrev=0") or "").strip() or "HEAD^"
    before = _git("show", f"{base}:schema.graphql")
    if before is None:
        return  # the first schema breaks nothing
    after, changelog = (ROOT / "schema.graphql").read_text(), (ROOT / "CHANGELOG.md").read_text()
    if changes := untold(before, after, changelog):
        sys.exit("CHANGELOG.md (Unreleased) must tell of these breaking changes:\n  " + "\n  ".join(changes))


if __name__ == "__main__":
    main()
