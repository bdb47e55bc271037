"""Norms and embedding gradients on a CPU, where torch's own are slow or sum in 8 bits.

N rows (tokens), C hidden width, V vocabulary.

torch 2.13 sums the weight gradients of LayerNorm and of an embedding in the type of its input. In bfloat16 and 4,096
tokens that left 5 to 8% error in a norm's gradient and 1.5% in an embedding's of Zipf-distributed ids; float32 sums
leave 0.2%, the rounding of the result. It has no RMSNorm of its own, and the composed one takes four times as long.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaletrain.model.native import norms

ROWS = 1024  # rows at a time: the float32 copies stay small, so their memory is reused and not paged in anew


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if norms.takes_native(x, weight):
        y: Tensor = norms.NativeNorm.apply(x, weight, None, eps)  # type: ignore[no-untyped-call]
    else:
        y = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if norms.takes_native(x, weight, bias):
        y: Tensor = norms.NativeNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    else:
        y = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return y


def embedding(ids: Tensor, weight_VC: Tensor) -> Tensor:
    y: Tensor = _Embedding.apply(ids, weight_VC)  # type: ignore[no-untyped-call]
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, rstd_N1 = torch.empty_like(x, memory_format=torch.contiguous_format), _statistic(x)
        wide_weight = weight.to(rstd_N1.dtype)
        for x_nC, y_nC, rstd_n1 in _chunks(x, y, rstd_N1):
            wide_nC = x_nC.to(rstd_n1.dtype)
            torch.linalg.vector_norm(wide_nC, dim=-1, keepdim=True, out=rstd_n1)
            rstd_n1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            y_nC.copy_((wide_nC * rstd_n1).mul_(wide_weight))
        ctx.save_for_backward(x, weight, rstd_N1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        """By LayerNorm's kernel. With the mean set to 0 it gives rstd * (gw - mean(gw) - xhat * mean(gw * xhat)), where
        gw is g * weight; RMSNorm's gradient lacks the middle term, so rstd * mean(gw) is added back."""
        x, weight, rstd_N1 = ctx.saved_tensors
        dx, dweight, _ = _norm_gradients(g, x, torch.zeros_like(rstd_N1), rstd_N1, weight, add_mean=True)
        return dx, dweight, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        # With float32 weights torch's kernel computes in float32 whatever x is; only its sums backward are narrow.
        y, mean_N1, rstd_N1 = torch.native_layer_norm(x, weight.shape, weight.float(), bias.float(), eps)
        ctx.save_for_backward(x, weight, mean_N1, rstd_N1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean_N1, rstd_N1 = ctx.saved_tensors
        return *_norm_gradients(g, x, mean_N1, rstd_N1, weight, add_mean=False), None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VC: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.vocab, ctx.weight_dtype = weight_VC.shape[0], weight_VC.dtype
        return F.embedding(ids, weight_VC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        used, row_of = torch.unique(ids.reshape(-1), return_inverse=True)
        g_NC = g.reshape(-1, g.shape[-1]).float()
        sums = torch.zeros(used.numel(), g_NC.shape[1]).index_add_(0, row_of, g_NC)
        dweight_VC = torch.zeros(ctx.vocab, g_NC.shape[1], dtype=ctx.weight_dtype)
        dweight_VC[used] = sums.to(ctx.weight_dtype)
        return None, dweight_VC


def _norm_gradients(
    g: Tensor, x: Tensor, mean_N1: Tensor, rstd_N1: Tensor, weight: Tensor, *, add_mean: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a norm's input, weight and bias, computed in float32 and rounded once."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    wide_weight = weight.to(rstd_N1.dtype)
    dweight, dbias = torch.zeros_like(wide_weight), torch.zeros_like(wide_weight)
    for g_nC, x_nC, dx_nC, mean_n1, rstd_n1 in _chunks(g, x, dx, mean_N1, rstd_N1):
        wide_g_nC = g_nC.to(rstd_n1.dtype)
        part_nC, dweight_part, dbias_part = torch.ops.aten.native_layer_norm_backward(
            wide_g_nC, x_nC.to(rstd_n1.dtype), weight.shape, mean_n1, rstd_n1, wide_weight, wide_weight, [True] * 3
        )
        if add_mean:
            part_nC.add_((wide_g_nC @ wide_weight).div_(weight.numel()).unsqueeze(1).mul_(rstd_n1))
        dx_nC.copy_(part_nC)
        dweight += dweight_part
        dbias += dbias_part
    return dx, dweight.to(weight.dtype), dbias.to(weight.dtype)


def _statistic(x: Tensor) -> Tensor:
    """Memory for one number a row, in float32 (float64 for float64)."""
    return torch.empty(x.numel() // x.shape[-1], 1, dtype=torch.promote_types(x.dtype, torch.float32))


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each tensor as rows of its last dimension, `ROWS` at a time, side by side."""
    return zip(*(torch.split(t.reshape(-1, t.shape[-1]), ROWS) for t in tensors), strict=True)
