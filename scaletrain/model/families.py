"""What sets families of transformers' models apart: which keep the examples of one row apart, which are decoders."""

from typing import Any

from scaletrain.errors import ConfigError

# Their attention begins anew where positions do, when no attention mask is given: compared with each example alone, by
# tests/finetune/test_families.py. Others take the row for one text, without a word: a learned position of its own, a
# bias by distance or a recurrent state reaches over the border (OPT, BLOOM, MPT, Mamba, Qwen3-Next and more).
PACKABLE = frozenset(
    {
        "apertus", "arcee", "codegen", "cohere", "cohere2", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2",
        "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite",
        "granitemoe", "helium", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3",
        "olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
        "stablelm", "starcoder2",
    }
)  # fmt: skip


def check_packable(model_type: str) -> None:
    """ConfigError for a family that might mix the examples of a row."""
    if model_type not in PACKABLE:
        raise ConfigError(
            f"data.packing=true: model_type={model_type} is not known to keep the examples of one row apart: set "
            "data.packing=false"
        )


def judges_by_last_token(config: Any) -> bool:
    """Whether the family is of decoders, which classify a row at its last token and not at its first."""
    from transformers.models.auto import modeling_auto

    is_decoder: bool = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return is_decoder and config.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
