"""Where numbers and events go: JSON lines and TensorBoard, written by rank 0."""

import json
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from scaletrain.runtime.files import write_whole

_TAIL_BYTES = 1 << 16  # holds the last line of a metrics or events file
Value = float | int | str | bool | None


class Sink(Protocol):
    """Takes the values of one step."""

    def write(self, step: int, values: Mapping[str, Value]) -> None: ...

    def rewind(self, step: int) -> None:
        """The run goes back to `step`: what was written of later ones is dropped."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object a line. Opened at step `resumed` it first drops the lines of later steps, which the
    resumed run will write again, and a line torn by a kill."""

    def __init__(self, path: Path, resumed: int) -> None:
        self._path = path
        self._open(resumed)

    def _open(self, resumed: int) -> None:
        if self._path.exists():
            _keep_until(self._path, resumed)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def rewind(self, step: int) -> None:
        self._file.close()
        self._open(step)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        self._file.write(json.dumps({"step": step, **{k: _plain(v) for k, v in values.items()}}) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """The same values as curves. tensorboard is imported at the first write: it costs a second."""

    def __init__(self, folder: Path, resumed: int) -> None:
        self._folder, self._resumed = folder, resumed
        self._writer: Any = None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self._resumed + 1)
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                section = "evaluate" if name.startswith("eval_") else "train"
                self._writer.add_scalar(f"{section}/{name.removeprefix('eval_')}", value, step)

    def rewind(self, step: int) -> None:
        self.close()
        self._writer, self._resumed = None, step

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Events:
    """`events.jsonl`: what happened when, on which rank and host. Never rewritten. Ranks other than 0 pass no path."""

    def __init__(self, path: Path | None, rank: int) -> None:
        self._path, self._rank, self._host = path, rank, socket.gethostname()

    def write(self, event: str, step: int, **values: Any) -> None:
        if self._path is None:
            return
        line = {"event": event, "time": time.time(), "step": step, "rank": self._rank, "host": self._host, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def last_evaluation(path: Path) -> int | None:
    """The step of the last evaluation in a metrics.jsonl; None without one."""
    steps = [line["step"] for line in read_lines(path) if any(name.startswith("eval_") for name in line)]
    return max(steps, default=None)


def read_lines(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file from byte `start` on; a last line that a kill tore is left out."""
    lines = []
    for line in path.read_bytes()[start:].decode("utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def last_line(path: Path, having: str | None = None) -> dict[str, Any] | None:
    """The last whole object of a JSON-lines file, however long the file is; of those with the key `having`, if given
    (which are looked for near the end of the file only)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if not isinstance(value, dict):
            return None
        if having is None or having in value:
            return value
    return None


def _keep_until(path: Path, step: int) -> None:
    kept = [line for line in read_lines(path) if line["step"] <= step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def _plain(value: Value) -> Value:
    """JSON has no NaN or infinity: they are written as strings, which float() reads back."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
