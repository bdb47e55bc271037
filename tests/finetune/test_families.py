"""Families that may be packed: in each, examples in one row are as if each stood alone."""

import pytest
import torch
import transformers

from scaletrain.errors import ConfigError
from scaletrain.model import packable
from scaletrain.model.packable import PACKABLE, check_packable, strays


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_packed_examples_are_as_alone(family: str) -> None:
    if family == "falcon" and tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
        with pytest.raises(ConfigError, match="mixes the examples of one row in transformers 5"):
            check_packable(family)
        return
    assert max(strays(family)) < 1e-4
    check_packable(family)


@pytest.mark.parametrize("family", ["opt", "bloom", "mpt"])
def test_a_family_that_mixes_them_is_refused(family: str) -> None:
    with pytest.raises(
        ConfigError, match=f"data.packing=true: model_type={family} is not known to keep .*packing=false"
    ):
        check_packable(family)


@pytest.mark.parametrize("family", ["bloom", "gpt2"])
def test_the_look_at_the_installed_family_finds_what_mixes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packable, "PACKABLE", {"bloom", "gpt2"})
    state = torch.random.get_rng_state()
    if family == "bloom":
        with pytest.raises(ConfigError, match="model_type=bloom mixes the examples of one row in transformers 5"):
            check_packable(family)
    else:
        check_packable(family)
    assert torch.equal(torch.random.get_rng_state(), state), "what is drawn afterwards is as without the look"
