"""The command ``mirrorflow``.

Starts fast: a command imports what it needs when it runs. What goes wrong is one line on stderr and an exit code:
0 done, 1 failed, 2 refused (wrong usage, settings or input), 130 interrupted. Never a stack, except with
``MIRRORFLOW_LOG_LEVEL=debug``.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from mirrorflow.commands import admin, control, definitions, runs, servers, workers
from mirrorflow.commands.batch import batch
from mirrorflow.commands.serve import serve
from mirrorflow.commands.tasks import tasks
from mirrorflow.commands.worker import worker

app = typer.Typer(
    help="Durable workflows behind one GraphQL schema.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(serve)
app.command()(worker)
app.command()(runs.run)
app.command()(definitions.validate)
app.command("import")(definitions.import_)
app.command()(definitions.export)
app.command()(runs.instances)
app.command()(runs.logs)
app.command()(runs.cancel)
app.command()(control.pause)
app.command()(control.resume)
app.command()(control.signal)
app.command()(control.approve)
app.command()(control.reject)
app.command()(control.retry)
app.command()(control.fork)
app.command()(workers.workers)
app.command()(workers.drain)
app.add_typer(batch, name="batch")
app.add_typer(tasks, name="tasks")
app.command()(admin.schema)
app.add_typer(admin.db, name="db")
app.add_typer(admin.token, name="token")
app.add_typer(servers.app, name="servers")
app.command()(admin.config)
app.command()(admin.doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mirrorflow {metadata.version('mirrorflow')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Durable workflows behind one GraphQL schema. Start with: mirrorflow serve"""


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    try:
        code = app(arguments, prog_name="mirrorflow", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except TyperException as error:
        show = getattr(error, "show", None)  # wrong usage shows itself with the usage line
        typer.echo(f"mirrorflow: {error}", err=True) if show is None else show()
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 0
    except Exception as error:
        return _tell(error)


def _tell(error: Exception) -> int:
    """One line for what went wrong; its exit code."""
    from flow.errors import Invalid, StorageUnavailable, WorkflowError
    from mirrorflow.client import ClientError
    from mirrorflow.lock import StartRefused
    from mirrorflow.settings import BadSettings

    match error:
        case BadSettings() | StartRefused():
            message, code = str(error), 2
        case ClientError():
            message, code = str(error), error.exit_code
        case Invalid():
            lines = [f"{problem.pointer or '/'}: {problem.message} [{problem.code}]" for problem in error.problems]
            message, code = "\n".join(lines) or error.message, 2
        case StorageUnavailable():
            message, code = error.message, 1
        case WorkflowError():
            message, code = error.message, 2
        case OSError():
            where = f" ({error.filename})" if error.filename else ""
            message, code = f"{error.strerror or error}{where}", 1
        case _:
            if os.environ.get("MIRRORFLOW_LOG_LEVEL", "").lower() == "debug":
                raise error
            told = str(error).strip().splitlines()
            said = f"{type(error).__name__}: {told[0]}" if told else type(error).__name__
            message, code = f"unexpected {said}. MIRRORFLOW_LOG_LEVEL=debug shows where.", 1
    for line in message.splitlines():
        typer.echo(f"mirrorflow: {line}", err=True)
    return code
