"""Families that may be packed: in each, examples in one row are as if each stood alone."""

import inspect
from typing import Any

import pytest
import torch

from scaletrain.errors import ConfigError
from scaletrain.model.families import PACKABLE, check_packable
from scaletrain.model.network import build_network

# What some family or other calls its sizes; windows of 4 tokens, so that those that slide are seen to.
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "intermediate_size": 64, "n_inner": 64, "num_hidden_layers": 2,
    "num_layers": 2, "n_layer": 2, "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "num_key_value_heads": 2,
    "head_dim": 8, "rotary_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "sliding_window": 4,
    "window_size": 4, "attention_types": [[["global", "local"], 1]], "num_local_experts": 2, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EXAMPLES = ((0, 6), (6, 16), (16, 24))


def tiny(family: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    known = {*inspect.signature(kind).parameters, *kind.attribute_map}
    torch.manual_seed(0)
    network = build_network(kind(**{k: v for k, v in SIZES.items() if k in known}), "causal", torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    return network.model.eval()


def logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return found


def strays(family: str) -> tuple[float, float]:
    """How far packed logits are from those of each example alone, and how far a token moves any other example's."""
    model = tiny(family)
    ids = torch.randint(7, 60, (2, 24))
    positions = torch.cat([torch.arange(end - start) for start, end in EXAMPLES]).expand(2, -1)
    packed = logits(model, ids, positions)
    alone = torch.cat([logits(model, ids[:, a:b].contiguous(), positions[:, a:b]) for a, b in EXAMPLES], dim=1)
    ids[:, 5] = 5  # the last one of the first example: what any state would carry over
    moved = (logits(model, ids, positions) - packed).abs()
    assert moved[:, 5].max() > 1e-3
    return float((packed - alone).abs().max() / packed.std()), float(moved[:, 6:].max() / packed.std())


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_packed_examples_are_as_alone(family: str) -> None:
    assert max(strays(family)) < 1e-4


@pytest.mark.parametrize("family", ["opt", "bloom", "mpt"])
def test_a_family_that_mixes_them_is_refused(family: str) -> None:
    with pytest.raises(
        ConfigError, match=f"data.packing=true: model_type={family} is not known to keep .*packing=false"
    ):
        check_packable(family)
    check_packable("llama")
