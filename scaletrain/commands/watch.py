"""`scaletrain watch`: a run in a terminal, refreshed while it goes on."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from scaletrain.commands.standing import is_run, reason
from scaletrain.commands.supervised_folder import holder
from scaletrain.errors import ConfigError
from scaletrain.track.frame import draw_frame
from scaletrain.track.recorded import Recorded

_HOLDER_SECONDS = 10.0  # between looks at the lock: a launch that begins in that moment would find it taken


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder")],
    every: Annotated[float, typer.Option(min=0.2, metavar="SECONDS", help="Between looks at its files")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once; so it is too where there is no terminal")] = False,
) -> None:
    """Show a run while it trains: loss, evaluation, speed, memory, slow ranks, last events, time left.

    Reads what the run appends to its files, so it works over ssh and on a shared disk, for a run on any node. Ends when
    the run is done; Ctrl-C leaves the run as it is.
    """
    if not is_run(run):
        raise ConfigError(f"{run} is no run: give the run.dir of one that was begun or submitted")
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    seen = Seen(run)
    if once or not sys.stdout.isatty():
        console.print(draw_frame(seen.recorded, seen.look(), console.width))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            state = seen.look()
            live.update(draw_frame(seen.recorded, state, console.width), refresh=True)
            if state == "done":
                return
            time.sleep(every)


class Seen:
    """The run as it was at the last look."""

    def __init__(self, run: Path) -> None:
        self.recorded = Recorded(run)
        self._asked, self._is_held = float("-inf"), False

    def look(self) -> str:
        """Reads what is new; the state of the run in words."""
        self.recorded.refresh()
        now = time.monotonic()
        last = self.recorded.events[-1] if self.recorded.events else {}
        if last.get("event") == "end":
            return "done"
        if now - self._asked >= _HOLDER_SECONDS:
            self._asked, self._is_held = now, holder(self.recorded.folder) is not None
        if self._is_held:
            return "running" if self.recorded.events else "running (starting)"
        if last.get("event") == "stop":
            return f"stopped ({last.get('reason', 'no reason told')})"
        folder = self.recorded.folder
        return f"not running ({reason(folder) if last or (folder / 'logs').exists() else 'not begun yet'})"
