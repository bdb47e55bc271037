"""What the job scripts say and do around the ranks, with stand-ins for SLURM's commands.

tests/cluster/ runs them on a real one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > srun-words
if [ -n "${WISH:-}" ]; then echo "wish $WISH" > "$SCALETRAIN_EXIT_FILE"; fi
exit "${RANKS_CODE:-0}"
"""
SQUEUE = '#!/bin/bash\necho "${STATE:-RUNNING}"\n'
SCONTROL = '#!/bin/bash\necho "$@" > scontrol-words\nexit "${REQUEUE_CODE:-0}"\n'


def sbatch(folder: Path, script: str, *words: str, **env: str | None) -> "subprocess.CompletedProcess[str]":
    """Runs the script as SLURM does: a copy in a spool folder, started there with the job's variables."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    copy = shutil.copy(ROOT / "slurm" / script, spool / "slurm_script")
    variables = {
        "PATH": f"{programs}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "12",
        "SCALETRAIN": str(Path(sys.executable).parent / "scaletrain"), "SCALETRAIN_HOME": str(ROOT), **env,
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SCALETRAIN"))}
    return subprocess.run(
        ["bash", copy, *words], cwd=spool, env=kept | {n: v for n, v in variables.items() if v is not None},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", ["pretrain.sbatch", "benchmark.sbatch"])
def test_a_script_names_what_it_misses(script: str, tmp_path: Path) -> None:
    def line(**env: str | None) -> str:
        done = sbatch(tmp_path, script, "recipe.yaml", **env)
        assert done.returncode == 2
        return done.stderr

    nowhere = line(SCALETRAIN=None, SCALETRAIN_HOME=str(tmp_path))
    assert nowhere == "error: scaletrain is not on the PATH: activate its venv, or set SCALETRAIN\n"
    assert line(SCALETRAIN="/no/bin/scaletrain") == (
        "error: /no/bin/python is missing: set SCALETRAIN to the scaletrain of a virtual environment\n"
    )
    missing = line(SCALETRAIN_HOME=None)
    assert missing.startswith(f"error: {tmp_path}/")
    assert missing.endswith(" is missing: call sbatch in a clone of the repository, or set SCALETRAIN_HOME to one\n")


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_training_needs_a_recipe(name: str, tmp_path: Path) -> None:
    done = sbatch(tmp_path, f"{name}.sbatch")
    line = f"error: no recipe is given: sbatch slurm/{name}.sbatch RECIPE [section.key=value ...]\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_training_starts_a_rank_a_task(name: str, tmp_path: Path) -> None:
    done = sbatch(
        tmp_path, f"{name}.sbatch", "my recipe.yaml", "seed=1", SLURM_CPUS_PER_TASK="7", SCALETRAIN_RANK_OUTPUT="r-%t"
    )
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "srun-words").read_text(encoding="utf-8").splitlines()
    python = str(Path(sys.executable).parent / "python")
    assert words[-4:] == [python, str(ROOT / "launch" / f"{name}.py"), "my recipe.yaml", "seed=1"]
    assert {"--cpus-per-task=7", "--output=r-%t", "--kill-on-bad-exit=0", "--wait=60"} <= set(words)


@pytest.mark.parametrize(
    ("env", "code", "line", "is_queued"),
    [
        ({"RANKS_CODE": "0"}, 0, "", False),
        ({"RANKS_CODE": "2"}, 2, "", False),
        ({"RANKS_CODE": "137"}, 137, "", False),
        ({"RANKS_CODE": "75"}, 75, "queued  job 12 again, to go on\n", True),
        ({"RANKS_CODE": "75", "WISH": "a was found"}, 75, "stopped for good (a was found): not queued again\n", False),
        (
            {"RANKS_CODE": "75", "STATE": "COMPLETING"}, 75,
            "stopped for good (the job is COMPLETING): not queued again\n", False,
        ),
        (
            {"RANKS_CODE": "75", "REQUEUE_CODE": "1"}, 75,
            "stopped; SLURM does not queue job 12 again: submit it again to go on\n", True,
        ),
    ],
)  # fmt: skip
def test_pretrain_queues_again_what_was_stopped_and_nothing_else(
    env: dict[str, str], code: int, line: str, is_queued: bool, tmp_path: Path
) -> None:
    done = sbatch(tmp_path, "pretrain.sbatch", "recipe.yaml", **env)
    assert (done.returncode, done.stdout, done.stderr) == (code, line, "")
    asked = tmp_path / "scontrol-words"
    assert (asked.read_text(encoding="utf-8") if asked.exists() else None) == ("requeue 12\n" if is_queued else None)
    assert not list(tmp_path.glob(".scaletrain-*"))
