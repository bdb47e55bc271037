"""Ways to stop a run: each saves, exits with 75, and the run goes on as if never stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, pretrain, write_recipe
from tests.launches import Launch, last_step, wait_for

ENDLESS = ("train.max_steps=100000", "checkpoint.every_steps=null", "evaluate.every_steps=null")


def values(run: Path, name: str) -> dict[int, float]:
    found = [(line["step"], line[name]) for line in read_lines(run / "metrics.jsonl") if name in line]
    assert len(dict(found)) == len(found), "a step is logged twice"
    return dict(found)


def stops(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "events.jsonl") if line["event"] == "stop"]


def start_endless(recipe: Path, run: Path, *launcher: str) -> subprocess.Popen[str]:
    """A run that has trained three steps and would train for ever."""
    command = [sys.executable, *launcher, "launch/pretrain.py", str(recipe), *ENDLESS]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() or len(values(run, "loss")) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "step 3 was not reached"
        time.sleep(0.02)
    return process


def check_goes_on(recipe: Path, run: Path) -> None:
    """The stop was saved, and the same command with another end trains the steps after it."""
    (stop,) = stops(run)
    assert (run / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()
    last = stop["step"] + 2
    done = pretrain(recipe, *ENDLESS[1:], f"train.max_steps={last}")
    assert done.code == 0, done.err
    assert list(values(run, "loss")) == list(range(1, last + 1))


def test_slurms_warning_signal_saves_and_exits_75(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start_endless(recipe, run)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    assert "(SIGUSR1); saved in" in out
    assert "run the same command to go on" in out
    check_goes_on(recipe, run)


def test_a_stop_file_stops_all_ranks_and_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start_endless(recipe, run, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    (run / "stop").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0, err  # torchrun's own code for ranks that ended with 75
    assert f"({run / 'stop'} was found); saved in" in out
    assert not (run / "stop").exists()
    (stop,) = stops(run)
    assert (run / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()


@pytest.mark.parametrize("reached", [pytest.param("start", marks=pytest.mark.slow), "a step"])
def test_ranks_whose_torchrun_is_killed_save_and_end_by_themselves(
    reached: str, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    launch = Launch(2, [str(recipe), *ENDLESS], tmp_path / "out.txt")
    try:
        # "start": the engine is built, nothing trained. Before that ranks meet in torchrun's own store, and fail alone.
        reaches = {"start": (run / "recipe.yaml").exists, "a step": lambda: last_step(run) >= 3}
        assert wait_for(reaches[reached], 120, 0.001), launch.said()
        os.kill(launch.agent.pid, signal.SIGKILL)
        assert launch.wait(20), f"they train on without a launcher, now at step {last_step(run)}"
    finally:
        launch.kill_all()
    (stop,) = stops(run)
    assert stop["step"] < 1000
    assert stop["reason"] in {"the launcher is gone", "asked for on another rank"}
    assert (run / "checkpoints" / f"step-{stop['step']:08d}" / "manifest.json").is_file()


def test_a_stop_file_ends_one_rank_with_75_and_the_run_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    process = start_endless(recipe, run)
    (run / "stop").touch()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    assert stops(run)[0]["reason"] == f"{run / 'stop'} was found"
    check_goes_on(recipe, run)


def test_a_stop_file_of_before_the_launch_is_removed_and_told(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    run.mkdir()
    (run / "stop").touch()
    os.utime(run / "stop", (time.time() - 60,) * 2)
    done = pretrain(recipe, "train.max_steps=2")
    assert done.code == 0, done.err
    assert f"{run / 'stop'} is older than this launch: removed, not obeyed" in done.out
    assert not (run / "stop").exists()
    assert list(values(run, "loss")) == [1, 2]


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretrain(write_recipe(folder, dataset, folder / "run")).code == 0
    return folder / "run"


@pytest.mark.parametrize("steps", [pytest.param(5, marks=pytest.mark.slow), 6])  # step 6 is also evaluated
def test_a_run_stopped_at_a_step_ends_as_the_uninterrupted_one(
    steps: int, whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    stopped = pretrain(recipe, f"train.stop_at_step={steps}")
    assert (stopped.code, stopped.err) == (75, "")
    assert f"(train.stop_at_step={steps} is reached); saved in" in stopped.out
    assert list(values(run, "loss")) == list(range(1, steps + 1))
    again = pretrain(recipe, "train.stop_at_step=4")
    assert (again.code, again.err) == (75, "")
    assert f"stopped at step {steps} (train.stop_at_step=4 is reached already, no step was trained)" in again.out
    assert "raise train.stop_at_step or leave it out to go on" in again.out
    assert list(values(run, "loss")) == list(range(1, steps + 1))
    done = pretrain(recipe, "train.stop_at_step=12")  # the last step is the end, no stop
    assert done.code == 0, done.err
    for name in ("loss", "lr", "eval_loss"):
        assert values(run, name) == values(whole, name)


@pytest.mark.slow  # half a minute of training, so that a busy machine's start leaves time for it
def test_an_hour_limit_ends_the_program_before_it_is_over(dataset: Dataset, tmp_path: Path) -> None:
    recipe, hours = write_recipe(tmp_path, dataset, tmp_path / "run"), 0.01
    began = time.monotonic()
    done = pretrain(recipe, *ENDLESS, f"train.max_hours={hours}", "log.every_steps=50")
    seconds = time.monotonic() - began
    assert done.code == 75, done.err
    assert "train.max_hours=0.01 is over but for the time to save" in done.out
    assert 0.5 * 3600 * hours < seconds < 3600 * hours
