"""The checkpoint of the best evaluation: kept, named, exported; asked for by a metric that exists."""

from pathlib import Path

from scaletrain.data.shards import Dataset
from scaletrain.track.sinks import read_lines
from tests.conftest import pretrain, scaletrain, write_recipe


def test_the_best_checkpoint_stays_and_goes_where_a_checkpoint_does(dataset: Dataset, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path, dataset, tmp_path / "run"), tmp_path / "run"
    # With this learning rate the loss rises again after a few steps; evaluations fall between saves.
    settings = ["optim.lr=3", "optim.grad_clip=0", "optim.schedule=constant", "optim.warmup_steps=12"]
    settings += ["evaluate.every_steps=3", "checkpoint.keep_last=1"]
    done = pretrain(recipe, *settings, "checkpoint.best_metric=loss", "train.max_steps=30", "train.stop_at_step=21")
    assert done.code == 75, done.err
    on = pretrain(recipe, *settings, "checkpoint.best_metric=loss", "train.max_steps=30")
    assert on.code == 0, on.err
    losses = {line["step"]: line["eval_loss"] for line in read_lines(run / "metrics.jsonl") if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert 3 <= best < 30
    kept = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert kept == [f"step-{best:08d}", "step-00000030"]
    events = [line for line in read_lines(run / "events.jsonl") if line["event"] == "best"]
    assert (events[-1]["checkpoint"], events[-1]["value"]) == (f"step-{best:08d}", losses[best])
    assert [event["value"] for event in events] == sorted((event["value"] for event in events), reverse=True)
    data = ("--data", dataset.path)
    found = scaletrain("evaluate", run / "checkpoints" / "best", *data)
    assert found.code == 0, found.err
    assert found.out == scaletrain("evaluate", run / "checkpoints" / f"step-{best:08d}", *data).out
    missing = scaletrain("evaluate", tmp_path / "best", *data)
    assert (missing.code, "best: names no checkpoint: train with checkpoint.best_metric" in missing.err) == (2, True)


def test_a_metric_that_no_evaluation_tells_is_refused_at_the_start(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    done = pretrain(recipe, "checkpoint.best_metric=accuracy")
    assert done.code == 2
    assert "checkpoint.best_metric=accuracy is no value of an evaluation: choose one of loss, perplexity, " in done.err
