"""What a person sees while a run goes on: a bar in a terminal, plain lines elsewhere; rank 0 only."""

import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """Shows step, loss, tokens/s, MFU and the time left. With no stream (ranks other than 0) it shows nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True) if stream is not None else None
        self._total, self._first, self._began = 0, 0, time.monotonic()
        self._bar: Progress | None = None

    def start(self, step: int, total_steps: int) -> None:
        """Shows the bar, in a terminal; training goes on from `step`."""
        self._total, self._first, self._began = total_steps, step, time.monotonic()
        if self._console is not None and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=self._total, completed=step, told="first step")
            self._bar.start()

    def say(self, line: str) -> None:
        """One line of its own, above the bar."""
        self._print(line)

    def _print(self, line: str) -> None:
        if self._console is None:
            return
        try:
            self._console.print(line, markup=False)
        except OSError:  # the terminal or the pipe is gone: nobody looks, and the run is worth more than the line
            self._console = None

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows a logged step."""
        if self._console is None:
            return
        mfu = f"  mfu {values['mfu']:.1%}" if values.get("mfu") is not None else ""
        told = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tok/s{mfu}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, told=told)
            return
        left = (time.monotonic() - self._began) / max(1, step - self._first) * (self._total - step)
        self._print(
            f"step {step}/{self._total}  {told}  lr {values['lr']:.2e}  grad norm {values['grad_norm']:.2f}  "
            f"left {_clock(left)}"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
