"""The kernels that kernels.py measures: ours and torch's plain ones, on equal inputs, with their FLOPs and bytes.

B samples, T tokens, N = B * T, C hidden width, F feed-forward width, V vocabulary, H query heads, G key/value heads,
X = H + 2 G, D head size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaletrain.model.attention import causal_attention
from scaletrain.model.layers import Embedding, LayerNorm, RMSNorm, RotaryTable, gated_silu, rotate
from scaletrain.model.loss import linear_cross_entropy


@dataclass(frozen=True)
class Shape:
    """Of one micro-batch and one block."""

    samples: int = 8
    tokens: int = 512
    heads: int = 12
    kv_heads: int = 4
    head_size: int = 64
    vocab: int = 32_000

    @property
    def hidden(self) -> int:
        return self.heads * self.head_size

    @property
    def rows(self) -> int:
        return self.samples * self.tokens

    def __str__(self) -> str:
        heads = f"{self.heads} heads ({self.kv_heads} of keys) of {self.head_size}"
        return f"{self.samples} x {self.tokens} tokens, {heads}, vocabulary {self.vocab:,}"


@dataclass(frozen=True)
class Kernel:
    """Ways to compute the same from `inputs`; of forward and backward pass: FLOPs of matrix products, and bytes that
    have to be read and written however it is done."""

    variants: Mapping[str, Callable[..., Tensor]]
    inputs: Sequence[Tensor]
    flops: int
    moved: int


def _random(*sizes: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(len(sizes) + sum(sizes))
    return torch.randn(*sizes, generator=generator).to(device, dtype).requires_grad_()


def attention(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    B, T, H, G, D = shape.samples, shape.tokens, shape.heads, shape.kv_heads, shape.head_size
    qkv_BTXD = _random(B, T, H + 2 * G, D, device=device, dtype=dtype)

    def sdpa(qkv_BTXD: Tensor) -> Tensor:
        q, k, v = torch.split(qkv_BTXD.transpose(1, 2), [H, G, G], dim=1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=G != H).transpose(1, 2)

    # Forward: reads qkv, writes y. Backward: reads qkv, y and its gradient, writes the gradient of qkv.
    moved = dtype.itemsize * shape.rows * (3 * (H + 2 * G) * D + 3 * H * D)
    variants = {"ours": lambda qkv: causal_attention(qkv, H, G), "torch SDPA": sdpa}
    return Kernel(variants, [qkv_BTXD], 6 * B * H * T * T * D, moved)


def loss(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    N, C, V = shape.rows, shape.hidden, shape.vocab
    hidden_NC = _random(N, C, device=device, dtype=dtype)
    weight_VC = _random(V, C, device=device, dtype=dtype)
    labels_N = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1)).to(device)

    def full(hidden_NC: Tensor, weight_VC: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden_NC, weight_VC).float(), labels_N, reduction="sum")

    variants = {"ours": lambda hidden, weight: linear_cross_entropy(hidden, weight, labels_N), "full logits": full}
    if chunked := getattr(F, "linear_cross_entropy", None):  # torch 2.13
        variants["torch linear_cross_entropy"] = lambda hidden, weight: chunked(
            hidden, weight, labels_N, reduction="sum"
        )
    # Both gradients can be made while the logits are there: each input is read once.
    return Kernel(variants, [hidden_NC, weight_VC], 6 * N * C * V, dtype.itemsize * 2 * (N * C + V * C))


def _norm(shape: Shape, device: torch.device, dtype: torch.dtype, modules: Mapping[str, nn.Module]) -> Kernel:
    x_NC = _random(shape.rows, shape.hidden, device=device, dtype=dtype)
    variants = {name: module.to(device, dtype) for name, module in modules.items()}
    # Forward: reads x, writes y. Backward: reads x and the gradient of y, writes that of x.
    return Kernel(variants, [x_NC], 0, dtype.itemsize * 5 * x_NC.numel())


def layer_norm(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    C = shape.hidden
    return _norm(shape, device, dtype, {"ours": LayerNorm(C), "torch nn.LayerNorm": nn.LayerNorm(C)})


def rms_norm(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    C = shape.hidden
    return _norm(shape, device, dtype, {"ours": RMSNorm(C, 1e-5), "torch nn.RMSNorm": nn.RMSNorm(C, 1e-5)})


def rotary(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    H, G, D = shape.heads, shape.kv_heads, shape.head_size
    qkv_BTXD = _random(shape.samples, shape.tokens, H + 2 * G, D, device=device, dtype=dtype)
    rotation = RotaryTable(D, 10_000.0).rotation(shape.tokens, device)
    cos, signed_sin = rotation
    sin = torch.cat((-signed_sin[..., : D // 2], signed_sin[..., D // 2 :]), -1)

    def textbook(qkv_BTXD: Tensor) -> Tensor:
        """As in Hugging Face's models: halves swapped by joining pieces, here in float32."""
        turned, values = torch.split(qkv_BTXD, [H + G, G], dim=2)
        wide = turned.float()
        swapped = torch.cat((-wide[..., D // 2 :], wide[..., : D // 2]), -1)
        return torch.cat(((wide * cos + swapped * sin).to(dtype), values), 2)

    variants = {"ours": lambda qkv: rotate(qkv, rotation, H + G), "textbook": textbook}
    return Kernel(variants, [qkv_BTXD], 0, dtype.itemsize * 4 * qkv_BTXD.numel())


def embedding(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    V, C = shape.vocab, shape.hidden
    # Words of text are Zipf-distributed: few are frequent.
    chances = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    ids = torch.multinomial(chances, shape.rows, True, generator=torch.Generator().manual_seed(1)).to(device)
    ours = Embedding(V, C).to(device, dtype)
    with torch.no_grad():
        ours.weight.copy_(_random(V, C, device=device, dtype=dtype))

    def run_ours(weight_VC: Tensor) -> Tensor:
        del weight_VC  # the module's own, which is the input
        return ours(ids)

    # Forward: rows read and written. Backward: their gradients read, the whole matrix's written.
    moved = dtype.itemsize * (3 * shape.rows * C + V * C)
    variants = {"ours": run_ours, "torch F.embedding": lambda weight: F.embedding(ids, weight)}
    return Kernel(variants, [ours.weight], 0, moved)


def gated(shape: Shape, device: torch.device, dtype: torch.dtype) -> Kernel:
    width = -(-8 * shape.hidden // 3 // 64) * 64  # as config/architecture.py
    gate_NF, up_NF = (_random(shape.rows, width, device=device, dtype=dtype) for _ in range(2))
    variants = {"ours": gated_silu, "torch silu(gate) * up": lambda gate, up: F.silu(gate) * up}
    # Forward: reads two, writes one. Backward: reads three, writes two.
    return Kernel(variants, [gate_NF, up_NF], 0, dtype.itemsize * 8 * gate_NF.numel())


KERNELS: dict[str, Callable[[Shape, torch.device, torch.dtype], Kernel]] = {
    "attention": attention,
    "loss": loss,
    "layer norm": layer_norm,
    "rms norm": rms_norm,
    "rotary": rotary,
    "embedding": embedding,
    "gated silu": gated,
}
