"""A run on the cluster: how it is started, and what it leaves."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.cluster.machines import ROOT, Machine, end, wait_until
from tests.cluster.slurm import Job, Slurm
from tests.conftest import write_recipe
from tests.launches import last_step

STEPS = 60
PROGRAM = ROOT / "launch" / "pretrain.py"


class Run:
    """One run folder. Its programs start in `folder`, away from the clone; what they say is in `job.log` there."""

    def __init__(self, slurm: Slurm, dataset: Dataset, folder: Path) -> None:
        self._slurm, self.folder, self.path = slurm, folder, folder / "run"
        self.log = folder / "job.log"
        self.recipe = write_recipe(folder, dataset, self.path)
        self.settings = (f"train.max_steps={STEPS}", "checkpoint.every_steps=5", "evaluate.every_steps=null")
        self._programs: list[subprocess.Popen[bytes]] = []

    def submit(
        self, *overrides: str, options: tuple[str, ...] = ("--ntasks-per-node=1", "--gpus-per-node=1"), **env: str
    ) -> Job:
        """`sbatch --nodes 2 slurm/pretrain.sbatch RECIPE`."""
        return self._slurm.submit(
            "--nodes=2", "--cpus-per-task=1", *options, ROOT / "slurm" / "pretrain.sbatch", *self.arguments(*overrides),
            folder=self.folder, SCALETRAIN_HOME=str(ROOT), SCALETRAIN=str(Path(sys.executable).parent / "scaletrain"),
            **env,
        )  # fmt: skip

    def start_on(
        self, machine: Machine, *words: str | Path, log: Path | None = None, **env: str
    ) -> "subprocess.Popen[bytes]":
        """Starts a launcher's command on a machine."""
        program = machine.start_program(log or self.log, *words, folder=self.folder, **env)
        self._programs.append(program)
        return program

    def end(self) -> None:
        for program in self._programs:
            end(program)
        for rank in self.ranks().values():
            psutil.Process(rank).kill()

    def arguments(self, *overrides: str) -> list[str]:
        """Of launch/pretrain.py."""
        return [str(self.recipe), *self.settings, *overrides]

    def reach(self, step: int, seconds: float = 240) -> None:
        wait_until(lambda: last_step(self.path) >= step, seconds, self.said)

    def ranks(self) -> dict[int, int]:
        """The host's number of each living rank's process."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(PROGRAM) in words[:3] and str(self.recipe) in words and process.status() != psutil.STATUS_ZOMBIE:
                place = process.environ()
                found[int(place.get("RANK", place.get("SLURM_PROCID", "-1")))] = process.pid
        return found

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else "nothing"

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.path / "events.jsonl"
        return [line for line in read_lines(path) if line["event"] == name] if path.exists() else []

    def losses(self) -> list[float]:
        """Of each step, none twice."""
        lines = [line for line in read_lines(self.path / "metrics.jsonl") if "loss" in line]
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["loss"] for line in lines]
