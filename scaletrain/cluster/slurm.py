"""SLURM's commands: jobs submitted, asked after, cancelled. Written for SLURM 22.05 and later."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.errors import ClusterError

_SECONDS = 60.0  # for an answer; a busy controller takes its time
_FIELDS = "%i|%T|%r|%S|%N"
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
_AT_WORK = ("CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT", "COMPLETING")
_UNKNOWN = ("None", "N/A", "(null)")
# What scancel and scontrol say of a job that has ended meanwhile.
_OVER = ("Invalid job id", "already completing or completed", "already finished")


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job, or of one task of an array (12_3). `start`: expected, if it waits; empty if unknown."""

    name: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        return self.state in _WAITING

    @property
    def is_live(self) -> bool:
        return self.waits or self.state in _AT_WORK


def check_sbatch() -> None:
    """ClusterError where no job can be submitted."""
    if shutil.which("sbatch") is None:
        raise ClusterError(
            "sbatch is not on the PATH: run this where SLURM's jobs are submitted (a login node), or see the script "
            "with --dry-run"
        )


def submit(script: Path, set_by_script: Sequence[str]) -> str:
    """Hands a job script to sbatch and gives the job's number.

    sbatch lets its SBATCH_* variables win over the script; those of the options that the script sets are kept from it.
    """
    done = _call("sbatch", "--parsable", str(script), without=_variables(set_by_script))
    assert done is not None
    if done.returncode:
        raise ClusterError(f"sbatch refused the job: {_said(done)}: change its options; the script is {script}")
    return done.stdout.strip().partition(";")[0]


def find_jobs(names: Sequence[str]) -> dict[str, Job]:
    """What SLURM says of these jobs; one that it has forgotten, or all where there is no SLURM, are left out."""
    numbers = sorted({name.partition("_")[0] for name in names})
    if not numbers:
        return {}
    listed = f"--jobs={','.join(numbers)}"
    done = _call("squeue", "--noheader", "--array", "--states=all", listed, f"--format={_FIELDS}")
    if done is None:
        return {}
    if done.returncode and not _is_over(done):
        raise ClusterError(f"squeue does not answer: {_said(done)}: try again when SLURM is there")
    found = _read(done.stdout)
    if any(name not in found for name in names):  # accounting remembers longer, where there is any
        done = _call("sacct", "--noheader", "--parsable2", "--allocations", listed, "--format=JobID,State")
        found = (_read(done.stdout) if done is not None and not done.returncode else {}) | found
    return {name: found[name] for name in names if name in found}


def cancel(names: Sequence[str]) -> None:
    """Takes waiting jobs out of the queue; a running one is ended without being asked to save."""
    done = _call("scancel", *names)
    if done is not None and done.returncode and not _is_over(done):
        raise ClusterError(f"scancel failed: {_said(done)}: only a job's owner may cancel it")


def forbid_requeue(name: str) -> None:
    """Keeps SLURM from putting a job back into the queue, by itself too (a dead node). It may have ended meanwhile."""
    _call("scontrol", "update", f"JobId={name}", "Requeue=0")


def _variables(options: Sequence[str]) -> list[str]:
    """The SBATCH_* variables that mean the same as these options of sbatch."""
    other = {"time": "TIMELIMIT", "array": "ARRAY_INX", "mem": "MEM_PER_NODE", "cpus-per-task": "CPUS_PER_TASK"}
    return [f"SBATCH_{other.get(name, name.upper().replace('-', '_'))}" for name in options] + ["SBATCH_NO_REQUEUE"]


def _call(program: str, *arguments: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str] | None:
    """Runs one of SLURM's commands; None where it is not installed."""
    env = {name: value for name, value in os.environ.items() if name not in without}
    try:
        return subprocess.run(
            [program, *arguments], env=env, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{program} does not answer within {_SECONDS:g} s: try again when SLURM is there") from None


def _read(lines: str) -> dict[str, Job]:
    """Jobs by name, from lines of name|state|reason|start|nodes, of which the last three may be missing."""
    found = {}
    for line in lines.splitlines():
        words = ["" if word in _UNKNOWN else word for word in [*line.strip().split("|"), "", "", ""]]
        name, state, reason, start, nodes, *_ = words
        found[name] = Job(name, state.partition(" ")[0], reason, start, nodes)  # sacct: CANCELLED by 1000
    return found


def _is_over(done: subprocess.CompletedProcess[str]) -> bool:
    return any(words in done.stderr for words in _OVER)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command complains of, in one line."""
    lines = [line.partition("error: ")[2] or line for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"
