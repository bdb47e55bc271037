"""The job scripts as SLURM and shellcheck read them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.machines import ROOT
from tests.cluster.slurm import Slurm

pytestmark = pytest.mark.cluster
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_accepts_the_script_as_it_is(slurm: Slurm, script: Path) -> None:
    told = slurm.asks("sbatch", "--test-only", script).stderr
    assert "to start at" in told


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
