"""GELU in its tanh form and silu(gate) * up for bfloat16 on a CPU, each pass in one kernel (feed_forward.cpp)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaletrain.model.native.call import call, serves


def takes_native(*inputs: Tensor) -> bool:
    return inputs[0].numel() % 16 == 0 and serves(*inputs)


class NativeGelu(torch.autograd.Function):
    """Of x of any shape, which is all that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        call("gelu_forward", x, y, x.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        call("gelu_backward", x, dy.contiguous(), dx, x.numel())
        return dx


class NativeGatedSiLU(torch.autograd.Function):
    """silu(gate) * up; the two inputs are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        call("gated_silu_forward", gate, up, y, y.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        call("gated_silu_backward", gate, up, dy.contiguous(), dgate, dup, dup.numel())
        return dgate, dup
