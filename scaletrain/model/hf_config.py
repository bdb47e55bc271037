"""config.json: a Hugging Face config to our architecture and back; anything that we do not compute is an error."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scaletrain.config.architecture import Architecture
from scaletrain.errors import ConfigError

SUPPORTED = ("gpt2", "llama", "mistral", "qwen3")


def hf_config(arch: Architecture, *, eos_id: int | None, bos_id: int | None = None, dtype: torch.dtype) -> Any:
    """The transformers config of `arch`: GPT2Config, LlamaConfig or, with QK-norm, Qwen3Config."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": arch.vocab_size,
        "tie_word_embeddings": arch.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": dtype,
    }
    if arch.family == "gpt2":
        return transformers.GPT2Config(
            **common,
            n_positions=arch.max_positions,
            n_embd=arch.hidden_size,
            n_layer=arch.num_layers,
            n_head=arch.num_heads,
            n_inner=arch.ffn_hidden_size,
            layer_norm_epsilon=arch.norm_eps,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            architectures=["GPT2LMHeadModel"],
        )
    common |= {
        "max_position_embeddings": arch.max_positions,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.ffn_hidden_size,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "head_dim": arch.head_dim,
        "rms_norm_eps": arch.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": arch.rope_theta},
    }
    if arch.qk_norm:
        return transformers.Qwen3Config(**common, architectures=["Qwen3ForCausalLM"])
    return transformers.LlamaConfig(**common, architectures=["LlamaForCausalLM"])


def architecture_from_hf(source: Any) -> Architecture:
    """The architecture of a Hugging Face folder (or a transformers config): GPT-2, Llama, Mistral or Qwen3.

    ConfigError names everything in it that this model does not compute, such as scaled rotary positions or biases.
    """
    config = _read_config(source) if isinstance(source, str | Path) else source
    name = source if isinstance(source, str | Path) else f"{config.model_type} config"
    if config.model_type not in SUPPORTED:
        raise ConfigError(f"{name}: model_type {config.model_type} is not supported: choose {', '.join(SUPPORTED)}")
    if problems := (_gpt2_problems(config) if config.model_type == "gpt2" else _llama_problems(config)):
        raise ConfigError(f"{name}: not supported: {'; '.join(problems)}")
    if config.model_type == "gpt2":
        return Architecture(
            family="gpt2",
            vocab_size=config.vocab_size,
            max_positions=config.n_positions,
            num_layers=config.n_layer,
            num_heads=config.n_head,
            num_kv_heads=config.n_head,
            hidden_size=config.n_embd,
            ffn_hidden_size=config.n_inner or 4 * config.n_embd,
            tie_embeddings=config.tie_word_embeddings,
            norm_eps=config.layer_norm_epsilon,
        )
    return Architecture(
        family="llama",
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        tie_embeddings=config.tie_word_embeddings,
        qk_norm=config.model_type == "qwen3",
        norm_eps=config.rms_norm_eps,
        rope_theta=float(config.rope_parameters["rope_theta"]),
    )


def _read_config(folder: str | Path) -> Any:
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a Hugging Face config: {error!r}: give another folder") from error
    if model_type not in SUPPORTED:
        raise ConfigError(f"{folder}: model_type {model_type} is not supported: choose {', '.join(SUPPORTED)}")
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _gpt2_problems(config: Any) -> list[str]:
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    return _differences(config, wanted)


def _llama_problems(config: Any) -> list[str]:
    wanted: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "head_dim": (None, config.hidden_size // config.num_attention_heads),
        "sliding_window": (None,),
    }
    rope = config.rope_parameters or {}
    found = _differences(config, wanted)
    if rope.get("rope_type", "default") != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(f"rope_parameters={rope} (only plain rotary positions are)")
    return found


def _differences(config: Any, wanted: Mapping[str, tuple[Any, ...]]) -> list[str]:
    found = [
        f"{key}={getattr(config, key)} (only {' or '.join(str(v) for v in allowed if v is not None)} is)"
        for key, allowed in wanted.items()
        if getattr(config, key, allowed[0]) not in allowed
    ]
    if getattr(config, "quantization_config", None) is not None:
        found.append("quantized weights")
    return found
