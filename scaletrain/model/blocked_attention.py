"""Causal attention for bfloat16 on a CPU: blocks of queries through bmm, several times torch's own speed there.

B batch, T tokens, H query heads, G key/value heads, X = H + 2 G, R = H / G, D head size, P = B * G;
of one block: S queries times R, K keys; of one chunk of documents: n documents padded to L tokens; N = B * T.

torch's flash kernel for the CPU computes bfloat16 at its float32 speed (forward and backward of 8 x 6 heads x 512
tokens on two cores with AVX-512 bf16: 55 ms); bmm uses the bf16 instructions (18 ms). Scores are rounded to bfloat16
before the softmax, as in Hugging Face's eager attention; the softmax and the sums of key and value gradients are
float32 inside.
Memory beyond q, k, v and y is one block's scores, P * R * QUERY_BLOCK * T: two of them forward, three backward.

Queries, keys and values come packed, as their matrix makes them, and their gradients leave so: nothing is joined.
bmm copies a factor that is not dense: of a slice of keys, transposed, it would make a transposed copy, which takes a
third of the product's time; of a dense slice it reads the transpose as it is.

Rows of several documents are taken apart: documents of like length become the rows of a small batch, padded at the end,
where the causal mask hides the padding. No other mask is needed, and no score between two documents is computed.
(One thread, forward and backward, 6 heads of 64: 8 x 512 tokens in documents of about 128: 41 ms, 54 as whole rows;
4 x 2,048 in documents of about 256: 93 and 323.)
"""

import math
from typing import Any

import torch
from torch import Tensor

from scaletrain.model.chunks import QUERY_BLOCK

CHUNK_TOKENS = 1024  # of a chunk of documents: its scores stay in the cache, and their memory is reused


@torch.library.custom_op("scaletrain::blocked_attention", mutates_args=())
def blocked_attention(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, causal; y_BTHD.

    starts_BT: the place in the row where each token's document begins, which is the first token that it sees; None or
    all 0: a row is one document.
    An operator of its own, so that selective activation checkpointing can keep its result and recompute the rest.
    """
    if starts_BT is None or not starts_BT.any():
        return _attended(qkv_BTXD, num_heads, num_kv_heads)
    B, T, _, D = qkv_BTXD.shape
    y_NHD = qkv_BTXD.new_empty(B * T + 1, num_heads, D)  # the last takes the padding
    for tokens_nL in _document_chunks(starts_BT):
        y_nLHD = _attended(_gathered(qkv_BTXD, tokens_nL), num_heads, num_kv_heads)
        y_NHD.index_copy_(0, tokens_nL.flatten(), y_nLHD.flatten(0, 1))
    return y_NHD[:-1].view(B, T, num_heads, D)


@blocked_attention.register_fake
def _(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor | None = None) -> Tensor:
    return qkv_BTXD.new_empty(*qkv_BTXD.shape[:2], num_heads, qkv_BTXD.shape[3])


def _save(ctx: Any, inputs: tuple[Tensor, int, int, Tensor | None], output: Tensor) -> None:
    qkv_BTXD, ctx.num_heads, ctx.num_kv_heads, starts_BT = inputs
    ctx.save_for_backward(qkv_BTXD, starts_BT)  # the probabilities are made again: they are T / D times larger


def _backward(ctx: Any, dy_BTHD: Tensor) -> tuple[Tensor, None, None, None]:
    qkv_BTXD, starts_BT = ctx.saved_tensors
    arguments = (qkv_BTXD, dy_BTHD, ctx.num_heads, ctx.num_kv_heads)
    return _gradients(*arguments) if starts_BT is None else _document_gradients(*arguments, starts_BT), None, None, None


@torch.library.custom_op("scaletrain::blocked_attention_gradients", mutates_args=())
def _document_gradients(
    qkv_BTXD: Tensor, dy_BTHD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor
) -> Tensor:
    """An operator, since its shapes depend on where documents begin, which torch.compile could not trace."""
    if not starts_BT.any():
        return _gradients(qkv_BTXD, dy_BTHD, num_heads, num_kv_heads)
    B, T, X, D = qkv_BTXD.shape
    dqkv_NXD = qkv_BTXD.new_empty(B * T + 1, X, D)  # the last takes the padding
    for tokens_nL in _document_chunks(starts_BT):
        is_token_nL = tokens_nL < B * T
        dy_nLHD = _gathered(dy_BTHD, tokens_nL).mul_(is_token_nL[:, :, None, None])  # padding adds nothing to its keys
        dqkv_nLXD = _gradients(_gathered(qkv_BTXD, tokens_nL), dy_nLHD, num_heads, num_kv_heads)
        dqkv_NXD.index_copy_(0, tokens_nL.flatten(), dqkv_nLXD.flatten(0, 1))
    return dqkv_NXD[:-1].view(B, T, X, D)


@_document_gradients.register_fake
def _(qkv_BTXD: Tensor, dy_BTHD: Tensor, num_heads: int, num_kv_heads: int, starts_BT: Tensor) -> Tensor:
    return torch.empty_like(qkv_BTXD, memory_format=torch.contiguous_format)


blocked_attention.register_autograd(_backward, setup_context=_save)


def _document_chunks(starts_BT: Tensor) -> list[Tensor]:
    """All documents, some in each chunk: the places (n, L) of their tokens among the N of the batch, N for padding.

    oneDNN builds its kernels anew (0.2 ms each) for shapes that it has not seen: n and L take few values.
    """
    N, T = starts_BT.numel(), starts_BT.shape[1]
    firsts = (starts_BT == torch.arange(T)).flatten().nonzero().flatten()
    lengths, order = torch.diff(firsts, append=firsts.new_tensor([N])).sort(descending=True, stable=True)
    firsts, sizes = firsts[order], lengths.tolist()
    chunks, done = [], 0
    while done < len(sizes):
        longest = sizes[done]
        step = 1 << max(0, (longest - 1).bit_length() - 3)  # four lengths an octave: 80, 96, 112, 128, 160, ...
        L = -(-longest // step) * step
        fitting = sizes[done : done + max(1, CHUNK_TOKENS // L)]
        n = 1 << (sum(2 * size >= L for size in fitting).bit_length() - 1)
        documents = slice(done, done + n)
        place_L = torch.arange(L)
        tokens_nL = firsts[documents, None] + place_L
        chunks.append(tokens_nL.masked_fill_(place_L >= lengths[documents, None], N))
        done += n
    return chunks


def _gathered(x_BTXD: Tensor, tokens_nL: Tensor) -> Tensor:
    """Copies to (n, L, X, D); any token stands for the padding."""
    x_NXD = x_BTXD.flatten(0, 1)
    return x_NXD.index_select(0, tokens_nL.clamp(max=len(x_NXD) - 1).flatten()).view(*tokens_nL.shape, *x_NXD.shape[1:])


def _attended(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    q_BGRTD, k_PTD, v_PTD = _unpacked(qkv_BTXD, num_heads, num_kv_heads)
    y_BTHD = qkv_BTXD.new_empty(*qkv_BTXD.shape[:2], num_heads, qkv_BTXD.shape[3])
    y_BGRTD = _grouped(y_BTHD, num_kv_heads)
    future = _future(qkv_BTXD.dtype)
    for start, end in _query_blocks(qkv_BTXD.shape[1]):
        _, p_PSK = _block_probabilities(q_BGRTD[:, :, :, start:end], k_PTD[:, :end].contiguous(), future)
        y_PSD = torch.bmm(p_PSK, v_PTD[:, :end])
        block = y_BGRTD[:, :, :, start:end]
        block.copy_(y_PSD.view(block.shape))
        del p_PSK  # before the next block's are made
    return y_BTHD


def _gradients(qkv_BTXD: Tensor, dy_BTHD: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    H, G = num_heads, num_kv_heads
    q_BGRTD, k_PTD, v_PTD = _unpacked(qkv_BTXD, H, G)
    dy_BGRTD = _grouped(dy_BTHD, G)
    dqkv_BTXD = torch.empty_like(qkv_BTXD)
    dq_BGRTD = _grouped(dqkv_BTXD[:, :, :H], G)
    dk_PTD, dv_PTD = (torch.empty(k_PTD.shape, dtype=torch.float32) for _ in range(2))
    future = _future(qkv_BTXD.dtype)
    for start, end in reversed(_query_blocks(qkv_BTXD.shape[1])):  # the last block has every key: it fills the sums
        k_PKD, v_PKD = k_PTD[:, :end].contiguous(), v_PTD[:, :end].contiguous()
        q_PSD, p_PSK = _block_probabilities(q_BGRTD[:, :, :, start:end], k_PKD, future)
        dy_PSD = dy_BGRTD[:, :, :, start:end].reshape(q_PSD.shape)
        dp_PSK = torch.bmm(dy_PSD, v_PKD.transpose(1, 2))
        ds_PSK = torch.ops.aten._softmax_backward_data(dp_PSK, p_PSK, -1, p_PSK.dtype)  # p * (dp - sum(p * dp))
        block = dq_BGRTD[:, :, :, start:end]
        dq_PSD = torch.bmm(ds_PSK, k_PKD).mul_(block.shape[-1] ** -0.5)
        block.copy_(dq_PSD.view(block.shape))
        is_first = end == qkv_BTXD.shape[1]
        _accumulate(dk_PTD[:, :end], torch.bmm(ds_PSK.transpose(1, 2), q_PSD), is_first)
        _accumulate(dv_PTD[:, :end], torch.bmm(p_PSK.transpose(1, 2), dy_PSD), is_first)
        del p_PSK, dp_PSK, ds_PSK  # before the next block's are made: five such tensors at a time would be held
    dk_BTGD, dv_BTGD = torch.split(dqkv_BTXD[:, :, H:], G, dim=2)
    dk_BTGD.transpose(1, 2).copy_(dk_PTD.view(-1, G, *dk_PTD.shape[1:]))
    dv_BTGD.transpose(1, 2).copy_(dv_PTD.view(-1, G, *dv_PTD.shape[1:]))
    return dqkv_BTXD


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
    k_PTD, v_PTD = (x.transpose(1, 2).contiguous().view(B * num_kv_heads, T, D) for x in (k_BTGD, v_BTGD))
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
