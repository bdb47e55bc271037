"""torchrun's end, with what its ranks said last."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.errors import EXIT_STOPPED, EXIT_USER
from scaletrain.runtime.torchrun import exit_code
from tests.conftest import ROOT

RANKS = """
import os, signal, sys, time
if os.environ["RANK"] == "0":
    print("error: said by a rank", file=sys.stderr, flush=True)
    {first}
{other}
"""


def launched(folder: Path, first: str, other: str) -> subprocess.CompletedProcess[str]:
    script = folder / "rank.py"
    script.write_text(RANKS.format(first=first, other=other))
    command = [sys.executable, "-m", "scaletrain.runtime.torchrun", "--standalone", "--nproc_per_node=2", str(script)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("code", [EXIT_USER, EXIT_STOPPED])
def test_what_ranks_told_is_the_last_line(code: int, tmp_path: Path) -> None:
    done = launched(tmp_path, f"sys.exit({code})", f"sys.exit({code})")
    assert done.returncode == code
    assert (done.stdout, done.stderr) == ("", "error: said by a rank\n")


def test_a_rank_that_was_ended_after_anothers_fault_adds_nothing(tmp_path: Path) -> None:
    done = launched(tmp_path, f"sys.exit({EXIT_USER})", "time.sleep(60)")
    assert (done.returncode, done.stderr) == (EXIT_USER, "error: said by a rank\n")


def test_a_death_leaves_its_table(tmp_path: Path) -> None:
    done = launched(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(60)")
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_well_says_nothing(tmp_path: Path) -> None:
    done = launched(tmp_path, "pass", "")
    assert (done.returncode, done.stderr) == (0, "error: said by a rank\n")


@pytest.mark.parametrize(
    ("codes", "told"),
    [([2], 2), ([2, 75], 2), ([2, -15], 2), ([75, 75], 75), ([75, 1], None), ([-9], None), ([1, 1], None), ([], None)],
)
def test_codes_that_ranks_tell_alike(codes: list[int], told: int | None) -> None:
    assert exit_code(codes) == told
