"""`scaletrain report`: one page that explains one or more runs."""

from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.standing import is_run
from scaletrain.errors import ConfigError
from scaletrain.track.report.page import write_page
from scaletrain.track.report.run import names_of, read_run


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, which are laid over each other")],
    output: Annotated[Path, typer.Option(help="The page; one that is there is overwritten")] = Path("report.html"),
) -> None:
    """Write one HTML file that shows runs side by side: curves, speed, memory, events, what differs between them.

    It needs no network and no server: open it in any browser, send it, keep it. Of a run with more than 100,000 logged
    steps it holds the greatest and the least losses, and says so.
    """
    for run in runs:
        if not is_run(run):
            raise ConfigError(f"{run} is no run: give the run.dir of one that was begun or submitted")
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"{' '.join(map(str, runs))} holds a run twice: give each once")
    write_page([read_run(run, name) for run, name in zip(runs, names_of(runs), strict=True)], output)
    print(f"{output}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {output.stat().st_size / 1e6:,.1f} MB")
