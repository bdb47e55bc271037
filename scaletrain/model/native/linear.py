"""x weight^T + bias for bfloat16 on a CPU, the bias within oneDNN's product.

torch's own linear writes the bias into the result first and adds the product to it: at 4,096 tokens and widths of 384
to 1,536 the forward pass takes 1.1 to 1.2 times as long. torch.compile's CPU back end calls the same operator.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaletrain.model.native.call import serves


def takes_native(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Not where F.linear has been replaced, as by DeepSpeed at ZeRO 3: it gathers the weight again."""
    return serves(x, weight, bias) and F.linear is torch._C._nn.linear and torch._C._has_mkldnn


class NativeLinear(torch.autograd.Function):
    """Of x[..., K], weight[N, K], bias[N]; the weight is kept, and x where the weight learns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            dy @ weight if needs_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
