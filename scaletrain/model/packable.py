"""Which families of transformers' models keep the examples of one row apart: a list and a trial."""

import inspect
from typing import Any

import torch
from torch import Tensor

from scaletrain.errors import ConfigError
from scaletrain.model.network import build_network

# Their attention begins anew where positions do, when no attention mask is given. Others take the row for one text,
# without a word: a learned position of its own, a bias by distance or a recurrent state reaches over the border (OPT,
# BLOOM, MPT, Mamba, Qwen3-Next and more).
PACKABLE = frozenset(
    {
        "apertus", "arcee", "codegen", "cohere", "cohere2", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2",
        "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite",
        "granitemoe", "helium", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3",
        "olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
        "stablelm", "starcoder2",
    }
)  # fmt: skip

# What some family or other calls its sizes; windows of 4 tokens, so that those that slide are seen to.
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "n_embd": 32, "intermediate_size": 64, "n_inner": 64, "num_hidden_layers": 2,
    "num_layers": 2, "n_layer": 2, "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "num_key_value_heads": 2,
    "head_dim": 8, "rotary_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "sliding_window": 4,
    "window_size": 4, "attention_types": [[["global", "local"], 1]], "num_local_experts": 2, "num_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_EXAMPLES = ((0, 6), (6, 16), (16, 24))  # begin and end of each in the row
_TOLERANCE = 1e-4  # of the logits' spread: float32 strays by 1e-6, a mixed example by 0.1 to 4


def check_packable(family: str) -> None:
    """ConfigError for a model that would mix the examples of a row.

    Of a family on the list a tiny network is tried, in a tenth of a second: Falcon keeps examples apart since
    transformers 5.24 only.
    """
    remedy = "set data.packing=false"
    if family not in PACKABLE:
        raise ConfigError(
            f"data.packing=true: model_type={family} is not known to keep the examples of one row apart: {remedy}"
        )
    if max(strays(family)) > _TOLERANCE:
        import transformers

        raise ConfigError(
            f"data.packing=true: model_type={family} mixes the examples of one row in transformers "
            f"{transformers.__version__}: {remedy}"
        )


def strays(family: str) -> tuple[float, float]:
    """How far the logits of packed examples are from those of each alone, and how far a token of the first example
    moves those of the others; both as a share of the logits' standard deviation."""
    model, random = _tiny(family), torch.Generator().manual_seed(0)
    ids_BT = torch.randint(7, 60, (2, 24), generator=random)
    positions_BT = torch.cat([torch.arange(end - start) for start, end in _EXAMPLES]).expand(2, -1)
    packed_BTV = _logits(model, ids_BT, positions_BT)
    alone_BTV = torch.cat([_logits(model, ids_BT[:, a:b], positions_BT[:, a:b]) for a, b in _EXAMPLES], dim=1)
    last = _EXAMPLES[0][1] - 1  # of the first example: what any state would carry over
    ids_BT[:, last] = 5
    moved_BTV = (_logits(model, ids_BT, positions_BT) - packed_BTV).abs()
    assert moved_BTV[:, last].max() > 1e-3, "the network does not see its tokens"
    spread = packed_BTV.std()
    return float((packed_BTV - alone_BTV).abs().max() / spread), float(moved_BTV[:, last + 1 :].max() / spread)


def _tiny(family: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind, random = CONFIG_MAPPING[family], torch.Generator().manual_seed(0)
    known = {*inspect.signature(kind).parameters, *kind.attribute_map}
    config = kind(**{key: value for key, value in _SIZES.items() if key in known})
    model = build_network(config, "causal", torch.float32).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random) + (parameter.dim() == 1))
    return model.eval()


def _logits(model: Any, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
    with torch.no_grad():
        logits_BTV: Tensor = model(input_ids=ids_BT.contiguous(), position_ids=positions_BT, use_cache=False).logits
    return logits_BTV
