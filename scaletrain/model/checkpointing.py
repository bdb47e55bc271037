"""Activation checkpointing, applied from outside: which blocks keep their inputs only and compute the rest again."""

import re
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from scaletrain.errors import ConfigError
from scaletrain.model.attention import Layout
from scaletrain.model.gpt import GPT, run_block
from scaletrain.model.host_inputs import HostInputs

# What selective mode keeps: results dear to compute for their size. Norms, activations and rotations are redone.
KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "mkldnn::_linear_pointwise",  # native/linear.py
        "aten::_scaled_mm",  # a product in FP8
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "scaletrain::blocked_attention",
        "scaletrain::native_attention",
        "torch_attn::_varlen_attn",
    }
)


def apply_activation_checkpointing(model: GPT, mode: str) -> None:
    """Sets what the backward pass of `model` computes again; losses and gradients stay the same.

    none: nothing. full: each block. offload: each block, whose input waits in host memory. every_N: block 0, N, 2N, ...
    selective: each block, but its matrix products and attention are kept. Non-reentrant, so ZeRO-3's and PEFT's hooks
    see the second forward like the first.
    """
    if mode == "none":
        model.run_block = run_block
    elif mode == "full":
        model.run_block = partial(_recompute_each, 1)
    elif mode == "offload":
        model.run_block = partial(_recompute_from_host, HostInputs(len(model.blocks)))
    elif mode == "selective":
        model.run_block = _recompute_selected
    elif match := re.fullmatch(r"every_([1-9][0-9]*)", mode):
        model.run_block = partial(_recompute_each, int(match[1]))
    else:
        raise ConfigError(
            f"activation checkpointing {mode!r} is unknown: choose none, selective, full, offload or every_N"
        )


def _recompute_each(step: int, index: int, block: nn.Module, x_BTC: Tensor, layout: Layout) -> Tensor:
    if index % step:
        return run_block(index, block, x_BTC, layout)
    # No dropout, so no random state to restore.
    y_BTC: Tensor = checkpoint(block, x_BTC, layout, use_reentrant=False, preserve_rng_state=False)
    return y_BTC


def _recompute_from_host(inputs: HostInputs, index: int, block: nn.Module, x_BTC: Tensor, layout: Layout) -> Tensor:
    with inputs.keeping(index):  # the block's own tensors go to checkpoint's hooks, which lie above
        return _recompute_each(1, index, block, x_BTC, layout)


def _recompute_selected(index: int, block: nn.Module, x_BTC: Tensor, layout: Layout) -> Tensor:
    y_BTC: Tensor = checkpoint(
        block,
        x_BTC,
        layout,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(create_selective_checkpoint_contexts, _policy),
    )
    return y_BTC


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
