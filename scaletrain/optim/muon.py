"""Muon: the layers' matrices by momentum that is made orthogonal (Jordan et al. 2024), all else by AdamW.

DeepSpeed 0.19's own Muon clips its updates instead of the gradients: docs/decisions/008-muon-of-our-own.md.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scaletrain.optim.matrices import Plan, map_matrices

# Jordan's quintic: it lifts small singular values fast and leaves all between 0.7 and 1.2, which trains as well as 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7
# Root mean square of AdamW's updates (Liu et al. 2025, "Muon is scalable for LLM training"): an orthogonal matrix has
# 1 / sqrt(max(rows, columns)), so this makes the learning rate and the decay mean what they mean for AdamW.
_ADAM_SIZE = 0.2


def orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """Nearly U V^T of matrix = U S V^T by Newton-Schulz iterations, in the matrix's own precision."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().clamp(min=_EPS)  # its spectral norm is at most 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with the name `orthogonal`: those take momentum, made orthogonal a matrix at a time.

    Their tensors may be cut and flattened, as ZeRO does: `place` tells what lies where, and until then their steps do
    nothing (DeepSpeed takes some on zero gradients while it is set up). `shapes` are those of the orthogonal parameters
    by name; `dtype` is what the iterations compute in.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        dtype: torch.dtype,
        **adamw: Any,
    ) -> None:
        super().__init__(groups, **adamw)
        self.shapes = shapes
        self._momentum, self._nesterov, self._ns_steps, self._dtype = momentum, nesterov, ns_steps, dtype
        self._plans: Mapping[Tensor, Plan] = {}

    def place(self, plans: Mapping[Tensor, Plan]) -> None:
        """Tells what each tensor of the orthogonal groups holds."""
        self._plans = plans

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "DeepSpeed gives none"
        groups = self.param_groups
        for group in groups:
            if group["name"] == "orthogonal":
                for tensor in group["params"]:
                    if tensor.grad is not None and tensor in self._plans:
                        self._turn(tensor, tensor.grad, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if group["name"] != "orthogonal"]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _turn(self, tensor: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), device=tensor.device)
            state["momentum_buffer"] = torch.zeros_like(tensor, requires_grad=False)
        state["step"] += 1
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - self._momentum)
        tensor.mul_(1 - lr * weight_decay)
        work = partial(orthogonalize, steps=self._ns_steps)

        def direction() -> Tensor:
            return gradient.lerp(momentum, self._momentum) if self._nesterov else momentum

        turned = map_matrices(self._plans[tensor], direction, work, self._dtype)
        for part, update in turned:
            size = _ADAM_SIZE * math.sqrt(max(part.shape))
            tensor.view(-1).narrow(0, part.offset, part.numel).add_(update, alpha=-lr * size)
