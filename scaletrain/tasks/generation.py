"""Answers written by a model that is being trained, or by one in memory, many prompts at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from scaletrain.config.finetune_schema import Generation
from scaletrain.data.encoded_rows import padded
from scaletrain.model.adapters import virtual_tokens
from scaletrain.model.network import Network


def write_answers(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], wanted: Generation, device: torch.device
) -> list[str]:
    """The text after each prompt, without special tokens. All ranks call it at once; an empty prompt gives anything.

    Under ZeRO-3 each new token gathers the weights anew, and ranks whose answers are done go on until all are.
    """
    network: Any = model if isinstance(model, Network) else model.module
    causal = network.model
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
    ids = padded([list(prompt) or [start] for prompt in prompts], tokenizer.pad_token_id, left=True).to(device)
    mask = padded([[1] * max(1, len(prompt)) for prompt in prompts], 0, left=True).to(device)
    is_split = any(hasattr(parameter, "ds_id") for parameter in causal.parameters())
    sampling = {"do_sample": True, "temperature": wanted.temperature} if wanted.temperature else {"do_sample": False}
    with torch.no_grad():
        causal, given = with_prompt(causal, ids, mask)
        out = causal.generate(
            **given,
            max_new_tokens=wanted.max_new_tokens,
            num_beams=wanted.num_beams,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            synced_gpus=is_split,
            use_cache=True,
            **sampling,
        )
    new = out[:, given["input_ids"].shape[1] if "input_ids" in given else 0 :].tolist()
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def with_prompt(causal: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
    """The transformers model and what its `generate` is given, which gives new tokens alone where a tuned prompt stands
    before the words: PEFT's own `generate` counts positions otherwise than training does."""
    virtual = virtual_tokens(causal)
    if not virtual:
        return causal, {"input_ids": ids_BS, "attention_mask": mask_BS}
    prompt_BVH = causal.get_prompt(batch_size=len(ids_BS))
    base = causal.get_base_model()
    embeddings = torch.cat([prompt_BVH, base.get_input_embeddings()(ids_BS)], dim=1)
    mask = torch.cat([mask_BS.new_ones(len(ids_BS), virtual), mask_BS], dim=1)
    return base, {"inputs_embeds": embeddings, "attention_mask": mask}
