"""GELU in its tanh form and silu(gate) * up for bfloat16 on a CPU, each pass in one kernel (feed_forward.cpp)."""

from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaletrain.model.native.build import library


def takes_native(*inputs: Tensor) -> bool:
    """Whether these kernels serve these inputs here; a graph that is being compiled has its own."""
    if torch.compiler.is_compiling():
        return False
    first = inputs[0]
    fits = first.dtype == torch.bfloat16 and first.device.type == "cpu" and first.numel() % 16 == 0
    return fits and all(x.is_contiguous() for x in inputs) and library() is not None


class NativeGelu(torch.autograd.Function):
    """Of x of any shape, which is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _call("gelu_forward", x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _call("gelu_backward", x, dy.contiguous(), dx)
        return dx


class NativeGatedSiLU(torch.autograd.Function):
    """silu(gate) * up; the two inputs are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        _call("gated_silu_forward", gate, up, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        _call("gated_silu_backward", gate, up, dy.contiguous(), dgate, dup)
        return dgate, dup


def _call(function: str, *tensors: Tensor) -> None:
    kernels = library()
    assert kernels is not None
    places = [c_void_p(tensor.data_ptr()) for tensor in tensors]
    kernels[function](*places, c_int64(tensors[0].numel()), torch.get_num_threads())
