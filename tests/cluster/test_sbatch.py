"""slurm/pretrain.sbatch on a real SLURM: to the end, through its time limit, lost nodes and a lost controller."""

import json
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.cluster.machines import wait_until
from tests.cluster.runs import STEPS, Run
from tests.cluster.slurm import Slurm
from tests.conftest import scaletrain

pytestmark = pytest.mark.cluster


def proven(run: Run) -> str:
    """What `scaletrain audit RUN` says of a run that is done."""
    done = scaletrain("audit", run.path)
    assert done.code == 0, done.err
    return done.out


def catches(process: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_job_trains_on_two_nodes_to_the_end(whole: Run) -> None:
    (start,) = whole.events("start")
    assert (start["hosts"], start["ranks"]) == (["n1", "n2"], 2)
    assert len(whole.losses()) == STEPS
    environment = json.loads((whole.path / "environment.json").read_text(encoding="utf-8"))
    assert environment["network"] == {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}
    assert "proven: " in proven(whole)
    assert f"0: done    {STEPS} steps" in whole.said()
    assert not list(whole.folder.glob(".scaletrain-*"))


def test_two_ranks_a_node_with_a_gpu_each_outlive_slurms_daemons(slurm: Slurm, run: Run) -> None:
    slurm.machines.slow_down()
    pattern = str(run.folder / "rank-%t.txt")
    job = run.submit(options=("--ntasks-per-node=2", "--gpus-per-node=2"), SCALETRAIN_RANK_OUTPUT=pattern)
    run.reach(1)
    seen = [psutil.Process(rank).environ()["CUDA_VISIBLE_DEVICES"] for rank in run.ranks().values()]
    assert seen == ["0,1"] * 4  # each rank sees all of its node
    slurm.restart_controller(pause=3)
    slurm.restart_slurmd(slurm.n2)
    slurm.machines.speed_up()
    assert job.wait() == "COMPLETED 0:0"
    assert run.events("start")[0]["ranks"] == 4
    assert len(run.losses()) == STEPS
    assert f"done    {STEPS} steps" in (run.folder / "rank-0.txt").read_text(encoding="utf-8")
    assert sorted(path.name for path in run.folder.glob("rank-*")) == [f"rank-{rank}.txt" for rank in range(4)]


def test_a_job_saves_before_its_time_is_over_queues_again_and_ends_as_if_uninterrupted(
    slurm: Slurm, whole: Run, run: Run
) -> None:
    # SLURM looks at its clocks twice a minute: the warning may come 75 s after the start, and the job must still run.
    slurm.machines.slow_down("tbf rate 2mbit burst 16kbit latency 1s")
    job = run.submit(options=("--ntasks-per-node=1", "--gpus-per-node=1", "--time=2", "--signal=USR1@75"))
    wait_until(lambda: job.shows("Restarts") == "1", 120, run.said)
    slurm.asks("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")
    slurm.machines.speed_up()
    assert job.wait() == "COMPLETED 0:0", run.said()
    (stop,), (resume,) = run.events("stop"), run.events("resume")
    assert stop["reason"] == "SIGUSR1"
    assert 0 < stop["step"] == resume["step"] < STEPS
    assert f"queued  job {job.number} again, to go on" in run.said()
    assert run.losses() == whole.losses()


def test_a_warning_in_the_first_seconds_ends_no_rank(run: Run, whole: Run) -> None:
    job = run.submit()
    wait_until(lambda: [catches(rank, signal.SIGUSR1) for rank in run.ranks().values()] == [True] * 2, 60, run.said)
    job.signal("USR1")
    assert job.wait() == "COMPLETED 0:0", run.said()
    (stop,) = run.events("stop")
    assert (stop["step"], stop["reason"]) == (1, "SIGUSR1")
    assert run.losses() == whole.losses()


def test_a_cancelled_job_is_saved_and_stays_cancelled(slurm: Slurm, run: Run) -> None:
    job = run.submit("train.max_steps=100000")
    run.reach(3)
    job.cancel()
    assert job.wait().startswith("CANCELLED"), run.said()
    (stop,) = run.events("stop")
    assert stop["reason"] in {"SIGTERM", "asked for on another rank"}
    assert (run.path / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()
    assert "not queued again" in run.said()


def test_a_preempted_job_goes_on_and_the_stop_file_ends_it_for_good(slurm: Slurm, run: Run) -> None:
    job = run.submit("train.max_steps=100000")
    run.reach(3)
    slurm.asks("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true")
    wait_until(lambda: run.events("resume"), 120, run.said)
    (preempted,) = run.events("stop")
    assert preempted["reason"] in {"SIGTERM", "asked for on another rank"}
    assert run.events("resume")[0]["step"] == preempted["step"] >= 3
    (run.path / "stop").touch()
    assert job.wait() == "FAILED 75:0", run.said()
    assert f"stopped for good ({run.path / 'stop'} was found): not queued again" in run.said()


def test_a_fault_of_the_recipe_fails_the_job_with_2_and_a_line_a_node(run: Run) -> None:
    job = run.submit("train.max_stepz=1", options=("--ntasks-per-node=2", "--gpus-per-node=2"))
    assert job.wait() == "FAILED 2:0"
    lines = re.findall(
        r"^(\d): error: .*train.max_stepz=1 is unknown: did you mean train.max_steps\?$", run.said(), re.M
    )
    assert sorted(lines) == ["0", "2"]


def test_a_node_that_loses_power_costs_the_steps_since_the_last_checkpoint(slurm: Slurm, whole: Run, run: Run) -> None:
    # The ranks must bear the silence until SLURM has noticed it: longer than SlurmdTimeout, which is 10 s here.
    slurm.machines.slow_down()
    job = run.submit("guard.hang_seconds=60")
    run.reach(12)
    slurm.machines.power_off(slurm.n2)
    wait_until(lambda: job.shows("Restarts") == "1", 60, run.said)
    slurm.start_node(slurm.n2)
    slurm.machines.speed_up()
    assert job.wait() == "COMPLETED 0:0", run.said()
    (resume,) = run.events("resume")
    assert resume["step"] >= 10
    assert run.losses() == whole.losses()
    assert "proven: " in proven(run)
