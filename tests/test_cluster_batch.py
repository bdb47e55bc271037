"""The text of a job script, and what cannot stand in one."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scaletrain.cluster.batch import (
    Batch,
    Told,
    array_of,
    body_of,
    container,
    job_script,
    limit_seconds,
    signal_seconds,
)
from scaletrain.errors import ClusterError

BATCH = Batch("gpt", Path("/work/me"), 1, 1, 0, 3600, 300, log=Path("/runs/a/submit/0001/%j.log"))
TOLD = Told(Path("/runs/a/submit/0001"), {"SCALETRAIN_PYTHON": "/venv/bin/python"})
BODY = "set -euo pipefail\necho body\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * 60),
        ("2:30", 150),
        ("24:00:00", 86400),
        ("100:00:01", 360001),
        ("2-12", 2 * 86400 + 12 * 3600),
        ("1-0", 86400),
        ("1-2:03", 86400 + 7380),
        ("0-0:0:5", 5),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "1h", "24h", "UNLIMITED", "1-", "-5", "1:2:3:4", "1.5", " 1"])
def test_what_is_no_time_limit_is_a_line(text: str) -> None:
    with pytest.raises(ClusterError) as fault:
        limit_seconds(text)
    assert str(fault.value) == (
        f"--time {text} is not a time limit: write it like 90 (minutes), 24:00:00 (hours) or 2-12 (days and hours)"
    )


def test_ranks_are_told_in_time_and_never_at_the_start() -> None:
    assert signal_seconds(86400, None) == 300
    assert signal_seconds(600, None) == 120
    assert signal_seconds(600, 599) == 599
    with pytest.raises(ClusterError) as fault:
        signal_seconds(600, 600)
    assert str(fault.value) == (
        "--signal-seconds 600 is not below the time limit of 600 s: the job would stop as it starts"
    )


def test_tasks_are_written_as_spans() -> None:
    assert array_of([1], None) == "1"
    assert array_of([1, 2, 3, 7, 9, 10], 4) == "1-3,7,9-10%4"


def test_the_body_begins_at_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.sbatch"
    file.write_text(f"#!/bin/bash\n# set -euo pipefail\n#SBATCH --time=1\n{BODY}")
    assert body_of(file) == BODY
    file.write_text("#!/bin/bash\necho\n")
    with pytest.raises(ClusterError) as fault:
        body_of(file)
    assert str(fault.value) == (
        f"{file} has no line `set -euo pipefail`, where its body begins: take it from the repository"
    )


def test_the_shipped_body_is_shell(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[1] / "slurm" / "pretrain.sbatch"
    script = tmp_path / "job"
    script.write_text(job_script(BATCH, TOLD, body_of(shipped)))
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def run_script(batch: Batch, told: Told, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    text = job_script(batch, told, body)
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False, env=env)


def test_whatever_stands_in_a_path_reaches_the_body_whole(tmp_path: Path) -> None:
    told = Told(tmp_path / "it's $HOME `x` \\ 100%", {"A": "b c; $HOME"}, ["one\nexit 1"])
    body = 'set -euo pipefail\nprintf "%s\\n" "$A" "$SCALETRAIN_CANCELLED" "$@"\n'
    done = run_script(BATCH, told, body)
    assert done.stdout.splitlines() == ["b c; $HOME", str(told.cancelled()), str(told.recipe())]
    done = run_script(replace(BATCH, array="1-3"), told, body, SLURM_ARRAY_TASK_ID="2")
    assert done.stdout.splitlines()[1:] == [str(told.cancelled(2)), str(told.recipe(2))]


def test_options_are_quoted_as_sbatch_reads_them() -> None:
    options = {"constraint": "a100&nvlink", "partition": "", "mem": "0"}
    batch = replace(BATCH, name="it # is", options=options, log=Path("/50% of/%A_%a.log"))
    lines = [line for line in job_script(batch, TOLD, BODY).splitlines() if line.startswith("#SBATCH")]
    read = dict(shlex.split(line.removeprefix("#SBATCH "))[0].removeprefix("--").partition("=")[::2] for line in lines)
    assert read["job-name"] == "it # is"
    assert read["output"] == "/50%% of/%A_%a.log"
    assert (read["constraint"], read["mem"], read["requeue"]) == ("a100&nvlink", "0", "")
    assert "partition" not in read


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(ClusterError) as fault:
        job_script(replace(BATCH, options={"account": "a\n#SBATCH --x"}), TOLD, BODY)
    assert str(fault.value) == (
        "--account 'a\\n#SBATCH --x' cannot stand in a job script: it is more than one line of text"
    )


def test_a_job_that_was_cancelled_meanwhile_ends_before_its_body(tmp_path: Path) -> None:
    told = Told(tmp_path, {})
    assert run_script(BATCH, told, BODY).stdout == "body\n"
    told.cancelled().touch()
    done = run_script(BATCH, told, BODY)
    assert (done.returncode, done.stdout) == (75, "")


def test_an_image_of_apptainer_or_of_pyxis() -> None:
    mounts, here = [Path("/code"), Path("/data")], Path("/code")
    assert container("/images/train.sif", mounts, here, gpus=True) == {
        "SCALETRAIN_PYTHON": "apptainer exec --nv --bind /code,/data --pwd /code /images/train.sif python"
    }
    assert "--nv" not in container("docker://a/b:1", mounts, here, gpus=False)["SCALETRAIN_PYTHON"]
    assert container("nvcr.io#nvidia/pytorch:25.10-py3", mounts, here, gpus=True) == {
        "SCALETRAIN_PYTHON": "python",
        "SCALETRAIN_SRUN": "--container-image=nvcr.io#nvidia/pytorch:25.10-py3 --container-workdir=/code "
        "--container-mounts=/code:/code,/data:/data",
    }


@pytest.mark.parametrize(
    ("image", "mount"), [("", "/a"), ("a b", "/a"), ("x.sif", "/a b"), ("x", "/a,b"), ("x", "/a:b")]
)
def test_what_a_containers_options_cannot_hold_is_a_line(image: str, mount: str) -> None:
    with pytest.raises(
        ClusterError, match="--container cannot use '.*': a path that it mounts holds no space, comma or"
    ):
        container(image, [Path(mount)], Path("/a"), gpus=False)
