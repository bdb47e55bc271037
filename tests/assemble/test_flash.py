"""Where FlashAttention 3 is refused, and how it is switched on."""

import pytest
import torch

from scaletrain.assemble.flash import activate_flash_attention_3
from scaletrain.assemble.pretraining import settle_pretraining
from scaletrain.data.shards import Dataset
from scaletrain.errors import ConfigError
from tests.conftest import write_recipe


def test_it_is_switched_on_in_torchs_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", asked.append, raising=False)
    activate_flash_attention_3("r.yaml", (9, 0))
    assert asked == ["FA3"]


def test_cards_and_torches_that_have_it_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"r.yaml: .*fa3 needs a GPU of .* 9.0 .Hopper., this is one of 8.0: use one"):
        activate_flash_attention_3("r.yaml", (8, 0))
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl", raising=False)
    with pytest.raises(ConfigError, match=r"torch .* cannot switch to it: take a newer one, or set"):
        activate_flash_attention_3("r.yaml", (9, 0))


@pytest.mark.skipif(not hasattr(torch.nn.attention, "activate_flash_attention_impl"), reason="torch has no switch")
def test_without_its_package_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot be had \(No module named .*\): install FlashAttention 3"):
        activate_flash_attention_3("r.yaml", (9, 0))


def test_a_recipe_is_refused_on_a_cpu(dataset: Dataset, tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = write_recipe(tmp_path, dataset, tmp_path / "run")
    with pytest.raises(ConfigError, match="recipe.yaml: train.flash_attention=fa3 needs a GPU .* this is a CPU"):
        settle_pretraining(recipe, ["train.flash_attention=fa3"], None)
