"""Adapters of PEFT: a few new weights in a frozen model. What a checkpoint or an export holds of them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaletrain.config.finetune_schema import Adapter
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.network import Head

_TASK_TYPES: dict[Head, str] = {
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "causal": "CAUSAL_LM",
}


def need_peft() -> Any:
    """The library, or how to get it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which it loads: on a CPU that misses 4 bits' kernels
    try:
        import peft
    except ImportError as error:
        raise ConfigError("adapter.kind needs the package peft: pip install 'scaletrain[finetune]'") from error
    return peft


def add_adapter(model: Any, adapter: Adapter, head: Head, seed: int, tokenizer: Path | None = None) -> Any:
    """`model` (transformers', with its weights) inside a PEFT model whose new weights alone, and the head's, train.

    The new weights are drawn from `seed`, alike on all ranks. ConfigError when the targets name no layer.
    """
    peft = need_peft()
    config = _config(peft, adapter, head, tokenizer)
    if head != "causal" and adapter.kind != "prompt_tuning":  # it trains whole, all-linear would adapt it too
        config.exclude_modules = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            if "arget" not in str(error):  # "Target modules ... not found", "Please specify `target_modules`"
                raise
            raise ConfigError(_no_targets(model, adapter)) from error
    if adapter.kind == "prompt_tuning":
        wrapped.prompt_encoder.to(next(model.parameters()).dtype)
    return wrapped


def _config(peft: Any, adapter: Adapter, head: Head, tokenizer: Path | None) -> Any:
    kind = getattr(peft.TaskType, _TASK_TYPES[head])
    targets: Any = {"auto": None, "all-linear": "all-linear"}.get(str(adapter.targets), adapter.targets)
    targets = list(targets) if isinstance(targets, tuple) else targets
    if adapter.kind == "ia3":
        return peft.IA3Config(task_type=kind, target_modules=targets)
    if adapter.kind == "prompt_tuning":
        text = {
            "prompt_tuning_init": peft.PromptTuningInit.TEXT,
            "prompt_tuning_init_text": adapter.prompt_text,
            "tokenizer_name_or_path": str(tokenizer),
        }
        chosen = text if adapter.prompt_text else {"prompt_tuning_init": peft.PromptTuningInit.RANDOM}
        return peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=adapter.virtual_tokens, **chosen)
    return peft.LoraConfig(
        task_type=kind,
        r=adapter.rank,
        lora_alpha=adapter.alpha or 2 * adapter.rank,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.kind == "dora",
        use_rslora=adapter.kind == "rslora",
    )


def virtual_tokens(model: Any) -> int:
    """Tokens that an adapter puts before each row: its logits begin with theirs."""
    if not hasattr(model, "peft_config"):
        return 0
    return int(getattr(model.active_peft_config, "num_virtual_tokens", None) or 0)


def without_wrapper(model: Any) -> Any:
    """`model` with its adapter, called past PEFT's own forward: that of question answering (0.21) drops token_type_ids,
    so that the model would be trained on other inputs than its merged copy sees. Not for a tuned prompt, which that
    forward puts before the row."""
    return model.base_model if hasattr(model, "peft_config") else model


def _no_targets(model: nn.Module, adapter: Adapter) -> str:
    kinds = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if type(m).__name__ in _LINEAR})
    told = f"adapter.targets={_shown(adapter)} names no layer of this model"
    return f"{told}: choose among {', '.join(kinds)}, or all-linear"


_LINEAR = ("Linear", "Conv1D")


def _shown(adapter: Adapter) -> str:
    return adapter.targets if isinstance(adapter.targets, str) else f"[{', '.join(adapter.targets)}]"


def adapter_state(wrapped: Any, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter folder holds, under PEFT's names: `trained` by the names of `wrapped`'s own parameters."""
    peft = need_peft()
    whole = {**dict(wrapped.named_parameters()), **trained}
    wrapped.active_peft_config.inference_mode = True
    for name, encoder in getattr(wrapped, "prompt_encoder", {}).items():  # PEFT does not look into state_dict for it
        encoder.embedding.weight = nn.Parameter(whole[f"prompt_encoder.{name}.embedding.weight"])
    state: dict[str, Tensor] = peft.get_peft_model_state_dict(wrapped, state_dict=whole)
    return {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}


def write_adapter(folder: Path, wrapped: Any, trained: Mapping[str, Tensor], base: str) -> None:
    """Writes a PEFT folder and reads it back; CheckpointError when it does not hold what was to be written."""
    from safetensors.torch import load_file, save_file

    state = adapter_state(wrapped, trained)
    config = wrapped.active_peft_config
    config.base_model_name_or_path = base
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    check_adapter(load_file(folder / "adapter_model.safetensors"), state, trained, folder)


def check_adapter(
    read: Mapping[str, Tensor], state: Mapping[str, Tensor], trained: Mapping[str, Tensor], folder: Path
) -> None:
    """CheckpointError unless what was `read` is `state`, and `state` holds as many numbers as were `trained`."""
    for name, tensor in state.items():
        if name not in read or not torch.equal(read[name], tensor) or not tensor.numel():
            raise CheckpointError(f"{folder}: {name} is not as it was trained: report this, and export the run again")
    written, wanted = (sum(tensor.numel() for tensor in part.values()) for part in (state, trained))
    if written < wanted:
        raise CheckpointError(f"{folder}: holds {written:,} of {wanted:,} trained numbers: report this")
