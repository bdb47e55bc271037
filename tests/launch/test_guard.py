"""A run that diverges: updates left out and spikes of the loss are told, and it ends saved with one line."""

from pathlib import Path

import pytest

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import pretrain, scaletrain, write_recipe

DIVERGES = ["optim.lr=1e30", "optim.grad_clip=0", "optim.warmup_steps=0"]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
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
    assert (skips[0]["samples"], skips[0]["micro_batches"]) == (8, [])
    assert f"; scaletrain audit {run} --from {skips[0]['first_sample']} --show 8 shows them" in done.out
    assert read_lines(run / "metrics.jsonl")[-1]["skipped_steps"] == 3
    saved = (run / "checkpoints" / "latest").read_text().strip()
    assert int(saved[5:]) * 8 == skips[-1]["first_sample"] + 8
    shown = scaletrain("audit", run, "--step", str(skips[0]["step"]))
    assert shown.code == 0, shown.err
    assert shown.out == scaletrain("audit", run, "--from", str(skips[0]["first_sample"]), "--show", "8").out


@pytest.mark.slow
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


CLIMBS = [
    *("optim.lr=3", "optim.grad_clip=0", "optim.schedule=constant", "optim.warmup_steps=12"),
    *("guard.spike_window=4", "guard.spike_steps=2", "evaluate.every_steps=null", "checkpoint.every_steps=null"),
]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_spike_is_told_a_step_late_and_ends_a_run_that_is_to_stop(
    ranks: int, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    launcher = "torchrun" if ranks > 1 else "python"
    done = pretrain(recipe, *CLIMBS, "guard.on_spike=stop", ranks=ranks, launcher=launcher)
    (error,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: 2 steps in a row ended in a loss of ")
    assert "guard.on_spike is stop" in error
    assert done.code == (2 if ranks == 1 else 1)  # torchrun has an exit code of its own
    events = read_lines(run / "events.jsonl")
    (spike,) = [line for line in events if line["event"] == "spike"]
    losses = {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl")}
    assert spike["step"] == max(losses)  # found before another step was trained
    assert spike["loss"] == pytest.approx(losses[spike["step"]], rel=1e-6)
    assert (spike["first_sample"], spike["samples"]) == ((spike["step"] - 2) * 8, 16)
    assert f"; scaletrain audit {run} --from {spike['first_sample']} --show 16 shows them" in done.out
    assert (run / "checkpoints" / "latest").read_text().strip() == f"step-{spike['step']:08d}"
    assert scaletrain("audit", run).code == 0
    on = pretrain(recipe, *CLIMBS)
    assert on.code == 0, on.err
