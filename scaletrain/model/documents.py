"""Several documents in a row: where each begins, the positions in it, and what attention needs to stay inside.

B batch, T tokens, S tokens that are seen, H query heads, G key/value heads, D head size.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scaletrain.config.architecture import Architecture


class Documents(NamedTuple):
    """Made once a forward pass and shared by all layers. A tuple, so that ZeRO-3's hooks find the tensors in it."""

    starts: Tensor  # (B, T) int64: the place in the row where the token's document begins
    mask: Tensor | None = None  # (B, 1, T, S): 0 where token t sees token s, else -inf
    bounds: Tensor | None = None  # int32: the first token of each document among the B * T, and B * T


def document_starts(documents_BT: Tensor) -> Tensor:
    """starts_BT of documents numbered in documents_BT: a document begins where the number changes."""
    place_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    is_new_BT = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0))
    return torch.where(is_new_BT, place_T, 0).cummax(1).values


def document_mask(starts_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, S): 0 where token t sees token s, else -inf. Not boolean: torch would turn that into this in each layer
    and keep each for the backward pass."""
    place_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    is_seen_BTS = (place_T <= place_T[:, None]) & (place_T >= starts_BT[..., None])
    mask_BTS = torch.zeros(is_seen_BTS.shape, dtype=dtype, device=starts_BT.device)
    return mask_BTS.masked_fill_(~is_seen_BTS, -math.inf).unsqueeze(1)


def document_bounds(starts_BT: Tensor) -> Tensor:
    """The host waits here for the device: how many documents there are decides the size of the result."""
    place_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    firsts = (starts_BT == place_T).flatten().nonzero().flatten()
    return F.pad(firsts, (0, 1), value=starts_BT.numel()).int()


def prepare_documents(
    starts_BT: Tensor, arch: Architecture, dtype: torch.dtype, bounds: Tensor | None = None
) -> Documents:
    """Documents with what the attention kernel of this device and type wants; dtype: that of queries and keys; bounds:
    document_bounds, where they are known."""
    if starts_BT.device.type == "cpu" and dtype == torch.bfloat16:  # blocked_attention
        return Documents(starts_BT)
    if takes_varlen(arch, dtype, starts_BT.device):
        return Documents(starts_BT, bounds=document_bounds(starts_BT) if bounds is None else bounds)
    return Documents(starts_BT, mask=document_mask(starts_BT, dtype))


def takes_varlen(arch: Architecture, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch would run flash attention here, by its own rules: card, type, head size."""
    if device.type != "cuda" or arch.head_dim % 8:  # other sizes are padded by scaled_dot_product_attention only
        return False
    grads = torch.is_grad_enabled()
    q_BHTD, k_BGTD = (
        torch.empty(1, heads, 8, arch.head_dim, dtype=dtype, device=device, requires_grad=grads)
        for heads in (arch.num_heads, arch.num_kv_heads)
    )
    is_grouped = arch.num_heads != arch.num_kv_heads
    params = torch.backends.cuda.SDPAParams(q_BHTD, k_BGTD, k_BGTD, None, 0.0, True, is_grouped)
    return torch.backends.cuda.can_use_flash_attention(params)


def attend_varlen(qkv_BTXD: Tensor, bounds: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each token over the tokens of its document up to itself; y_BTHD. CUDA, 16 bits."""
    B, T, _, D = qkv_BTXD.shape
    q, k, v = torch.split(qkv_BTXD.flatten(0, 1), [num_heads, num_kv_heads, num_kv_heads], dim=1)
    # No document is longer than T; True: causal; the window: all of the past, nothing of the future.
    y: Tensor = varlen_attention()(q, k, v, bounds, bounds, T, T, True, None, [-1, 0])[0]
    return y.view(B, T, num_heads, D)


@cache
def varlen_attention() -> torch._ops.OpOverload:
    """Flash attention over sequences laid end to end, with its gradient, as one operator, which selective activation
    checkpointing can keep. (FlexAttention is compiled on first use and builds a T x T mask to find its blocks.) Called
    as varlen.varlen_attn calls it, since that one takes enable_gqa, which grouped heads need there, from torch 2.12 on
    only.
    """
    from torch.nn.attention import varlen  # noqa: F401 (registers the operator; loads torch's compiler: a second)

    return torch.ops.torch_attn._varlen_attn.default
