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

KILLS, STEPS = 5, 400


def logged(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return max((step for step, _ in logged(run)), default=0) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_launch_of_two_ranks_killed_at_random_moments_learns_the_same(
    stage: int, dataset: Dataset, tmp_path: Path
) -> None:
    settings = [f"deepspeed=ds_configs/zero{stage}.json", f"train.max_steps={STEPS}", "evaluate.every_steps=25"]
    settings += ["train.precision=bf16", "model.hidden_size=128", "checkpoint.every_steps=20", "optim.lr=0.002"]
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    done = pretrain(whole, *settings, ranks=2, launcher="deepspeed")
    assert done.code == 0, done.err
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "killed"), tmp_path / "killed"
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_gpus=2", "launch/pretrain.py"]
    moments, draw = [], random.Random(stage)
    for kill in range(KILLS):
        process = subprocess.Popen([*command, str(recipe), *settings], cwd=ROOT, start_new_session=True)
        reach = draw.randint(STEPS * kill // KILLS, STEPS * (kill + 1) // KILLS - 1)
        while process.poll() is None and steps_logged(run) < reach:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))  # into a step, a save or an evaluation
        moments.append(steps_logged(run))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = pretrain(recipe, *settings, ranks=2, launcher="deepspeed")
    assert done.code == 0, done.err
    print(f"stage {stage}: killed after steps {moments}")
    assert logged(run) == logged(tmp_path / "whole")
