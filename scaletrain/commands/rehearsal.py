"""A short training run that is launched several times as a program, and must do each time what it was to do."""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.commands.launcher import TORCHRUN, with_ranks
from scaletrain.runtime.run_files import EVENTS
from scaletrain.track.sinks import read_lines


class LaunchError(Exception):
    """A launch that did not do what it was to do."""


@dataclass(frozen=True)
class Rehearsal:
    """A short run that is launched several times: `program` is the script and its arguments, `half` where it stops."""

    template: tuple[str, ...] | None
    program: list[str]
    folder: Path
    half: int

    def launch(self, name: str, ranks: int, until: int) -> None:
        """Trains the run `name` until a step, on so many ranks; LaunchError when that is not what happened."""
        run, is_end = self.folder / name, until == 2 * self.half
        before = (run / "checkpoints").is_dir()
        print(f"launch  {name}, {counted(ranks, 'rank')}, to step {until}", file=sys.stderr, flush=True)
        stop = "null" if is_end else str(until)
        command = [*self._launcher(ranks), *self.program, f"run.dir={run}", f"train.stop_at_step={stop}"]
        log = self.folder / f"{name}-to-step-{until}.log"
        with log.open("wb") as file:
            try:
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            except OSError as error:
                raise LaunchError(f"{command[0]}: {error.strerror}\ncommand {shlex.join(command)}") from None
        if (wrong := self._wrong(run, ranks, until, before)) is None and is_end and code:
            wrong = f"exit code {code}"  # a launcher makes what it likes of a stop's 75
        if wrong is not None:
            last = _last_error(log.read_text(encoding="utf-8", errors="replace"))
            raise LaunchError(f"{wrong}: {last}\ncommand {shlex.join(command)}\nlog     {log}")

    def _launcher(self, ranks: int) -> list[str]:
        if self.template is None and ranks == 1:
            return [sys.executable]
        return with_ranks(self.template or TORCHRUN, ranks)

    def _wrong(self, run: Path, ranks: int, until: int, resumes: bool) -> str | None:
        """What the run's events say that should not have happened in the last launch."""
        path = run / EVENTS
        events: list[dict[str, Any]] = read_lines(path) if path.is_file() else []
        begun = [event for event in events if event["event"] in ("start", "resume")]
        last = events[-1] if events else {}
        if last.get("event") != ("end" if until == 2 * self.half else "stop") or last.get("step") != until:
            at = f"step {last['step']}" if begun else "its start"
            return f"training did not come to step {until}, it ended after {at}"
        if begun[-1]["ranks"] != ranks:
            return f"the launch had {counted(begun[-1]['ranks'], 'rank')}, not {ranks}: --launch must start {{ranks}}"
        if resumes and begun[-1].get("checkpoint") != f"step-{self.half:08d}":
            return f"the launch did not resume from step {self.half}"
        return None

    def copy(self, name: str, other: str) -> str:
        """A run that stands at the checkpoint of the run `name`: the files are linked, where the file system can."""
        source, target = (self.folder / n / "checkpoints" for n in (name, other))
        shutil.copytree(source, target, copy_function=_link)
        return other


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # a checkpoint's files are never written again
    except OSError:
        shutil.copy2(source, target)


def _last_error(log: str) -> str:
    """The line of a launch's output that says what was wrong: ours, else the last exception's, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (ours or raised or lines or ["it printed nothing"])[-1]


def counted(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
