"""A launch by torchrun seen from outside: its agent, its ranks, what the run folder shows, and the end of all of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Found
from scaletrain.errors import CheckpointError
from scaletrain.track.sinks import read_lines

ROOT = Path(__file__).resolve().parents[1]
_MARK = "SCALETRAIN_LAUNCH"  # in the environment of all that a launch starts: finds orphans too
_TAIL = 4096  # bytes at the end of metrics.jsonl that hold its last whole line


class Launch:
    """`torchrun --nproc_per_node=RANKS launch/pretrain.py ARGUMENTS` at work; what it says goes to `log`."""

    def __init__(self, ranks: int, arguments: list[str], log: Path) -> None:
        self.size, self.log = ranks, log
        self._mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
        with log.open("w") as out:
            self.agent = subprocess.Popen(
                [*command, "launch/pretrain.py", *arguments],
                cwd=ROOT, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, _MARK: self._mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def processes(self) -> dict[int, dict[str, str]]:
        """Every live process of the launch, the agent too, with its environment."""
        wanted, found = f"{_MARK}={self._mark}".encode(), {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                except OSError:
                    continue
                if wanted in environment:  # that of a process that ended reads as empty
                    parts = (part.partition("=") for part in environment.decode(errors="replace").split("\0"))
                    found[int(folder.name)] = {name: value for name, _, value in parts}
        return found

    def ranks(self) -> dict[int, int]:
        """Process number by rank, of those that live."""
        return {
            int(environment["RANK"]): process
            for process, environment in self.processes().items()
            if "RANK" in environment and "launch/pretrain.py" in _command(process)
        }

    def is_over(self) -> bool:
        return self.agent.poll() is not None and not self.processes()

    def wait(self, seconds: float) -> bool:
        """Whether every process of it ended within `seconds`."""
        return wait_for(self.is_over, seconds)

    def kill_all(self) -> None:
        """SIGKILL to whatever is left; returns when nothing is."""
        deadline = time.monotonic() + 30
        while not self.is_over():
            assert time.monotonic() < deadline, f"{list(self.processes())} outlive SIGKILL"
            for process in self.processes():
                send(process, signal.SIGKILL)
            time.sleep(0.01)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def send(process: int, number: signal.Signals) -> None:
    """A signal to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.01) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _command(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def last_step(run: Path) -> int:
    """Of the last whole line of metrics.jsonl; 0 where there is none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    mark = b'{"step": '
    return int(lines[-1].removeprefix(mark).split(b",")[0]) if lines and lines[-1].startswith(mark) else 0


def begins(run: Path) -> int:
    """How often the run's events tell of a start or a resume."""
    try:
        text = (run / "events.jsonl").read_text(encoding="utf-8")
    except OSError:
        return 0
    return text.count('"event": "start"') + text.count('"event": "resume"')


def checkpoint_names(run: Path) -> list[str]:
    """All that lies in the folder of checkpoints, unfinished and temporary names too."""
    try:
        return os.listdir(run / "checkpoints")  # noqa: PTH208  called every millisecond
    except OSError:
        return []


def broken_promises(run: Path, harmed: Collection[str] = ()) -> list[str]:
    """What no kill may leave: a step-* folder that is not whole, a `latest` that names none of them.

    `harmed`: folders that something else has damaged, "" for an emptied `latest`.
    """
    root, found = run / "checkpoints", []
    names = sorted(name for name in checkpoint_names(run) if name.startswith("step-"))
    for name in names:
        try:
            wrong = checkpoint.damage(Found(root / name, checkpoint.read_manifest(root / name)))
        except CheckpointError as error:
            wrong = str(error)
        if wrong is not None and name not in harmed:
            found.append(f"{name}: {wrong}")
    named = (root / "latest").read_text(encoding="utf-8").strip() if (root / "latest").exists() else None
    is_first = named is None and len(names) <= 1  # a kill came between the first checkpoint and `latest`
    if not (is_first or named in names or named in harmed):
        found.append(f"latest names {named!r}, there are {names}")
    return found


def events(run: Path) -> list[dict[str, Any]]:
    """The run's events. What a kill has torn is left out; the next launch's first event stands on the same line."""
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line[max(0, line.rfind('{"event"')) :]))
    return found


def logged(run: Path, *names: str) -> list[tuple[float | None, ...]]:
    """Step and the values `names` of each line of metrics.jsonl."""
    return [tuple(line.get(name) for name in ("step", *names)) for line in read_lines(run / "metrics.jsonl")]
