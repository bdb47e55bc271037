"""Self-attention: one matrix for queries, keys and values, then the fastest causal kernel for the device and type.

B batch, T tokens, C hidden width, H query heads, G key/value heads, X = H + 2 G, D head size.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.architecture import Architecture
from scaletrain.model.blocked_attention import blocked_attention
from scaletrain.model.documents import Documents, attend_varlen, document_mask
from scaletrain.model.layers import Linear, RMSNorm, Rotation, rotate
from scaletrain.model.native.attention import native_attention, takes_native


class Layout(NamedTuple):
    """Where the tokens of a batch stand, the same for all layers. A tuple, so that ZeRO-3's hooks find its tensors."""

    rotation: Rotation | None = None  # llama's positions
    documents: Documents | None = None  # None: each row is one document


class HeadExchange(Protocol):
    """Ranks that share each row, of which this one holds the `place`-th of `size` parts (runtime/sequence.py)."""

    @property
    def place(self) -> int: ...

    @property
    def size(self) -> int: ...

    def to_heads(self, x_BTXD: Tensor) -> Tensor:
        """This rank's tokens of all X heads -> the whole row's tokens of its X / size heads."""
        ...

    def to_tokens(self, x_BTXD: Tensor) -> Tensor:
        """The way back."""
        ...


class Attention(nn.Module):
    """Grouped-query self-attention; x_BTC -> y_BTC."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = arch.num_heads, arch.num_kv_heads, arch.head_dim
        bias = arch.family == "gpt2"
        self.qkv = Linear(arch.hidden_size, (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim, bias=bias)
        self.output = Linear(arch.hidden_size, arch.hidden_size, bias=bias)
        self.query_norm = RMSNorm(arch.head_dim, arch.norm_eps) if arch.qk_norm else None
        self.key_norm = RMSNorm(arch.head_dim, arch.norm_eps) if arch.qk_norm else None
        self.exchange: HeadExchange | None = None  # sequence.py sets one

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        B, T, C = x_BTC.shape
        H, G = self.num_heads, self.num_kv_heads
        qkv_BTXD = self.qkv(x_BTC).view(B, T, H + 2 * G, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTGD, v_BTGD = torch.split(qkv_BTXD, [H, G, G], dim=2)
            qkv_BTXD = torch.cat((self.query_norm(q_BTHD), self.key_norm(k_BTGD), v_BTGD), dim=2)
        if layout.rotation is not None:
            qkv_BTXD = rotate(qkv_BTXD, layout.rotation, num_rotated=H + G)
        if self.exchange is None:
            y_BTHD = causal_attention(qkv_BTXD, H, G, layout.documents)
        else:
            y_BTHD = _attention_over_ranks(qkv_BTXD, H, G, layout.documents, self.exchange)
        y: Tensor = self.output(y_BTHD.reshape(B, T, C))
        return y


def _attention_over_ranks(
    qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, documents: Documents | None, exchange: HeadExchange
) -> Tensor:
    """As causal_attention, of rows that ranks share. The head counts are multiples of exchange.size."""
    n = exchange.size
    # The part of each rank side by side: its queries, keys and values.
    kinds = torch.split(qkv_BTXD, [num_heads, num_kv_heads, num_kv_heads], dim=2)
    by_rank = torch.cat([heads.reshape(*heads.shape[:2], n, -1, heads.shape[3]) for heads in kinds], dim=3).flatten(
        2, 3
    )
    y_BTHD = causal_attention(exchange.to_heads(by_rank), num_heads // n, num_kv_heads // n, documents)
    return exchange.to_tokens(y_BTHD)


def causal_attention(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int, documents: Documents | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each token over its past and itself, in its document; y_BTHD. H must be a multiple
    of G."""
    device, dtype = qkv_BTXD.device.type, qkv_BTXD.dtype
    if device == "cpu" and dtype == torch.bfloat16:
        starts_BT = None if documents is None else documents.starts
        if takes_native(qkv_BTXD.shape[3]):
            native: Tensor = native_attention(qkv_BTXD, num_heads, num_kv_heads, starts_BT)[0]
            return native
        blocked: Tensor = blocked_attention(qkv_BTXD, num_heads, num_kv_heads, starts_BT)
        return blocked
    mask_B1TS = None
    if documents is not None:
        if documents.bounds is not None and dtype in (torch.bfloat16, torch.float16):
            return attend_varlen(qkv_BTXD, documents.bounds, num_heads, num_kv_heads)
        mask_B1TS = documents.mask
        if mask_B1TS is None or mask_B1TS.dtype != dtype:  # autocast may have run the norm of the queries in float32
            mask_B1TS = document_mask(documents.starts, dtype)
    q_BHTD, k_BGTD, v_BGTD = torch.split(qkv_BTXD.transpose(1, 2), [num_heads, num_kv_heads, num_kv_heads], dim=1)
    repeats = num_heads // num_kv_heads
    if repeats > 1 and device == "cuda" and (dtype == torch.float32 or mask_B1TS is not None):
        # CUDA's kernel for float32 and masks (memory-efficient) takes no grouped heads: enable_gqa would build the
        # T x T scores.
        k_BGTD, v_BGTD = (x.repeat_interleave(repeats, dim=1) for x in (k_BGTD, v_BGTD))
        repeats = 1
    y_BHTD = F.scaled_dot_product_attention(
        q_BHTD, k_BGTD, v_BGTD, attn_mask=mask_B1TS, is_causal=mask_B1TS is None, enable_gqa=repeats > 1
    )
    return y_BHTD.transpose(1, 2)
