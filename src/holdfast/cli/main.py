"""`holdfast VERB`: parse, call, exit code.

Exit codes: 0 done; 2 bad input or configuration; 3 stopped by a health verdict; 130 or 143 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated, NoReturn

import typer

from holdfast import __version__
from holdfast.cli.eval import app as eval_group
from holdfast.cli.eval_tasks import register as register_tasks
from holdfast.cli.look_commands import register as register_looking
from holdfast.cli.train_commands import register as register_training
from holdfast.errors import ConfigError, HoldfastError, Interrupted, PeerError
from holdfast.files import refusal
from holdfast.reports.visible import visible

LINES = "\n\t"  # what sets out a message
PARTING = 1.0  # seconds that a failing process of several stays for the others
app = typer.Typer(
    name="holdfast",
    help="Post-train language models without unlearning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
register_training(app)
register_looking(app)
register_tasks(eval_group)
app.add_typer(eval_group)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"holdfast {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: every error a user can mend becomes one message and its exit code."""
    try:
        app()
    except HoldfastError as error:
        _end(error)
    except Exception as error:
        full = refusal(error)
        if full is None:
            raise
        _end(ConfigError(full))


def _end(error: HoldfastError) -> NoReturn:
    """Say what went wrong, and end with its exit code."""
    # Every process of a run is interrupted, and one of them says so; an error may be any one's alone.
    of_another = isinstance(error, PeerError)
    if not of_another and (not isinstance(error, Interrupted) or int(os.environ.get("RANK", 0)) == 0):
        # a message may hold a name out of somebody's file: nothing in it is for the terminal to obey
        typer.secho(f"error: {visible(str(error), keep=LINES)}", fg="red", err=True)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # The others have a moment to hear of it. Then at once: a process that lets go of the others bit by bit may be
        # aborted when they are gone first, and its exit code lost.
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(PARTING)
        os._exit(error.exit_code)
    sys.exit(error.exit_code)
