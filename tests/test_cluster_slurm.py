"""What SLURM's commands are asked, and what their answers mean; the formats are those of SLURM 22.05."""

from pathlib import Path

import pytest

from scaletrain.cluster import slurm as commands
from scaletrain.cluster import submission
from scaletrain.cluster.slurm import Job
from scaletrain.errors import ClusterError
from tests.fake_slurm import FakeSlurm


def test_a_job_is_submitted_by_its_script_alone(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PARTITION", "TIMELIMIT", "ARRAY_INX", "NO_REQUEUE", "DEBUG"):
        monkeypatch.setenv(f"SBATCH_{name}", "x")
    slurm.answers("sbatch", "12;cluster\n", more='env | grep "^SBATCH_" | sort >environment')
    assert commands.submit(Path("/a b/job"), ["partition", "time", "array"]) == "12"
    assert (slurm.folder / "calls").read_text() == "sbatch --parsable /a b/job\n"
    assert (slurm.folder / "environment").read_text() == "SBATCH_DEBUG=x\n"


def test_what_sbatch_refuses_is_one_line(slurm: FakeSlurm) -> None:
    refusal = (
        "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid partition\n"
    )
    slurm.answers("sbatch", "", refusal, 1)
    with pytest.raises(ClusterError) as fault:
        commands.submit(Path("/run/job"), [])
    assert str(fault.value) == (
        "sbatch refused the job: invalid partition specified: x; Batch job submission failed: Invalid partition: "
        "change its options; the script is /run/job"
    )


def test_without_sbatch_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError) as fault:
        commands.check_sbatch()
    assert str(fault.value) == (
        "sbatch is not on the PATH: run this where SLURM's jobs are submitted (a login node), or see the script with "
        "--dry-run"
    )
    assert commands.find_jobs(["1"]) == {}
    commands.cancel(["1"])
    commands.forbid_requeue("1")


def test_jobs_and_tasks_are_told_by_their_names(slurm: FakeSlurm) -> None:
    slurm.queue(
        "9_4|PENDING|JobArrayTaskLimit|N/A|",
        "9_3|RUNNING|None|2026-11-28T00:00:17|n[1-2,7]",
        "12|PENDING|ReqNodeNotAvail, UnavailableNodes:n1|2026-11-29T00:00:00|",
        "9|CANCELLED|Resources|2026-11-27T23:59:25|",
    )
    jobs = commands.find_jobs(["9_3", "9_4", "9_5", "12"])
    assert jobs == {
        "9_3": Job("9_3", "RUNNING", "", "2026-11-28T00:00:17", "n[1-2,7]"),
        "9_4": Job("9_4", "PENDING", "JobArrayTaskLimit"),
        "12": Job("12", "PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "2026-11-29T00:00:00"),
    }
    assert [(job.waits, job.is_live) for job in jobs.values()] == [(False, True), (True, True), (True, True)]
    assert slurm.calls("squeue") == [
        ["--noheader", "--array", "--states=all", "--jobs=12,9", "--format=%i|%T|%r|%S|%N"]
    ]


def test_a_job_that_slurm_has_forgotten_is_asked_of_accounting(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", "", "slurm_load_jobs error: Invalid job id specified\n", 1)
    assert commands.find_jobs(["9"]) == {}
    slurm.answers("sacct", "", "Slurm accounting storage is disabled\n", 1)
    assert commands.find_jobs(["9"]) == {}
    slurm.answers("sacct", "9|CANCELLED by 1000\n9_1|NODE_FAIL\n")
    assert commands.find_jobs(["9", "9_1"]) == {"9": Job("9", "CANCELLED"), "9_1": Job("9_1", "NODE_FAIL")}
    assert not any(job.is_live for job in commands.find_jobs(["9", "9_1"]).values())


def test_nothing_is_asked_when_nothing_was_submitted(slurm: FakeSlurm) -> None:
    assert commands.find_jobs([]) == {}
    assert slurm.calls("squeue") == []


def test_a_controller_that_is_away_is_no_word_on_the_job(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)
    with pytest.raises(ClusterError) as fault:
        commands.find_jobs(["9"])
    assert str(fault.value) == (
        "squeue does not answer: Unable to contact slurm controller (connect failure): try again when SLURM is there"
    )


def test_a_command_that_hangs_is_a_line(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_SECONDS", 0.3)
    slurm.answers("squeue", "", more="exec sleep 30")
    with pytest.raises(ClusterError, match="squeue does not answer within 0.3 s: try again when SLURM is there"):
        commands.find_jobs(["9"])


def test_a_job_that_ended_meanwhile_needs_no_cancelling(slurm: FakeSlurm) -> None:
    slurm.answers("scancel", "", "scancel: error: Kill job error on job id 9: Invalid job id specified\n", 1)
    commands.cancel(["9_1", "9_2"])
    assert slurm.calls("scancel") == [["9_1", "9_2"]]
    slurm.answers("scancel", "", "scancel: error: Kill job error on job id 9: Access/permission denied\n", 1)
    with pytest.raises(ClusterError) as fault:
        commands.cancel(["9"])
    assert str(fault.value) == (
        "scancel failed: Kill job error on job id 9: Access/permission denied: only a job's owner may cancel it"
    )
    slurm.answers("scontrol", "", "Invalid job id specified for job 9\n", 1)
    commands.forbid_requeue("9_1")
    assert slurm.calls("scontrol") == [["update", "JobId=9_1", "Requeue=0"]]


def test_a_run_remembers_its_job_wherever_it_is_moved(tmp_path: Path) -> None:
    run = tmp_path / "sweep" / "a"
    assert submission.read(run) is None
    assert submission.next_folder(run) == run / "submit" / "0001"
    submission.note(run, "9_1", tmp_path / "sweep" / "submit" / "0001" / "9_1.log", run / "x" / "cancelled", 0)
    assert submission.submitted_below(tmp_path / "sweep") == [run]
    (run / "submit" / "0007").mkdir()
    assert submission.next_folder(run) == run / "submit" / "0008"
    moved = run.rename(tmp_path / "sweep" / "b")
    found = submission.read(moved)
    assert found is not None
    assert (found.job, found.log, found.cancelled) == ("9_1", "../submit/0001/9_1.log", "x/cancelled")
    assert found.events_bytes == 0


@pytest.mark.parametrize("text", ["", "[]", '{"job": "1"}'])
def test_a_record_that_cannot_be_read_is_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "submit").mkdir()
    (tmp_path / "submit" / "job.json").write_text(text)
    with pytest.raises(
        ClusterError, match=r"job.json cannot be read \(.*\): remove it; SLURM's squeue lists your jobs"
    ):
        submission.read(tmp_path)
