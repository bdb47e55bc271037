"""What a recipe's data section does to a whole run: mixtures, windows, packing, repeats, other ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scaletrain.data.shards import Dataset
from tests.conftest import Done, pretrain, scaletrain, write_recipe


@pytest.fixture(scope="module")
def other(dataset: Dataset, texts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the texts, with the same tokenizer, as a dataset of its own."""
    output = tmp_path_factory.mktemp("other") / "data"
    inputs = [argument for text in texts[:3] for argument in ("--input", str(text))]
    tokenizer = ("--tokenizer", dataset.path / "tokenizer")
    done = scaletrain("prepare", *inputs, "--output", output, *tokenizer, "--shard-tokens", "9000")
    assert done.code == 0, done.err
    return output


def recipe_of(folder: Path, dataset: Dataset, data: dict[str, Any], **train: Any) -> Path:
    """The tests' recipe with this data section."""
    path = write_recipe(folder, dataset, folder / "run")
    recipe = yaml.safe_load(path.read_text())
    recipe["data"] = {"context_length": 32, **data}
    recipe["train"].update(train)
    path.write_text(yaml.safe_dump(recipe))
    return path


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(run, "metrics.jsonl") if "loss" in line}


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in lines(run, "events.jsonl") if line["event"] == name]


def succeed(done: Done) -> Done:
    assert done.code == 0, done.err
    return done


def mixture(dataset: Dataset, other: Path, *weights: float) -> dict[str, Any]:
    return {"all": {"path": dataset.name, "weight": weights[0]}, "half": {"path": str(other), "weight": weights[1]}}


def test_a_mixture_with_stages_is_read_the_same_by_two_ranks(dataset: Dataset, other: Path, tmp_path: Path) -> None:
    data = {
        "mixture": mixture(dataset, other, 3, 1),
        "stages": [{"from_tokens": 6 * 8 * 32, "weights": {"half": 1}}],
        "document_mask": True,
        "shuffle_window_shards": 2,
    }
    for folder, ranks, launcher in (("one", 1, "python"), ("two", 2, "torchrun")):
        (tmp_path / folder).mkdir()
        succeed(pretrain(recipe_of(tmp_path / folder, dataset, data), ranks=ranks, launcher=launcher))
    one, two = losses(tmp_path / "one" / "run"), losses(tmp_path / "two" / "run")
    assert max(abs(one[step] - two[step]) for step in one) < 1e-5
    digests = [events(tmp_path / folder / "run", "checkpoint")[-1]["sample_digest"] for folder in ("one", "two")]
    assert digests[0] == digests[1] != "0" * 16
    (told,) = events(tmp_path / "one" / "run", "data")
    assert told["segments"] == [
        {"start": 0, "weights": {"all": 750_000, "half": 250_000}},
        {"start": 48, "weights": {"all": 0, "half": 1_000_000}},
    ]
    assert 0 < told["data"]["half"]["padding_share"] < 0.02
    assert 0 < told["data"]["half"]["cut_documents_share"] <= 1


def test_weights_changed_at_a_resume_hold_from_there_on_and_are_recorded(
    dataset: Dataset, other: Path, tmp_path: Path
) -> None:
    data = {"mixture": {"all": {"path": dataset.name}}}
    succeed(pretrain(recipe_of(tmp_path, dataset, data, max_steps=4)))
    data = {"mixture": mixture(dataset, other, 1, 1)}
    done = succeed(pretrain(recipe_of(tmp_path, dataset, data)))
    assert "the weights differ from those so far: they hold from here on" in done.out
    (change,) = events(tmp_path / "run", "mixture")
    segments = [
        {"start": 0, "weights": {"all": 1_000_000}},
        {"start": 32, "weights": {"all": 500_000, "half": 500_000}},
    ]
    assert (change["samples_seen"], change["segments"], change["sources"]) == (32, segments, ["all", "half"])
    manifest = json.loads((tmp_path / "run" / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert manifest["reading"]["segments"] == segments
    dropped = pretrain(recipe_of(tmp_path, dataset, {"mixture": {"half": {"path": str(other)}}}))
    assert dropped.code == 2
    assert "data.mixture no longer names all, from which this run has read: keep it with weight 0" in dropped.err
    swapped = pretrain(recipe_of(tmp_path, dataset, {"mixture": {**data["mixture"], "all": {"path": str(other)}}}))
    assert swapped.code == 2
    assert "source all was" in swapped.err


def test_a_source_is_not_read_more_often_than_the_recipe_allows(dataset: Dataset, other: Path, tmp_path: Path) -> None:
    data = {"mixture": mixture(dataset, other, 0, 1), "on_repeat_limit": "error"}
    data["mixture"]["half"]["max_epochs"] = 0.02
    done = pretrain(recipe_of(tmp_path, dataset, data))
    assert done.code == 2
    assert "data source half would be read more often than its max_epochs from step" in done.err
    assert "of 12 on: lower its weight or the run's length, raise max_epochs, or set data.on_repeat_limit=" in done.err
    data["on_repeat_limit"] = "stop"
    done = succeed(pretrain(recipe_of(tmp_path, dataset, data)))
    (end,) = events(tmp_path / "run", "end")
    (told,) = events(tmp_path / "run", "data")
    assert end["step"] == int(0.02 * told["data"]["half"]["samples"]) // 8
    (limit,) = events(tmp_path / "run", "repeat_limit")
    assert (limit["source"], limit["last_step"]) == ("half", end["step"])
    assert "; of 12 asked for, as max_epochs allows" in done.out


def test_packed_rows_and_masks_train_and_resume_the_same(dataset: Dataset, tmp_path: Path) -> None:
    data = {"path": dataset.name, "packing": "best_fit", "document_mask": True, "cache": {"dir": str(tmp_path / "c")}}
    for folder in ("whole", "halves"):
        (tmp_path / folder).mkdir()
    stage = "deepspeed=ds_configs/zero3.json"
    succeed(pretrain(recipe_of(tmp_path / "whole", dataset, data), stage))
    halves = recipe_of(tmp_path / "halves", dataset, data)
    pretrain(halves, stage, "train.max_hours=0.000001")
    succeed(pretrain(halves, stage))
    assert losses(tmp_path / "halves" / "run") == losses(tmp_path / "whole" / "run")
    assert list((tmp_path / "c" / "packing").iterdir())
    refused = pretrain(halves, stage, "data.document_mask=false")
    assert refused.code == 2
    assert "document_mask was True, is False: the data changed" in refused.err


@pytest.mark.slow
def test_at_stage_0_a_run_goes_on_with_other_ranks_and_the_same_losses(dataset: Dataset, tmp_path: Path) -> None:
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    stage = "deepspeed=ds_configs/zero0.json"
    succeed(pretrain(write_recipe(tmp_path / "whole", dataset, tmp_path / "whole" / "run"), stage))
    recipe = write_recipe(tmp_path / "parts", dataset, tmp_path / "parts" / "run")
    stopped = pretrain(recipe, stage, "train.max_hours=0.000001", ranks=2, launcher="torchrun")
    assert "train.max_hours" in stopped.out
    succeed(pretrain(recipe, stage))
    whole, parts = losses(tmp_path / "whole" / "run"), losses(tmp_path / "parts" / "run")
    assert whole.keys() == parts.keys()
    assert max(abs(whole[step] - parts[step]) for step in whole) < 1e-5
    digests = [events(tmp_path / folder / "run", "checkpoint")[-1]["sample_digest"] for folder in ("whole", "parts")]
    assert digests[0] == digests[1]
    assert [event["ranks"] for event in events(tmp_path / "parts" / "run", "resume")] == [1]


def test_a_batch_without_a_label_is_skipped_and_told(dataset: Dataset, tmp_path: Path) -> None:
    lone = np.full(4096, 0, "<u2")  # end-of-text tokens only, as other tools pad with
    np.concatenate([lone, np.load(dataset.path / "tokens-00000.npy")[:8192]]).tofile(tmp_path / "train.bin")
    data = {
        "path": str(tmp_path / "train.bin"),
        "dtype": "uint16",
        "tokenizer": str(dataset.path / "tokenizer"),
        "document_mask": True,
        "shuffle": False,
        "cache": {"dir": str(tmp_path / "cache")},
    }
    succeed(pretrain(recipe_of(tmp_path, dataset, data, max_steps=20)))
    skipped = events(tmp_path / "run", "skip")
    assert all(event["reason"].startswith("a batch in which no token bears loss (samples ") for event in skipped)
    assert sorted(losses(tmp_path / "run")) == [step for step in range(1, 21) if step > len(skipped)]
    assert lines(tmp_path / "run", "metrics.jsonl")[-1]["skipped_steps"] == len(skipped) == 4096 // (32 * 8)
