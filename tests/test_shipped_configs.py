"""Every recipe and DeepSpeed JSON in the repository loads, and DeepSpeed itself accepts what is made of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaletrain.config.deepspeed import (
    check_keys,
    engine_config,
    load_deepspeed,
    offloads_optimizer,
    settle,
    zero_stage,
)
from scaletrain.config.load import dump_recipe, load_recipe
from scaletrain.config.schema import Data, Model, Precision, Recipe, Run, Train
from scaletrain.config.zeropp import check_zeropp
from scaletrain.errors import ConfigError

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))


def test_there_are_recipes_and_configs_to_check() -> None:
    assert RECIPES or not (ROOT / "launch" / "recipes").exists()
    names = {path.stem for path in CONFIGS}
    assert names >= {"zero0", "zero1", "zero2", "zero3", "zero1-offload", "zero2-offload", "zero3-offload", "zeropp"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_loads_settles_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    preset = load_deepspeed(Path(recipe.deepspeed))
    check_keys(preset, recipe.deepspeed)
    settled = settle(recipe, preset)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(settled))
    assert load_recipe(tmp_path / "recipe.yaml") == settled


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_deepspeed_accepts_each_config(path: Path, precision: Precision) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    preset = load_deepspeed(path)
    check_keys(preset, str(path))
    recipe = settle(
        Recipe(
            run=Run(dir="x"),
            data=Data(path="x"),
            model=Model(preset="llama-tiny"),
            train=Train(max_steps=1, global_batch_size=8, micro_batch_size=4),
        ),
        preset,
    )
    config = engine_config(recipe, preset, ranks=1, precision=precision)
    assert "auto" not in json.dumps(config)
    parsed = DeepSpeedConfig(config)
    assert (parsed.train_batch_size, parsed.gradient_accumulation_steps) == (8, 2)
    assert (parsed.bfloat16_config.enabled, parsed.float16_config.enabled) == (precision == "bf16", precision == "fp16")
    stage, _, offload = path.stem.replace("pp", "3").removeprefix("zero").partition("-")
    assert parsed.zero_config.stage == zero_stage(preset) == int(stage)
    assert (parsed.zero_config.offload_optimizer is not None) == offloads_optimizer(preset) == bool(offload)
    assert parsed.optimizer_name is None  # the engine hands over its own


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_decides_only_what_zero_decides(path: Path) -> None:
    preset = load_deepspeed(path)
    preset.pop("zero_optimization")
    assert preset.pop("optimizer", {"type": "AdamW"})["type"] == "AdamW"  # with offload others then build a CPU Adam
    # Quantized gradients are read as fp16 (config/zeropp.py).
    assert preset.pop("communication_data_type", None) == ("fp16" if path.stem == "zeropp" else None)
    assert set(leaves(preset)) == {"auto"}


def leaves(value: Any) -> Iterator[Any]:
    if not isinstance(value, dict):
        yield value
        return
    for inner in value.values():
        yield from leaves(inner)


def test_the_zeropp_config_is_for_nodes_of_eight_gpus() -> None:
    """One problem each on fewer ranks and on a CPU; none where it belongs."""
    path = ROOT / "ds_configs" / "zeropp.json"
    recipe = Recipe(run=Run(dir="x"), data=Data(path="x"), train=Train(max_steps=1, global_batch_size=16))
    config = engine_config(settle(recipe, load_deepspeed(path)), load_deepspeed(path), ranks=16, precision="bf16")
    check_zeropp(str(path), config, "bf16", 8, on_gpu=True)
    with pytest.raises(ConfigError, match=r"zero_hpz_partition_size=8 does not divide the ranks of a node, 4, which"):
        check_zeropp(str(path), config, "bf16", 4, on_gpu=True)
    with pytest.raises(ConfigError, match=r"zero_quantized_weights=true needs a GPU"):
        check_zeropp(str(path), config, "bf16", 8, on_gpu=False)
