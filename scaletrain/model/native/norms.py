"""LayerNorm and RMSNorm of bfloat16 rows on a CPU, computed and summed in float32, a kernel each pass (norms.cpp)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaletrain.model.native.call import call, serves


def takes_native(x: Tensor, *weights: Tensor) -> bool:
    return x.shape[-1] % 16 == 0 and serves(x, *weights)


class NativeNorm(torch.autograd.Function):
    """Over the last dimension of x, of C elements; with a bias LayerNorm, without RMSNorm. x and one or two float32
    numbers a row are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        rows, C = x.numel() // x.shape[-1], x.shape[-1]
        y = torch.empty_like(x)
        rstd = torch.empty(rows, dtype=torch.float32)
        mean = None if bias is None else torch.empty_like(rstd)
        call("norm_forward", x, weight, bias, y, mean, rstd, rows, C, float(eps))
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight = torch.empty_like(x), torch.empty_like(weight)
        dbias = None if mean is None else torch.empty_like(weight)
        sizes = (x.numel() // x.shape[-1], x.shape[-1])
        call("norm_backward", dy.contiguous(), x, weight, mean, rstd, dx, dweight, dbias, *sizes)
        return dx, dweight, dbias, None
