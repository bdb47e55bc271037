"""What `scaletrain status` tells of a run: by SLURM's word, by its folder, or by both."""

import fcntl
from pathlib import Path

import pytest

from tests.commands.made_runs import MadeRun
from tests.conftest import scaletrain
from tests.fake_slurm import FakeSlurm


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return MadeRun(tmp_path / "run")


def told(run: MadeRun) -> dict[str, str]:
    """The lines by their first word."""
    done = scaletrain("status", run.folder)
    assert (done.code, done.err) == (0, "")
    return {line[:8].strip(): line[8:] for line in done.out.splitlines()}


def test_a_running_job_shows_steps_loss_speed_and_the_time_left(run: MadeRun, slurm: FakeSlurm) -> None:
    run.submitted("12").event("start", 0).saved(900).logged(1000)
    slurm.queue("12|RUNNING|None|2026-11-28T00:00:00|n[1-2]")
    assert told(run) == {
        "run": str(run.folder),
        "state": "running",
        "step": "1,000 of 2,000, saved up to 900",
        "loss": "2.5000 at step 1,000, 1,234 tok/s, 0:50 h left",
        "scores": "loss 9.9000 at step 1,000",
        "job": "12 on n[1-2]",
        "log": f"{run.folder}/submit/0001/12.log",
    }


@pytest.mark.parametrize(
    ("queue", "state"),
    [
        ("PENDING|Priority|2026-11-29T08:00:00|", "queued (Priority, expected to start 2026-11-29T08:00:00)"),
        ("PENDING|None|N/A|", "queued"),
        ("CONFIGURING|None|N/A|n1", "running (starting)"),
        ("RUNNING|None|2026-11-29T08:00:00|n1", "running (starting)"),
        ("REQUEUE_HOLD|job requeued in held state|N/A|", "requeued (job requeued in held state)"),
        ("CANCELLED|None|N/A|", "stopped (cancelled before it began)"),
        ("NODE_FAIL|NodeDown|N/A|", "failed (NODE_FAIL NodeDown)"),
        ("COMPLETED|None|N/A|", "failed (it ended without a word, such as by a kill)"),
    ],
)
def test_a_job_that_has_not_trained_yet(queue: str, state: str, run: MadeRun, slurm: FakeSlurm) -> None:
    run.submitted("12")
    slurm.queue(f"12|{queue}")
    assert (told(run)["state"], told(run)["step"]) == (state, "-, saved up to 0")


@pytest.mark.parametrize(
    ("queue", "state"),
    [
        ("PENDING|BeginTime|2026-11-29T08:00:00|", "requeued (BeginTime)"),
        ("RUNNING|None|2026-11-29T08:00:00|n1", "running"),
        ("FAILED|NonZeroExitCode|N/A|", "stopped (SIGUSR1)"),
    ],
)
def test_a_job_that_has_saved_at_its_limit(queue: str, state: str, run: MadeRun, slurm: FakeSlurm) -> None:
    run.submitted("12").event("start", 0).logged(50).event("stop", 50, reason="SIGUSR1").saved(50)
    slurm.queue(f"12|{queue}")
    assert (told(run)["state"], told(run)["step"]) == (state, "50 of 2,000, saved up to 50")


def test_a_job_that_slurm_has_forgotten_is_told_by_its_folder(run: MadeRun, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", "", "slurm_load_jobs error: Invalid job id specified\n", 1)
    run.submitted("12").event("start", 0).logged(2000).event("end", 2000)
    assert (told(run)["state"], told(run)["job"]) == ("done", "12")


def test_a_job_that_was_cancelled_as_it_waited_to_go_on(run: MadeRun, slurm: FakeSlurm) -> None:
    run.submitted("12").event("start", 0).event("checkpoint", 300).logged(302).saved(300)
    slurm.queue("12|CANCELLED|BeginTime|N/A|")
    assert (told(run)["state"], told(run)["step"]) == ("stopped (cancelled)", "302 of 2,000, saved up to 300")


def test_only_what_came_after_a_submission_is_of_its_job(run: MadeRun, slurm: FakeSlurm) -> None:
    run.submitted("12").event("start", 0).logged(50).event("stop", 50, reason="SIGTERM")
    assert told(run)["state"] == "stopped (SIGTERM)"
    run.submitted("13").said(
        "srun: x", " 0: error: dataset data is not a folder: make it", "srun: error: n1: task 0: exit 2"
    )
    assert told(run)["state"] == "failed (dataset data is not a folder: make it)"
    assert told(run)["log"] == f"{run.folder}/submit/0002/13.log"


def test_a_run_without_slurm_is_told_by_its_lock_and_its_records(
    run: MadeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run.event("start", 0).logged(7, "nan")
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told(run)["state"] == "running"
        assert told(run)["loss"] == "nan at step 7, 1,234 tok/s, 1:40 h left"
    assert told(run)["state"] == "failed (it ended without a word, such as by a kill)"
    (run.folder / "logs").mkdir()
    (run.folder / "logs" / "rank-00000.log").write_text("x\nRuntimeError: CUDA out of memory\n")
    assert told(run)["state"] == "failed (RuntimeError: CUDA out of memory)"
    assert told(run)["log"] == f"{run.folder}/logs"
    run.event("resume", 4).event("end", 2000)
    assert told(run)["state"] == "done"


def test_a_run_whose_data_end_it_shows_that_end(run: MadeRun, slurm: FakeSlurm) -> None:
    run.logged(50).event("start", 0).event("repeat_limit", 0, source="web", samples=800, last_step=100)
    assert told(run)["step"] == "50 of 100, saved up to 0"
    run.event("resume", 50)
    assert told(run)["step"] == "50 of 2,000, saved up to 0"


def test_a_recipe_of_another_version_costs_the_total_alone(run: MadeRun, slurm: FakeSlurm) -> None:
    run.logged(50).event("start", 0)
    (run.folder / "recipe.yaml").write_text("run: {dir: x, colour: red}")
    assert told(run)["step"] == "50, saved up to 0"


def test_a_sweep_is_a_line_a_run(tmp_path: Path, slurm: FakeSlurm) -> None:
    sweep = tmp_path / "sweep"
    MadeRun(sweep / "lr=1").submitted("9_1").event("start", 0).logged(2000, 1.25).event("end", 2000)
    MadeRun(sweep / "lr=2").submitted("9_2").event("start", 0).logged(30).said("error: rank 3 died")
    MadeRun(sweep / "lr=3").submitted("9_3").event("start", 0).logged(1000)
    MadeRun(sweep / "lr=4").submitted("9_4")
    slurm.queue("9_3|RUNNING|None|N/A|n1", "9_4|PENDING|JobArrayTaskLimit|N/A|", "9_2|FAILED|NonZeroExitCode|N/A|n1")
    done = scaletrain("status", sweep)
    assert (done.code, done.err) == (0, "")
    assert (
        done.out
        == """\
state    step         loss    tok/s  job  run
done     2,000/2,000  1.2500  1,234  9_1  lr=1
failed   30/2,000     2.5000  1,234  9_2  lr=2: rank 3 died
running  1,000/2,000  2.5000  1,234  9_3  lr=3
queued   -            -       -      9_4  lr=4: JobArrayTaskLimit
4 runs: 1 done, 1 failed, 1 running, 1 queued
"""
    )
    assert len(slurm.calls("squeue")) == 1
    assert "state   failed (rank 3 died)\n" in scaletrain("status", sweep / "lr=2").out


def test_a_folder_that_is_no_run_is_a_line(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        done = scaletrain("status", place)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"error: {place} is no run and no sweep: give the run.dir of one that was begun or submitted\n"
        )
