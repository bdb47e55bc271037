"""Causal attention for bfloat16 on a CPU: blocks of queries through bmm, several times torch's own speed there.

B batch, T tokens, H query heads, G key/value heads, X = H + 2 G, R = H / G, D head size, P = B * G;
of one block: S queries times R, K keys.

torch's flash kernel for the CPU computes bfloat16 at its float32 speed (forward and backward of 8 x 6 heads x 512
tokens on two cores with AVX-512 bf16: 55 ms); bmm uses the bf16 instructions (18 ms). Scores are rounded to bfloat16
before the softmax, as in Hugging Face's eager attention; the softmax and the sums of key and value gradients are
float32 inside.
Memory beyond q, k, v and y is one block's scores: P * R * QUERY_BLOCK * T.

Queries, keys and values come packed, as their matrix makes them, and their gradients leave so: nothing is joined.
"""

import math
from typing import Any

import torch
from torch import Tensor

QUERY_BLOCK = 128  # fastest of 64, 128, 256, 512 at 512 to 4,096 tokens


@torch.library.custom_op("scaletrain::blocked_attention", mutates_args=())
def blocked_attention(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, causal; y_BTHD.

    An operator of its own, so that selective activation checkpointing can keep its result and recompute the rest.
    """
    q_BGRTD, k_PTD, v_PTD = _unpacked(qkv_BTXD, num_heads, num_kv_heads)
    y_BTHD = qkv_BTXD.new_empty(*qkv_BTXD.shape[:2], num_heads, qkv_BTXD.shape[3])
    y_BGRTD = _grouped(y_BTHD, num_kv_heads)
    future = _future(qkv_BTXD.dtype)
    for start, end in _query_blocks(qkv_BTXD.shape[1]):
        _, p_PSK = _block_probabilities(q_BGRTD[:, :, :, start:end], k_PTD[:, :end], future)
        y_PSD = torch.bmm(p_PSK, v_PTD[:, :end])
        block = y_BGRTD[:, :, :, start:end]
        block.copy_(y_PSD.view(block.shape))
    return y_BTHD


@blocked_attention.register_fake
def _(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    return qkv_BTXD.new_empty(*qkv_BTXD.shape[:2], num_heads, qkv_BTXD.shape[3])


def _save(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    qkv_BTXD, ctx.num_heads, ctx.num_kv_heads = inputs
    ctx.save_for_backward(qkv_BTXD)  # the probabilities are made again: they are T / D times larger


def _backward(ctx: Any, dy_BTHD: Tensor) -> tuple[Tensor, None, None]:
    (qkv_BTXD,) = ctx.saved_tensors
    H, G = ctx.num_heads, ctx.num_kv_heads
    q_BGRTD, k_PTD, v_PTD = _unpacked(qkv_BTXD, H, G)
    dy_BGRTD = _grouped(dy_BTHD, G)
    dqkv_BTXD = torch.empty_like(qkv_BTXD)
    dq_BGRTD = _grouped(dqkv_BTXD[:, :, :H], G)
    dk_PTD, dv_PTD = (torch.empty(k_PTD.shape, dtype=torch.float32) for _ in range(2))
    future = _future(qkv_BTXD.dtype)
    for start, end in reversed(_query_blocks(qkv_BTXD.shape[1])):  # the last block has every key: it fills the sums
        q_PSD, p_PSK = _block_probabilities(q_BGRTD[:, :, :, start:end], k_PTD[:, :end], future)
        dy_PSD = dy_BGRTD[:, :, :, start:end].reshape(q_PSD.shape)
        dp_PSK = torch.bmm(dy_PSD, v_PTD[:, :end].transpose(1, 2))
        ds_PSK = torch.ops.aten._softmax_backward_data(dp_PSK, p_PSK, -1, p_PSK.dtype)  # p * (dp - sum(p * dp))
        block = dq_BGRTD[:, :, :, start:end]
        dq_PSD = torch.bmm(ds_PSK, k_PTD[:, :end]).mul_(block.shape[-1] ** -0.5)
        block.copy_(dq_PSD.view(block.shape))
        is_first = end == qkv_BTXD.shape[1]
        _accumulate(dk_PTD[:, :end], torch.bmm(ds_PSK.transpose(1, 2), q_PSD), is_first)
        _accumulate(dv_PTD[:, :end], torch.bmm(p_PSK.transpose(1, 2), dy_PSD), is_first)
    dk_BTGD, dv_BTGD = torch.split(dqkv_BTXD[:, :, H:], G, dim=2)
    dk_BTGD.transpose(1, 2).copy_(dk_PTD.view(-1, G, *dk_PTD.shape[1:]))
    dv_BTGD.transpose(1, 2).copy_(dv_PTD.view(-1, G, *dv_PTD.shape[1:]))
    return dqkv_BTXD, None, None


blocked_attention.register_autograd(_backward, setup_context=_save)


def _accumulate(total: Tensor, part: Tensor, is_first: bool) -> None:
    if is_first:
        total.copy_(part)
    else:
        total += part


def _grouped(x_BTHD: Tensor, num_kv_heads: int) -> Tensor:
    """A view (B, G, R, T, D): the R query heads that share one key/value head side by side."""
    return x_BTHD.view(*x_BTHD.shape[:2], num_kv_heads, -1, x_BTHD.shape[3]).permute(0, 2, 3, 1, 4)


def _unpacked(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as a view (B, G, R, T, D), keys and values copied to (P, T, D)."""
    B, T, _, D = qkv_BTXD.shape
    q_BTHD, k_BTGD, v_BTGD = torch.split(qkv_BTXD, [num_heads, num_kv_heads, num_kv_heads], dim=2)
    k_PTD, v_PTD = (x.transpose(1, 2).reshape(B * num_kv_heads, T, D) for x in (k_BTGD, v_BTGD))
    return _grouped(q_BTHD, num_kv_heads), k_PTD, v_PTD


def _query_blocks(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, tokens)) for start in range(0, tokens, QUERY_BLOCK)]


def _future(dtype: torch.dtype) -> Tensor:
    """-inf above the diagonal of a block's own keys; the keys before the block are all in the past."""
    return torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, dtype=dtype).triu_(1)


def _block_probabilities(q_BGRSD: Tensor, k_PKD: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled queries (P, S, D), S = R * size, of one block and their probabilities over its keys (P, S, K)."""
    B, G, R, size, D = q_BGRSD.shape
    q_PSD = q_BGRSD.reshape(B * G, R * size, D) * D**-0.5
    s_PSK = torch.bmm(q_PSD, k_PKD.transpose(1, 2))
    s_PSK.view(B * G, R, size, -1)[..., -size:] += future[:size, :size]
    return q_PSD, torch.softmax(s_PSK, -1)
