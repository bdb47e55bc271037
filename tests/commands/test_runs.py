"""What `scaletrain runs` tells of a folder of runs."""

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from tests.commands.made_runs import MadeRun
from tests.conftest import scaletrain


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def aged(run: MadeRun, seconds: float) -> MadeRun:
    for name in ("metrics.jsonl", "events.jsonl"):
        if (run.folder / name).exists():
            os.utime(run.folder / name, (time.time() - seconds,) * 2)
    return run


def test_runs_are_listed_newest_first_at_any_depth(tmp_path: Path) -> None:
    aged(MadeRun(tmp_path / "old").event("start", 0).logged(2000, 1.25).event("end", 2000), 3 * 86400)
    aged(MadeRun(tmp_path / "sweep" / "lr=1").event("start", 0).logged(30, "nan"), 7200)
    aged(MadeRun(tmp_path / "new").event("start", 0).logged(5).event("stop", 5, reason="SIGTERM"), 30)
    done = scaletrain("runs", tmp_path)
    assert (done.code, done.err) == (0, "")
    head, *lines, counts = done.out.splitlines()
    assert head.split() == ["state", "step", "loss", "tok/s", "changed", "run"]
    assert [line.split()[0] for line in lines] == ["stopped", "failed", "done"]
    assert "5/2,000" in lines[0] and "s ago" in lines[0] and lines[0].endswith("new: SIGTERM")
    assert "nan" in lines[1] and "2 h ago" in lines[1]
    assert lines[1].endswith("sweep/lr=1: it ended without a word, such as by a kill")
    assert "1.2500  1,234" in lines[2] and "3 d ago" in lines[2]
    assert counts == "3 runs: 1 stopped, 1 failed, 1 done"


def test_programs_get_json_without_nan(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "a").event("start", 0).logged(7, "nan")
    (told,) = json.loads(scaletrain("runs", tmp_path, "--json").out)
    assert (told["run"], told["state"], told["step"], told["total_steps"]) == (str(run.folder), "failed", 7, 2000)
    assert (told["loss"], told["tokens_per_second"], told["job"]) == (None, 1234.5, None)
    assert told["scores"] == {"step": 7, "loss": 9.9}
    assert abs(told["changed"] - time.time()) < 60


def test_a_held_run_that_is_silent_has_stalled(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "a").event("start", 0).logged(7)  # of 3 seconds a step
    with (run.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for silent, state in ((850, "running"), (950, "stalled")):
            aged(run, silent)
            assert scaletrain("runs", tmp_path).out.splitlines()[1].startswith(state)
        assert scaletrain("runs", tmp_path).out.splitlines()[1].endswith("a: nothing written for 16 min")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"\xff\xfe{}\n"),
        ("metrics.jsonl", b'{"loss": 1}\n'),
        ("metrics.jsonl", b'{"loss": [1], "step": "x"}\n'),
        ("events.jsonl", b'[1]\n{"event": 3, "step": {}}\n'),
        ("events.jsonl", b"\xff\n"),
        ("events.jsonl", b"7\n"),
        ("recipe.yaml", b"\xff"),
        ("recipe.yaml", b"run: {dir: x}\ndata: {path: x}\nmodel: {preset: llama-tiny}\n"),
        ("submit/job.json", b"{"),
    ],
)
def test_a_damaged_run_is_a_line_and_costs_no_other_its_own(tmp_path: Path, name: str, content: bytes) -> None:
    MadeRun(tmp_path / "good").event("start", 0).logged(2000).event("end", 2000)
    bad = MadeRun(tmp_path / "bad").event("start", 0).logged(5)
    (bad.folder / name).parent.mkdir(exist_ok=True)
    (bad.folder / name).write_bytes(content)
    done = scaletrain("runs", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 4
    assert "done" in done.out and " good" in done.out and " bad" in done.out


def test_a_damaged_run_says_why(tmp_path: Path) -> None:
    bad = MadeRun(tmp_path / "bad").event("start", 0)
    (bad.folder / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    line = scaletrain("runs", tmp_path).out.splitlines()[1]
    assert line.startswith("damaged")
    assert line.endswith("bad: its records cannot be read (KeyError: 'step')")


def test_a_folder_without_runs_and_no_folder(tmp_path: Path) -> None:
    assert scaletrain("runs", tmp_path).out == f"no runs below {tmp_path}\n"
    done = scaletrain("runs", tmp_path / "none")
    assert (done.code, done.err) == (
        2, f"error: {tmp_path / 'none'} is no folder: give one that holds runs, such as runs\n",
    )  # fmt: skip
