"""The `scaletrain` command: what is done before and after training."""

import sys
from typing import Annotated

import typer

from scaletrain import __version__
from scaletrain.commands.demo import demo
from scaletrain.commands.evaluate import evaluate
from scaletrain.commands.export import export
from scaletrain.commands.generate import generate
from scaletrain.commands.prepare import prepare
from scaletrain.errors import EXIT_USER, ScaleTrainError

app = typer.Typer(
    name="scaletrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw text to a trained, exported GPT. Training: deepspeed launch/pretrain.py RECIPE",
)
app.command()(prepare)
app.command()(export)
app.command()(generate)
app.command()(evaluate)
app.command()(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"scaletrain {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Runs the command line; a fault in the input is one line on standard error and exit code 2."""
    try:
        app()
    except ScaleTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
