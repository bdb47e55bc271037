"""A run that goes on with other ranks at another ZeRO stage: the same samples, the same losses."""

from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import pretrain, scaletrain, write_recipe


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def test_two_ranks_then_one_then_two_at_other_stages_learn_the_same(dataset: Dataset, tmp_path: Path) -> None:
    whole = write_recipe(tmp_path, dataset, tmp_path / "whole")
    assert pretrain(whole).code == 0
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    for ranks, stage, stop in ((2, 1, 4), (1, 3, 8), (2, 2, None)):
        overrides = [f"deepspeed=ds_configs/zero{stage}.json", f"train.stop_at_step={stop or 'null'}"]
        done = pretrain(recipe, *overrides, ranks=ranks, launcher="torchrun" if ranks > 1 else "python")
        assert not any(line.startswith("error: ") for line in done.err.splitlines()), done.err
    assert "reshard ranks was 1, is 2; zero_stage was 3, is 2" in done.out
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    resumes = [line for line in read_lines(run / "events.jsonl") if line["event"] == "resume"]
    assert [line["resharded"] for line in resumes] == [
        "ranks was 2, is 1; zero_stage was 1, is 3",
        "ranks was 1, is 2; zero_stage was 3, is 2",
    ]
    proven = scaletrain("audit", run)
    assert proven.code == 0, proven.err
    assert "proven: step 12" in proven.out
