"""Where train.fp8 is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch

from scaletrain.assemble.fp8 import capability_of, check_fp8_place
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.fp8_rules import check_fp8_recipe, check_fp8_sizes
from scaletrain.config.schema import Model, Train
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from tests.conftest import write_recipe

NONE = Train()


def test_recipes_that_cannot_train_in_fp8_are_refused() -> None:
    for stage in (0, 1, 2):
        check_fp8_recipe("r.yaml", NONE, "bf16", stage)
    check_fp8_recipe("r.yaml", Train(activation_checkpointing="offload"), "bf16", 3)
    with pytest.raises(ConfigError, match=r"^r.yaml: train.fp8=true with train.precision=fp32: .*set train.precision="):
        check_fp8_recipe("r.yaml", NONE, "fp32", 1)
    with pytest.raises(
        ConfigError, match=r"^r.yaml: .*stage 3 and train.activation_checkpointing=none: .*: use full or"
    ):
        check_fp8_recipe("r.yaml", NONE, "bf16", 3)


def test_places_that_do_not_multiply_in_fp8_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_fp8_place("r.yaml", (8, 9))
    check_fp8_place("r.yaml", (9, 0))
    with pytest.raises(ConfigError, match=r"8\.9 or higher \(Ada, Hopper, Blackwell\), this is one of 8\.0: set"):
        check_fp8_place("r.yaml", (8, 0))
    assert capability_of(torch.device("cpu")) is None
    with pytest.raises(ConfigError, match=r"this is a CPU: set train.fp8=false"):
        check_fp8_place("r.yaml", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs torchao, which is not installed: pip install 'scaletrain\[fp8\]', or"
    ):
        check_fp8_place("r.yaml", (9, 0))


def test_sizes_that_are_no_multiples_of_16_are_refused() -> None:
    model = Model(family="llama", num_layers=1, num_heads=4, num_kv_heads=1, hidden_size=64, ffn_hidden_size=160)
    check_fp8_sizes("r.yaml", resolve_architecture(model, 32, 16), 32)
    with pytest.raises(
        ConfigError, match=r"needs multiples of 16: tokens of a micro-batch on one rank 24 is not: chan"
    ):
        check_fp8_sizes("r.yaml", resolve_architecture(model, 32, 16), 24)
    odd = model.model_copy(update={"hidden_size": 40, "ffn_hidden_size": 100})
    with pytest.raises(
        ConfigError,
        match=r"16: model.hidden_size 40, model.ffn_hidden_size 100, \(num_heads \+ 2 x .*\) x head size 60 are not: ",
    ):
        check_fp8_sizes("r.yaml", resolve_architecture(odd, 32, 16), 32)


def test_a_recipe_is_refused_on_a_cpu(dataset: Dataset, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"recipe.yaml: train.fp8=true needs a GPU .* this is a CPU"):
        settle_pretraining(recipe, ["train.fp8=true", "train.precision=bf16"], None)
