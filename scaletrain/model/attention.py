"""Self-attention: one matrix for queries, keys and values, then the fastest causal kernel for the device and type.

B batch, T tokens, C hidden width, H query heads, G key/value heads, X = H + 2 G, D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.config.architecture import Architecture
from scaletrain.model.blocked_attention import blocked_attention
from scaletrain.model.layers import Linear, RMSNorm, Rotation, rotate


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

    def forward(self, x_BTC: Tensor, rotation: Rotation | None = None) -> Tensor:
        B, T, C = x_BTC.shape
        H, G = self.num_heads, self.num_kv_heads
        qkv_BTXD = self.qkv(x_BTC).view(B, T, H + 2 * G, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            q_BTHD, k_BTGD, v_BTGD = torch.split(qkv_BTXD, [H, G, G], dim=2)
            qkv_BTXD = torch.cat((self.query_norm(q_BTHD), self.key_norm(k_BTGD), v_BTGD), dim=2)
        if rotation is not None:
            qkv_BTXD = rotate(qkv_BTXD, rotation, num_rotated=H + G)
        y: Tensor = self.output(causal_attention(qkv_BTXD, H, G).reshape(B, T, C))
        return y


def causal_attention(qkv_BTXD: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of each token over its past and itself; y_BTHD. H must be a multiple of G."""
    if qkv_BTXD.device.type == "cpu" and qkv_BTXD.dtype == torch.bfloat16:
        blocked: Tensor = blocked_attention(qkv_BTXD, num_heads, num_kv_heads)
        return blocked
    q_BHTD, k_BGTD, v_BGTD = torch.split(qkv_BTXD.transpose(1, 2), [num_heads, num_kv_heads, num_kv_heads], dim=1)
    repeats = num_heads // num_kv_heads
    if repeats > 1 and qkv_BTXD.device.type == "cuda" and qkv_BTXD.dtype == torch.float32:
        # CUDA's float32 kernel (memory-efficient) takes no grouped heads: enable_gqa would build the T x T scores.
        k_BGTD, v_BGTD = (x.repeat_interleave(repeats, dim=1) for x in (k_BGTD, v_BGTD))
        repeats = 1
    y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, is_causal=True, enable_gqa=repeats > 1)
    return y_BHTD.transpose(1, 2)
