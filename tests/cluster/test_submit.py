"""`scaletrain submit`, `status` and `cancel` on a real SLURM: a run on two nodes, one that is cancelled, a sweep."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.machines import wait_until
from tests.cluster.runs import STEPS, Run
from tests.cluster.slurm import Job, Slurm

pytestmark = pytest.mark.cluster
_SWEEP = """\
grid:
  optim.lr: [0.01, 0.003, 0.001, 0.0003, 0.0001]
runs:
  - {name: bad, optim.lr: 1.0e+30}
"""


def _call(slurm: Slurm, run: Run, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """`scaletrain WORDS` on the head, which is the login node."""
    return slurm.head.run("scaletrain", *words, folder=run.folder, seconds=120)


def _submit(slurm: Slurm, run: Run, *words: str) -> Job:
    told = _call(slurm, run, "submit", *run.arguments(*words), "--time=10").stdout
    number = re.match(r"job     (\d+): ", told)
    assert number is not None, told
    log = re.search(r"^log     (\S+)$", told, re.MULTILINE)
    assert log is not None, told
    run.log = Path(log[1])
    return Job(slurm, int(number[1]), run.log)


def test_a_submitted_run_trains_on_both_nodes_to_the_end(slurm: Slurm, run: Run, whole: Run) -> None:
    script = run.folder / "job.sbatch"
    dry = _call(slurm, run, "submit", *run.arguments(), "--nodes=2", "--time=10", "--gpus-per-node=1", "--dry-run")
    script.write_text(dry.stdout, encoding="utf-8")
    assert "to start at" in slurm.asks("sbatch", "--test-only", script).stderr
    assert not run.path.exists()
    job = _submit(slurm, run, "--nodes=2", "--gpus-per-node=1")
    assert job.wait() == "COMPLETED 0:0", run.said()
    (start,) = run.events("start")
    assert (start["hosts"], start["ranks"]) == (["n1", "n2"], 2)
    assert run.losses() == whole.losses()
    told = _call(slurm, run, "status", run.path).stdout.splitlines()
    assert told[1:3] == ["state   done", f"step    {STEPS} of {STEPS}, saved up to {STEPS}"]
    assert told[-2:] == [f"job     {job.number} on n[1-2]", f"log     {run.log}"]


def test_a_run_that_is_cancelled_is_saved_and_does_not_come_back(slurm: Slurm, run: Run) -> None:
    job = _submit(slurm, run, "train.max_steps=100000", "--nodes=2")
    run.reach(3)
    told = _call(slurm, run, "cancel", run.path).stdout
    step = int(run.events("stop")[0]["step"])
    assert told == f"stopped {run.path} (job {job.number}), saved at step {step:,}\n"
    assert (run.path / "checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()
    assert job.wait() == "FAILED 75:0", run.said()
    assert (job.shows("Requeue"), job.shows("Restarts")) == ("0", "0")
    assert "not queued again" in run.said()
    told = _call(slurm, run, "status", run.path).stdout
    assert "state   stopped (" in told
    assert f"step    {step} of 100,000, saved up to {step}\n" in told


def test_a_sweep_is_a_job_array_whose_failed_run_is_told_with_its_reason(slurm: Slurm, run: Run) -> None:
    sweep = run.folder / "sweep.yaml"
    sweep.write_text(_SWEEP, encoding="utf-8")
    few = ("train.max_steps=6", "guard.max_skips=3", f"--array={sweep}", "--max-parallel=2")
    job = _submit(slurm, run, *few)
    assert job.shows("ArrayTaskThrottle") == "2"
    listed = ("squeue", "--noheader", f"--jobs={job.number}", "--format=%i %T")
    wait_until(lambda: not slurm.asks(*listed).stdout, 300, lambda: slurm.asks(*listed).stdout)
    *rows, last = _call(slurm, run, "status", run.path).stdout.splitlines()[1:]
    assert last in ("6 runs: 5 done, 1 failed", "6 runs: 1 failed, 5 done")
    (failed,) = [row for row in rows if row.startswith("failed")]
    assert re.match(
        rf"failed +\d/6 .* {job.number}_6 +bad: 3 updates in a row were left out \(guard\.max_skips=3\)", failed
    )
    done = [row.split() for row in rows if row.startswith("done")]
    assert [words[1] for words in done] == ["6/6"] * 5
    assert {words[-1] for words in done} == {f"lr={lr}" for lr in ("0.01", "0.003", "0.001", "0.0003", "0.0001")}
