"""One cell of the throughput grid: a model, a batch and a way to train it, run by launch/pretrain.py in a process."""

import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench_data import RECIPE, run_overrides
from benchmarks.record import ROOT, variables
from scaletrain.config.schema import Model, Precision
from scaletrain.track.sinks import read_lines

POLL_SECONDS = 0.25
# torch on a GPU; torch and Python on a CPU; torchrun of a rank that the kernel has killed.
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory|DefaultCPUAllocator|MemoryError|SIGKILL")
_KILLED = (-9, 137)  # by the kernel, for nobody else does


@dataclass(frozen=True)
class Cell:
    """`label` names the model for a person; `micro_batch` None: the largest that fits; `samples`: that a rank reads in
    a step, None: one micro-batch; `more`: overrides that win."""

    label: str
    model: Model
    context: int
    stage: int
    checkpointing: str
    precision: Precision
    ranks: int
    micro_batch: int | None
    samples: int | None = None
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The same in each run of the benchmark, and no other cell's."""
        batch = "max" if self.micro_batch is None else str(self.micro_batch)
        if self.samples is not None and self.micro_batch is not None:
            batch = f"{self.samples // self.micro_batch} x {batch}"
        ranks = f", {self.ranks} ranks" if self.ranks > 1 else ""
        way = f"ZeRO {self.stage}, {self.checkpointing}, {self.precision}{ranks}"
        return ", ".join([f"{self.label}, {batch} x {self.context}, {way}", *self.more])


@dataclass(frozen=True)
class Run:
    """What a run has left: a line of metrics.jsonl a step, and why it ended early, if it did."""

    lines: list[dict[str, Any]]
    error: str | None = None
    out_of_memory: bool = False
    shares: dict[str, float] = field(default_factory=dict)  # of the profiled step, see profiled_step.py

    @property
    def is_whole(self) -> bool:
        return self.error is None and not self.out_of_memory


def overrides(cell: Cell, data: Path, folder: Path, micro_batch: int, steps: int) -> list[str]:
    """What turns the recipe into this cell."""
    model = {"preset": "null", **cell.model.model_dump(exclude_none=True)}
    return [
        *run_overrides(data, folder, (cell.samples or micro_batch) * cell.ranks, steps, cell.stage),
        f"data.context_length={cell.context}",
        *(f"model.{name}={value}" for name, value in model.items()),
        f"train.micro_batch_size={micro_batch}",
        f"train.precision={cell.precision}",
        f"train.activation_checkpointing={cell.checkpointing}",
        *cell.more,
    ]


def run_cell(cell: Cell, data: Path, micro_batch: int, steps: int, limit: int | None, *, profile: bool = False) -> Run:
    """Trains `steps` steps. The run is ended as soon as its last step is written, for nobody needs its checkpoint, and
    when its processes hold more than `limit` bytes."""
    with tempfile.TemporaryDirectory(prefix="scaletrain-benchmark-") as place:
        folder = Path(place) / "run"
        launcher = [sys.executable]
        if cell.ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cell.ranks}"]
        script = [ROOT / "launch" / "pretrain.py"]
        if profile:
            script = [ROOT / "benchmarks" / "profiled_step.py", Path(place) / "shares.json", str(steps)]
        words = [*launcher, *script, RECIPE, *overrides(cell, data, folder, micro_batch, steps)]
        with (Path(place) / "output").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                list(map(str, words)), env=variables(), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                is_too_large = _watch(process, folder / "metrics.jsonl", cell.ranks, steps, limit)
            finally:
                _end(process)
        lines = _steps(folder / "metrics.jsonl")
        if len(lines) >= steps:
            shares = json.loads((Path(place) / "shares.json").read_text(encoding="utf-8")) if profile else {}
            return Run(lines, shares=shares)
        logs = [Path(place) / "output", *sorted(folder.glob("logs/rank-*.log"))]
        text = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
        died = is_too_large or process.returncode in _KILLED or _OUT_OF_MEMORY.search(text) is not None
        return Run(lines, None if died else error_line(text).replace(f"{ROOT}/", "").replace(f"{place}/", ""), died)


def error_line(output: str) -> str:
    """The line that tells a person most: the program's own error, else the exception, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"error: ", r"\w*(Error|Exception)\b.*: "):
        if found := [line for line in lines if re.match(pattern, line)]:
            return found[-1]
    return lines[-1] if lines else "it ended without a word"


def _watch(process: subprocess.Popen[bytes], metrics: Path, ranks: int, steps: int, limit: int | None) -> bool:
    """Returns when the run has ended or has done its steps; True: when it held too much memory."""
    while process.poll() is None and len(_steps(metrics)) < steps:
        if limit is not None and _resident_bytes(process.pid, ranks) > limit:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _resident_bytes(pid: int, ranks: int) -> int:
    try:
        process = psutil.Process(pid)
        # A search for children reads all processes of the machine: it would show in the step times.
        family = [process, *process.children(recursive=True)] if ranks > 1 else [process]
        return sum(one.memory_info().rss for one in family)
    except psutil.NoSuchProcess:
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            launcher = psutil.Process(process.pid)
            family = [launcher, *launcher.children(recursive=True)]  # the launcher first: it would tell of lost ranks
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    process.wait()


def _steps(metrics: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(metrics) if "step_seconds" in line] if metrics.exists() else []
