"""ZeRO 1 and 2's update on a CPU, some of the gradients at a time.

DeepSpeed joins all gradients of a group, copies what it joined to float32 and scales the copy before Adam reads it
(stage_1_and_2.py, step): memory of 6 bytes a bfloat16 parameter that is new at each step, whose page faults cost more
than Adam does. Here the gradients pass through one small float32 block, which stays in the processor's cache.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim.adamw import adamw

from scaletrain.engine.patches import is_zero_on_cpu

_BLOCK = 1 << 20  # elements


def update_by_blocks(engine: Any) -> None:
    """Of torch's AdamW in this machine's memory; other optimizers are left as they are."""
    zero = engine.optimizer
    if is_zero_on_cpu(zero) and type(engine.basic_optimizer) is torch.optim.AdamW and not zero.has_moe_layers:
        BlockwiseUpdate(zero, engine.basic_optimizer).take_over()


class BlockwiseUpdate:
    """`zero.step` keeps its course; the methods here stand for what it calls to do the work on a group."""

    def __init__(self, zero: Any, optimizer: torch.optim.AdamW) -> None:
        self._zero, self._optimizer = zero, optimizer
        self._norm_of, self._scale = zero.get_grad_norm_direct, zero.unscale_and_clip_grads
        self._block = torch.empty(_BLOCK)
        self._factor = torch.ones(1)
        self._gradients: list[torch.Tensor] = []

    def take_over(self) -> None:
        self._zero.get_grad_norm_direct = self.norm
        self._zero._get_preflattened_grad_partition = self.collect
        self._zero.unscale_and_clip_grads = self.scale
        self._zero._optimizer_step = self.update

    def norm(self, gradients: Sequence[torch.Tensor], params: Sequence[torch.Tensor], norm_type: float = 2) -> Any:
        """DeepSpeed's, of the gradients' norms: that of a float32 copy of each is what it would take."""
        norms = [self._norm_in_blocks(g) for g in gradients if not getattr(g, "_zero_padding", False)]
        return self._norm_of(norms, params, norm_type)

    def _norm_in_blocks(self, gradient: torch.Tensor) -> torch.Tensor:
        norms = [torch.linalg.vector_norm(block) for block in self._blocks([gradient])]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def collect(self, group: int) -> torch.Tensor:
        """Keeps the group's gradients for `update`. What is returned has the shape of what DeepSpeed would join, and no
        memory."""
        self._gradients = list(self._zero.averaged_gradients[group])
        return self._factor.expand(int(self._zero.partition_size[group]))

    def scale(self, gradients: Sequence[torch.Tensor], norm: Any) -> None:
        self._factor.fill_(1.0)
        self._scale([self._factor], norm)

    @torch.no_grad()
    def update(self, group: int) -> None:
        owner = self._zero.single_partition_of_fp32_groups[group]
        settings = self._optimizer.param_groups[group]
        state = self._optimizer.state[owner]
        if not state:  # as AdamW would
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(owner), torch.zeros_like(owner)
        begin = 0
        for block in self._blocks(self._gradients):
            held = slice(begin, begin + block.numel())
            adamw(
                [owner[held]],
                [block.mul_(self._factor)],
                [state["exp_avg"][held]],
                [state["exp_avg_sq"][held]],
                [],
                [state["step"].clone()],
                fused=True,
                amsgrad=False,
                beta1=settings["betas"][0],
                beta2=settings["betas"][1],
                lr=settings["lr"],
                weight_decay=settings["weight_decay"],
                eps=settings["eps"],
                maximize=False,
            )
            begin = held.stop
        state["step"] += 1
        self._gradients = []
        self._zero._lazy_init_hp_params_optimizer_state()

    def _blocks(self, gradients: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """All gradients, one behind the other, in float32: each block is good until the next one is asked for."""
        filled = 0
        for gradient in gradients:
            rest = gradient.detach().reshape(-1)
            while rest.numel():
                taken = min(rest.numel(), _BLOCK - filled)
                self._block[filled : filled + taken].copy_(rest[:taken])
                rest, filled = rest[taken:], filled + taken
                if filled == _BLOCK:
                    yield self._block
                    filled = 0
        if filled:
            yield self._block[:filled]
