"""`scaletrain cancel`: what is asked of SLURM and of the run, and what is said of the save."""

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaletrain.commands import cancel
from tests.commands.made_runs import MadeRun
from tests.conftest import Done, scaletrain
from tests.fake_slurm import FakeSlurm

RUNNING = "12|RUNNING|None|N/A|n1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "_POLL_SECONDS", 0.1)


def cancelled(folder: Path, trainer: Callable[[], None] = lambda: None, wait: str = "20") -> Done:
    """Cancels while `trainer` does what the run's program would."""
    thread = threading.Thread(target=trainer)
    thread.start()
    done = scaletrain("cancel", folder, "--wait", wait)
    thread.join()
    return done


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def test_a_running_job_saves_and_is_not_put_back(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12").event("start", 0).logged(1234)
    slurm.queue(RUNNING)

    def trainer() -> None:
        wait_for(run.folder / "stop")
        assert (run.folder / "submit" / "0001" / "cancelled").exists()
        assert slurm.calls("scontrol") == [["update", "JobId=12", "Requeue=0"]]
        (run.folder / "stop").unlink()
        run.saved(1240).event("stop", 1240, reason="the file")
        time.sleep(0.3)  # SLURM still ends the job
        slurm.queue()

    done = cancelled(run.folder, trainer)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"stopped {run.folder} (job 12), saved at step 1,240\n"
    assert not (run.folder / "stop").exists()
    assert slurm.calls("scancel") == []


def test_a_stop_file_that_a_starting_program_takes_for_an_old_one_is_written_again(
    tmp_path: Path, slurm: FakeSlurm
) -> None:
    run = MadeRun(tmp_path / "run").submitted("12").event("start", 0).event("stop", 3)
    slurm.queue(RUNNING)  # put back into the queue earlier, and at its start now

    def trainer() -> None:
        wait_for(run.folder / "stop")
        run.event("resume", 3)
        (run.folder / "stop").unlink()
        wait_for(run.folder / "stop")
        run.saved(4).event("stop", 4)
        slurm.queue()

    done = cancelled(run.folder, trainer)
    assert (done.code, done.out) == (0, f"stopped {run.folder} (job 12), saved at step 4\n")
    assert not (run.folder / "stop").exists()


def test_a_run_that_comes_to_its_end_meanwhile_is_done(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12").event("start", 0)
    slurm.queue(RUNNING)

    def trainer() -> None:
        wait_for(run.folder / "stop")
        run.event("end", 2000)
        slurm.queue()

    done = cancelled(run.folder, trainer)
    assert (done.code, done.out) == (0, f"done    {run.folder} (job 12), saved at step 2,000\n")


def test_a_run_that_dies_instead_of_saving_is_an_error(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12").event("start", 0).saved(1000).said("error: rank 1 died")
    slurm.queue(RUNNING)

    def trainer() -> None:
        wait_for(run.folder / "stop")
        slurm.queue("12|FAILED|NonZeroExitCode|N/A|n1")

    done = cancelled(run.folder, trainer)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: {run.folder} (job 12) ended without a save (rank 1 died); it goes on from step 1,000\n"
    )


def test_the_wait_for_a_save_has_an_end(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12").event("start", 0)
    slurm.queue(RUNNING)
    done = cancelled(run.folder, wait="0")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: {run.folder} (job 12) still runs: it saves and ends as it was asked to; wait longer (--wait), or "
        "`scancel 12`, which waits for no save\n"
    )
    assert (run.folder / "stop").exists()


@pytest.mark.parametrize(("begun", "saved"), [(False, "no step is saved yet"), (True, "it goes on from step 50")])
def test_a_job_that_waits_is_taken_out_of_the_queue(begun: bool, saved: str, tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12")
    if begun:
        run.event("start", 0).event("checkpoint", 50).saved(50)
    slurm.queue("12|PENDING|Priority|N/A|")
    slurm.answers("scancel", "", more=": >squeue.out")
    done = cancelled(run.folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"removed {run.folder} (job 12) from the queue; {saved}\n"
    assert slurm.calls("scancel") == [["12"]]
    assert not (run.folder / "stop").exists()
    assert scaletrain("cancel", run.folder).out == f"{run.folder}: nothing is queued or running\n"


def test_a_job_that_starts_meanwhile_ends_before_it_trains(tmp_path: Path, slurm: FakeSlurm) -> None:
    run = MadeRun(tmp_path / "run").submitted("12")
    slurm.queue(RUNNING)

    def trainer() -> None:
        wait_for(run.folder / "submit" / "0001" / "cancelled")  # the script of the job sees it
        slurm.queue("12|FAILED|NonZeroExitCode|N/A|n1")

    done = cancelled(run.folder, trainer)
    assert (done.code, done.out) == (0, f"removed {run.folder} (job 12) from the queue; no step is saved yet\n")


def test_all_runs_of_a_sweep_are_cancelled_together(tmp_path: Path, slurm: FakeSlurm) -> None:
    sweep = tmp_path / "sweep"
    MadeRun(sweep / "a").submitted("9_1").event("start", 0).event("end", 2000)
    at_work = MadeRun(sweep / "b").submitted("9_2").event("start", 0)
    for name, task in (("c", 3), ("d", 4)):
        MadeRun(sweep / name).submitted(f"9_{task}")
    slurm.queue("9_2|RUNNING|None|N/A|n1", "9_3|PENDING|None|N/A|", "9_4|PENDING|None|N/A|")
    slurm.answers("scancel", "", more="grep RUNNING squeue.out >left; mv left squeue.out")

    def trainer() -> None:
        wait_for(at_work.folder / "stop")
        at_work.event("stop", 77)
        time.sleep(0.3)
        slurm.queue()

    done = cancelled(sweep, trainer)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"stopped {sweep}/b (job 9_2), saved at step 77",
        f"removed {sweep}/c (job 9_3) from the queue; no step is saved yet",
        f"removed {sweep}/d (job 9_4) from the queue; no step is saved yet",
    ]
    assert slurm.calls("scancel") == [["9_3", "9_4"]]
    assert not (sweep / "a" / "submit" / "0001" / "cancelled").exists()


def test_a_run_that_was_started_by_hand_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: FakeSlurm
) -> None:
    run = MadeRun(tmp_path / "run").event("start", 0)
    lock = (run.folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    monkeypatch.setenv("PATH", "")

    def trainer() -> None:
        wait_for(run.folder / "stop")
        run.event("stop", 5)
        lock.close()

    done = cancelled(run.folder, trainer)
    assert (done.code, done.out) == (0, f"stopped {run.folder}, saved at step 5\n")
