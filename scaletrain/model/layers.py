"""The parts of a block: matrices without torch's default initialisation, norms, rotary positions, feed-forward.

B batch, T tokens, C hidden width, X query, key and value heads together, D head size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scaletrain.config.architecture import Architecture
from scaletrain.model import cpu_kernels
from scaletrain.model.native import feed_forward, linear

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines, each (T, 1, D) or, by sample, (B, T, 1, D); float32


class Linear(nn.Linear):
    """nn.Linear whose memory stays as allocated: init.py or a checkpoint fills it, so nothing is drawn twice."""

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None and linear.takes_native(x, self.weight, self.bias):
            y: Tensor = linear.NativeLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return y
        return super().forward(x)


class Embedding(nn.Embedding):
    """nn.Embedding whose memory stays as allocated, as `Linear`."""

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        pass

    def forward(self, ids: Tensor) -> Tensor:
        return cpu_kernels.embedding(ids, self.weight) if _is_half_on_cpu(self.weight) else super().forward(ids)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_half_on_cpu(x) and not torch.is_autocast_enabled("cpu"):
            if torch.compiler.is_compiling():  # the compiler sums in float32 by itself
                wide = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
                return wide.to(x.dtype)
            return cpu_kernels.layer_norm(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            if torch.compiler.is_compiling():
                return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)
            return cpu_kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)  # one kernel on CUDA


def _is_half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


@dataclass
class RotaryTable:
    """Cosines and sines of rotary positions (Su et al. 2021), made on first use for each device.

    No buffers: module.bfloat16() (DeepSpeed's, torch's) would round them to 8 bits, and from position 256 on neighbours
    would become equal; zero.Init would see them too.
    """

    head_dim: int
    theta: float
    made: dict[tuple[torch.device, int], Rotation] = field(default_factory=dict)

    def rotation(self, length: int, device: torch.device, positions_BT: Tensor | None = None) -> Rotation:
        """Tables of positions 0 .. length - 1, float32; with positions_BT, all below length, a row for each token."""
        if (device, length) not in self.made:
            with torch.inference_mode(False):  # else a table first made during evaluation could not serve training
                self.made[device, length] = self._make(length, device)
        cos, sin = self.made[device, length]
        return (cos, sin) if positions_BT is None else (cos[positions_BT], sin[positions_BT])

    def _make(self, length: int, device: torch.device) -> Rotation:
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        angle = torch.arange(length, dtype=torch.float32)[:, None] / self.theta**exponent
        cos, sin = angle.cos(), angle.sin()
        # x1, x2 -> x1 cos - x2 sin, x2 cos + x1 sin (halves, as Hugging Face): the first half's sine takes the sign.
        return (
            torch.cat((cos, cos), -1)[:, None].to(device),
            torch.cat((-sin, sin), -1)[:, None].to(device),
        )


def rotate(qkv_BTXD: Tensor, rotation: Rotation, num_rotated: int) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) of the first `num_rotated` heads by its position's angle, in float32."""
    y: Tensor = _Rotate.apply(qkv_BTXD, *rotation, num_rotated)  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    """The gradient is the rotation by the negative angle: no intermediate is kept, and no pieces are joined."""

    @staticmethod
    def forward(ctx: Any, x_BTXD: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.num_rotated = num_rotated
        return _rotated(x_BTXD, cos, sin, num_rotated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BTXD: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(g_BTXD, cos, -sin, ctx.num_rotated), None, None, None


def _rotated(x_BTXD: Tensor, cos: Tensor, sin: Tensor, num_rotated: int) -> Tensor:
    y_BTXD, half = torch.empty_like(x_BTXD), x_BTXD.shape[-1] // 2
    # One sample at a time on a CPU: float32 copies of a whole batch are fresh memory at each call; its page faults make
    # this 8 times slower (12.7 against 1.3 ms for 8 x 512 tokens of 10 heads of 64).
    samples = 1 if x_BTXD.device.type == "cpu" else x_BTXD.shape[0]
    tables = (torch.split(table.expand(x_BTXD.shape[0], -1, -1, -1), samples) for table in (cos, sin))
    for x, y, c, s in zip(torch.split(x_BTXD, samples), torch.split(y_BTXD, samples), *tables, strict=True):
        turned = x[:, :, :num_rotated].to(torch.promote_types(x.dtype, cos.dtype))
        swapped = torch.empty_like(turned)
        swapped[..., :half], swapped[..., half:] = turned[..., half:], turned[..., :half]
        y[:, :, :num_rotated] = (turned * c).addcmul_(swapped, s)
        y[:, :, num_rotated:] = x[:, :, num_rotated:]
    return y_BTXD


class GeluFeedForward(nn.Module):
    """down(gelu(up(x))), GELU in its tanh form (GPT-2's); x_BTC -> y_BTC."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.up = Linear(arch.hidden_size, arch.ffn_hidden_size)
        self.down = Linear(arch.ffn_hidden_size, arch.hidden_size)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y: Tensor = self.down(gelu(self.up(x_BTC)))
        return y


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), Phi by tanh."""
    if feed_forward.takes_native(x):
        y: Tensor = feed_forward.NativeGelu.apply(x)  # type: ignore[no-untyped-call]
        return y
    return F.gelu(x, approximate="tanh")


class SwiGLUFeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020); x_BTC -> y_BTC. Two matrices: one fused was no faster on a CPU."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate = Linear(arch.hidden_size, arch.ffn_hidden_size, bias=False)
        self.up = Linear(arch.hidden_size, arch.ffn_hidden_size, bias=False)
        self.down = Linear(arch.ffn_hidden_size, arch.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        y: Tensor = self.down(gated_silu(self.gate(x_BTC), self.up(x_BTC)))
        return y


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if torch.compiler.is_compiling():  # it keeps no more by itself; of the class torch 2.11 loses the gradients
        return F.silu(gate) * up
    kernel = feed_forward.NativeGatedSiLU if feed_forward.takes_native(gate, up) else _GatedSiLU
    y: Tensor = kernel.apply(gate, up)  # type: ignore[no-untyped-call]
    return y


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up that keeps its two inputs only: composed, it would keep silu(gate) too, a third more memory."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(g * up, gate), F.silu(gate).mul_(g)
