"""Causal attention for bfloat16 on a CPU in one kernel (attention.cpp), two and a half times as fast as by products.

B batch, T tokens, H query heads, G key/value heads, X = H + 2 G, D head size.

Forward and backward of 4 x 12 heads of 64 and 1,024 tokens on two cores take 77 ms: 63% of the cores' matrix rate.
blocked_attention.py takes 203, torch's flash kernel 245. Products are bfloat16 with float32 sums, everything between
them is float32, but for probabilities and their gradients as factors.
Memory beyond qkv, y and their gradients: what belongs to one key/value head, T * D * 14 bytes a thread.
"""

from typing import Any

import torch
from torch import Tensor

from scaletrain.model.native.build import library, serves_heads
from scaletrain.model.native.call import call


def takes_native(head_dim: int) -> bool:
    """Whether native_attention serves bfloat16 heads of this size on this machine's CPU."""
    return serves_heads(head_dim) and library() is not None


@torch.library.custom_op("scaletrain::native_attention", mutates_args=())
def native_attention(
    qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(D)) v, causal; y_BTHD, and what the backward pass needs: log2 of each query's sum of
    exponentials, float32 (B, H, T).

    starts_BT: the place in the row where each token's document begins, which is the first token that it sees; it does
    not fall along a row. None: a row is one document.
    An operator of its own, so that selective activation checkpointing can keep its result and recompute the rest.
    """
    qkv_BTXD = qkv_BTXD.contiguous()
    y_BTHD, sums_BHT = _results(qkv_BTXD, num_heads)
    _call("attention_forward", qkv_BTXD, starts_BT, [y_BTHD, sums_BHT], num_heads, num_kv_heads)
    return y_BTHD, sums_BHT


@native_attention.register_fake
def _(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _results(qkv_BTXD, num_heads)


@torch.library.custom_op("scaletrain::native_attention_gradients", mutates_args=())
def _gradients(
    qkv_BTXD: Tensor,
    y_BTHD: Tensor,
    sums_BHT: Tensor,
    dy_BTHD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    starts_BT: Tensor | None,
) -> Tensor:
    qkv_BTXD = qkv_BTXD.contiguous()
    dqkv_BTXD = torch.empty_like(qkv_BTXD)
    others = [y_BTHD, sums_BHT, dy_BTHD.contiguous(), dqkv_BTXD]
    _call("attention_backward", qkv_BTXD, starts_BT, others, num_heads, num_kv_heads)
    return dqkv_BTXD


@_gradients.register_fake
def _(
    qkv_BTXD: Tensor,
    y_BTHD: Tensor,
    sums_BHT: Tensor,
    dy_BTHD: Tensor,
    num_heads: int,
    num_kv_heads: int,
    starts_BT: Tensor | None,
) -> Tensor:
    return torch.empty_like(qkv_BTXD, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, int, int, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    qkv_BTXD, ctx.num_heads, ctx.num_kv_heads, starts_BT = inputs
    ctx.save_for_backward(qkv_BTXD, *output, starts_BT)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy_BTHD: Tensor, _: Tensor | None) -> tuple[Tensor, None, None, None]:
    qkv_BTXD, y_BTHD, sums_BHT, starts_BT = ctx.saved_tensors
    dqkv = _gradients(qkv_BTXD, y_BTHD, sums_BHT, dy_BTHD, ctx.num_heads, ctx.num_kv_heads, starts_BT)
    return dqkv, None, None, None


native_attention.register_autograd(_backward, setup_context=_save)


def _results(qkv_BTXD: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    B, T, _, D = qkv_BTXD.shape
    y_BTHD = qkv_BTXD.new_empty(B, T, num_heads, D)
    return y_BTHD, torch.empty(B, num_heads, T, dtype=torch.float32, device=qkv_BTXD.device)


def _call(
    function: str,
    qkv_BTXD: Tensor,
    starts_BT: Tensor | None,
    others: list[Tensor],
    num_heads: int,
    num_kv_heads: int,
) -> None:
    B, T, _, D = qkv_BTXD.shape
    starts_BT = None if starts_BT is None else starts_BT.contiguous()
    call(function, qkv_BTXD, starts_BT, *others, B, T, num_heads, num_kv_heads, D)
