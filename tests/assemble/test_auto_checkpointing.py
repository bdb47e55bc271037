"""train.activation_checkpointing=auto: the least that fits by plan, in a launch and in a plan."""

from pathlib import Path

import pytest

from scaletrain.assemble import expectation, pretraining
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from scaletrain.planner.fit import Room, checkpointing_that_fits
from scaletrain.planner.memory import memory_of
from tests.conftest import scaletrain, write_recipe
from tests.planner.made import workload

AUTO = "train.activation_checkpointing=auto"


def test_the_first_mode_that_fits_is_chosen_and_the_last_where_none_does() -> None:
    modes = ("none", "selective", "full")
    needs = {mode: Room(0).need(memory_of(workload(checkpointing=mode))) for mode in modes}
    assert needs["none"] > needs["selective"] > needs["full"]
    for mode in modes:
        assert checkpointing_that_fits(workload(), Room(needs[mode]), modes) == mode
        assert checkpointing_that_fits(workload(), Room(needs[mode] - 1), modes) != mode or mode == "full"
    assert checkpointing_that_fits(workload(3, fp8=True), Room(10**12), modes) == "full"  # a run refuses the others


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_a_launch_settles_on_it(mode: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, big = write_recipe(tmp_path, dataset, tmp_path / "run"), ["model.num_layers=8", "train.micro_batch_size=8"]
    known = settle_pretraining(recipe, [*big, f"train.activation_checkpointing={mode}"], None)
    work = expectation.workload(known)
    assert work is not None
    room = Room(0, is_cpu=True).need(memory_of(work))
    monkeypatch.setattr(pretraining, "whole_memory", lambda: room)
    settled = settle_pretraining(recipe, [*big, AUTO], None)
    assert settled.recipe.train.activation_checkpointing == mode
    assert settled.job.recipe == settled.recipe
    assert (f", checkpointing {mode}" in settled.job.describe()[0]) == (mode != "none")


def test_a_system_that_does_not_tell_its_memory_cannot_choose(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "whole_memory", lambda: None)
    with pytest.raises(ConfigError, match="recipe.yaml: .*=auto goes by .*: set none, selective or full"):
        settle_pretraining(write_recipe(tmp_path, dataset, tmp_path / "run"), [AUTO], None)


def test_a_plan_tells_what_a_launch_would_choose(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {dir: runs/x}\ndata: {path: none, context_length: 4096}\n"
        "model: {preset: llama-7b, vocab_size: 32000}\ndeepspeed: ds_configs/zero3.json\n"
        "train: {max_steps: 1000, global_batch_size: 256, micro_batch_size: 2}\n"
    )
    told = [scaletrain("plan", recipe, "--gpus-per-node=8", "--gpu", gpu, AUTO).out for gpu in ("b200", "a100-40")]
    assert "checkpointing none" in told[0]
    assert "checkpointing full" in told[1]
