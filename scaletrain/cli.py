"""The `scaletrain` command: what is done before and after training."""

import errno
import sys
from typing import Annotated, Any

import typer

from scaletrain import __version__
from scaletrain.commands.audit import audit
from scaletrain.commands.cancel import cancel
from scaletrain.commands.demo import demo
from scaletrain.commands.doctor import doctor
from scaletrain.commands.evaluate import evaluate
from scaletrain.commands.export import export
from scaletrain.commands.generate import generate
from scaletrain.commands.plan import plan
from scaletrain.commands.prepare import prepare
from scaletrain.commands.preview import preview
from scaletrain.commands.report import report
from scaletrain.commands.runs import runs
from scaletrain.commands.status import status
from scaletrain.commands.submit import submit
from scaletrain.commands.supervise import supervise
from scaletrain.commands.verify import verify
from scaletrain.commands.watch import watch
from scaletrain.errors import EXIT_USER, ScaleTrainError

app = typer.Typer(
    name="scaletrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From raw text to a trained, exported GPT. Training: deepspeed launch/pretrain.py RECIPE",
)
app.command()(prepare)
app.command()(plan)
app.command()(preview)
app.command()(export)
app.command()(generate)
app.command()(evaluate)
app.command()(audit)
app.command()(supervise)
app.command()(submit)
app.command()(status)
app.command()(runs)
app.command()(watch)
app.command()(report)
app.command()(cancel)
app.command()(verify)
app.command()(doctor)
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


UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or the copy of it that typer brings
_LONGEST = 200  # characters of a fault, which may hold many file names
_OTHER_PATH = "choose another path"
_MORE_SPACE = "free some space there and run the command again"
# What a file system refuses that the user can mend; any other OSError is a defect and shows its traceback.
REMEDIES = {
    errno.ENOSPC: _MORE_SPACE,
    errno.EDQUOT: _MORE_SPACE,
    errno.EFBIG: "raise the limit on a file's size",
    errno.EROFS: _OTHER_PATH,
    errno.EACCES: "choose a path that you may use",
    errno.EPERM: "choose a path that you may use",
    errno.ENOENT: _OTHER_PATH,
    errno.ENOTDIR: _OTHER_PATH,
    errno.EISDIR: _OTHER_PATH,
    errno.EEXIST: _OTHER_PATH,
    errno.ENAMETOOLONG: _OTHER_PATH,
    errno.ELOOP: _OTHER_PATH,
    errno.EIO: "check the disk",
    errno.ESTALE: "check the disk",
}


def main() -> None:
    """Runs the command line; a fault in the input is one line on standard error and exit code 2."""
    try:
        code = app(prog_name="scaletrain", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(1)
    except UsageError as error:
        if sys.argv[1:]:
            print(f"error: {_said_wrong(error)}", file=sys.stderr)
        else:
            error.show()  # the help
        sys.exit(EXIT_USER)
    except ScaleTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = error.filename or "the output"
        print(f"error: {where}: {error.strerror}: {REMEDIES[error.errno]}", file=sys.stderr)
        sys.exit(EXIT_USER)


def _said_wrong(error: Any) -> str:
    """A fault of the command line with its remedy."""
    message = error.format_message().rstrip(".")
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    where = error.ctx.command_path if error.ctx is not None else "scaletrain"
    quote = "quote a pattern, so that the shell leaves it whole; " if "unexpected extra" in message else ""
    return f"{message}: {quote}`{where} --help` lists what it takes"
