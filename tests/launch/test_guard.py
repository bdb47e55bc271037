"""A run that diverges: each update left out is told, and it ends saved with one line."""

from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import pretrain, scaletrain, write_recipe

DIVERGES = ["optim.lr=1e30", "optim.grad_clip=0", "optim.warmup_steps=0"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_diverges_ends_saved_by_max_skips(ranks: int, dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    settings = [*DIVERGES, "guard.max_skips=3", "evaluate.every_steps=null"]
    done = pretrain(recipe, *settings, ranks=ranks, launcher="torchrun" if ranks > 1 else "python")
    assert done.code != 0
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] == [
        line for line in done.err.splitlines() if "3 updates in a row were left out (guard.max_skips=3)" in line
    ]
    assert ranks > 1 or done.code == 2
    skips = [line for line in read_lines(run / "events.jsonl") if line["event"] == "skip"]
    assert len(skips) == 3
    assert all("gradients that are not finite, though each rank's loss is" in skip["reason"] for skip in skips)
    assert skips[0]["ranks"] == []  # of a loss that is not finite
    assert skips[0]["samples"] == 8
    assert read_lines(run / "metrics.jsonl")[-1]["skipped_steps"] == 3
    saved = (run / "checkpoints" / "latest").read_text().strip()
    assert int(saved[5:]) * 8 == skips[-1]["first_sample"] + 8
    shown = scaletrain("audit", run, "--from", str(skips[0]["first_sample"]), "--show", "8")
    assert shown.code == 0, shown.err


def test_a_run_told_to_stop_ends_at_the_first(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, *DIVERGES, "guard.on_nonfinite=stop", "evaluate.every_steps=null")
    assert done.code == 2
    assert done.err.startswith(
        "error: an update was left out because of gradients that are not finite, though each rank's loss "
    )
    again = pretrain(recipe, *DIVERGES, "evaluate.every_steps=null")
    assert again.code in (0, 2), again.err
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    skipped = [line["skipped_steps"] for line in lines if "loss" in line][-1]
    events = [line["event"] for line in read_lines(tmp_path / "run" / "events.jsonl")]
    assert skipped == events.count("skip") > 1  # counted over both launches
