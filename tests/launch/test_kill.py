"""kill -9 of a whole launch at random moments: what is learned stays the same to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import ROOT, pretrain, write_recipe

KILLS = 5


def logged(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_launch_of_two_ranks_killed_at_random_moments_learns_the_same(
    stage: int, dataset: Dataset, tmp_path: Path
) -> None:
    settings = [f"deepspeed=ds_configs/zero{stage}.json", "train.max_steps=60", "evaluate.every_steps=20"]
    settings += ["train.precision=bf16", "model.hidden_size=128"]
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    done = pretrain(whole, *settings, ranks=2, launcher="deepspeed")
    assert done.code == 0, done.err
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "killed"), tmp_path / "killed"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus=2", "launch/pretrain.py"]
    moments, draw = [], random.Random(stage)
    for _ in range(KILLS):
        process = subprocess.Popen([*command, str(recipe), *settings], cwd=ROOT, start_new_session=True)
        seconds = draw.uniform(4, 9)  # before, during and after the first steps and saves
        time.sleep(seconds)
        moments.append((round(seconds, 1), len(logged(run)) if (run / "metrics.jsonl").exists() else 0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = pretrain(recipe, *settings, ranks=2, launcher="deepspeed")
    assert done.code == 0, done.err
    print(f"stage {stage}: killed after (seconds, steps) {moments}")
    assert logged(run) == logged(tmp_path / "whole")
