"""The update of ZeRO 0 to 2 on a CPU, some of the gradients at a time.

DeepSpeed joins all gradients of a group, copies what it joined to float32 and scales the copy before Adam reads it
(stage_1_and_2.py, step): memory of 6 bytes a bfloat16 parameter that is new at each step, whose page faults cost more
than Adam does. ZeRO 0 in bfloat16 makes two float32 copies of each, reads them four times and asks each whether it is
finite, which their norm tells (fp16/unfused_optimizer.py, step). Here the gradients pass through one small float32
block, which stays in the processor's cache.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.optim.adamw import adamw

from scaletrain.engine.patches import is_unfused, is_zero_on_cpu

_BLOCK = 1 << 20  # elements


def update_by_blocks(engine: Any) -> None:
    """Of torch's AdamW in this machine's memory; other optimizers are left as they are."""
    zero, optimizer = engine.optimizer, engine.basic_optimizer
    if type(optimizer) is not torch.optim.AdamW:
        return
    if is_zero_on_cpu(zero) and not zero.has_moe_layers:
        BlockwiseUpdate(zero, optimizer).take_over()
    elif is_unfused(zero) and engine.device.type == "cpu":
        zero.step = UnfusedUpdate(zero, optimizer).step


class BlockwiseUpdate:
    """`zero.step` keeps its course; the methods here stand for what it calls to do the work on a group."""

    def __init__(self, zero: Any, optimizer: torch.optim.AdamW) -> None:
        self._zero, self._optimizer, self._block = zero, optimizer, _Block()
        self._norm_of, self._scale = zero.get_grad_norm_direct, zero.unscale_and_clip_grads
        self._factor = torch.ones(1)
        self._gradients: list[torch.Tensor] = []

    def take_over(self) -> None:
        self._zero.get_grad_norm_direct = self.norm
        self._zero._get_preflattened_grad_partition = self.collect
        self._zero.unscale_and_clip_grads = self.scale
        self._zero._optimizer_step = self.update

    def norm(self, gradients: Sequence[torch.Tensor], params: Sequence[torch.Tensor], norm_type: float = 2) -> Any:
        """DeepSpeed's, of the gradients' norms: that of a float32 copy of each is what it would take."""
        norms = [self._block.norm([g]) for g in gradients if not getattr(g, "_zero_padding", False)]
        return self._norm_of(norms, params, norm_type)

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
        state, begin = _state_of(self._optimizer, owner), 0
        for block, _ in self._block.filled(self._gradients):
            part = _Part.of(owner, state, slice(begin, begin + len(block)), block.mul_(self._factor))
            _adamw([part], self._optimizer.param_groups[group])
            begin += len(block)
        state["step"] += 1
        self._gradients = []
        self._zero._lazy_init_hp_params_optimizer_state()


class UnfusedUpdate:
    """ZeRO 0's in 16 bits: each weight has a float32 master. `step` stands for all of `zero.step`."""

    def __init__(self, zero: Any, optimizer: torch.optim.AdamW) -> None:
        self._zero, self._optimizer, self._block = zero, optimizer, _Block()

    @torch.no_grad()
    def step(self) -> bool:
        """Whether the update was left out: the gradients are not finite."""
        zero = self._zero
        norm = float(self._block.norm([w.grad for group in zero.fp16_groups for w in group if w.grad is not None]))
        if not math.isfinite(norm):
            is_left_out: bool = zero._skip_invalid_grad_norm()
            return is_left_out
        zero.overflow, zero._global_grad_norm = False, norm
        zero._update_scale(False)
        factor = 1 / zero.unscale_and_clip_grads(norm, apply_scale=False)
        groups = zip(zero.fp32_groups, zero.fp16_groups, self._optimizer.param_groups, strict=True)
        for masters, weights, settings in groups:
            self._update(masters, weights, settings, factor)
        return False

    def _update(
        self,
        masters: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        settings: Mapping[str, Any],
        factor: float,
    ) -> None:
        states = [_state_of(self._optimizer, master) for master in masters]
        for block, pieces in self._block.filled([torch.zeros_like(w) if w.grad is None else w.grad for w in weights]):
            block.mul_(factor)
            parts = [_Part.of(masters[i].view(-1), states[i], held, block[place]) for i, held, place in pieces]
            _adamw(parts, settings)
            for (i, held, _), part in zip(pieces, parts, strict=True):
                weights[i].view(-1)[held].copy_(part.owner)
        for state in states:
            state["step"] += 1


class _Piece(NamedTuple):
    """The elements `held` of gradient `number` lie at `place` in a block."""

    number: int
    held: slice
    place: slice


class _Block:
    """Float32 memory for some of the gradients at a time."""

    def __init__(self) -> None:
        self._memory = torch.empty(_BLOCK)

    def filled(self, gradients: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, list[_Piece]]]:
        """All gradients, one behind the other: each block is good until the next one is asked for."""
        end, pieces = 0, list[_Piece]()
        for number, gradient in enumerate(gradients):
            flat, begin = gradient.detach().reshape(-1), 0
            while begin < len(flat):
                taken = min(len(flat) - begin, _BLOCK - end)
                pieces.append(_Piece(number, slice(begin, begin + taken), slice(end, end + taken)))
                self._memory[end : end + taken].copy_(flat[begin : begin + taken])
                begin, end = begin + taken, end + taken
                if end == _BLOCK:
                    yield self._memory, pieces
                    end, pieces = 0, []
        if end:
            yield self._memory[:end], pieces

    def norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        norms = [torch.linalg.vector_norm(block) for block, _ in self.filled(gradients)]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm


class _Part(NamedTuple):
    """Of one owner's elements, all flat: what AdamW reads and writes."""

    owner: torch.Tensor
    gradient: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    step: torch.Tensor

    @classmethod
    def of(cls, owner: torch.Tensor, state: Mapping[str, torch.Tensor], held: slice, gradient: torch.Tensor) -> "_Part":
        mean, square = state["exp_avg"].view(-1)[held], state["exp_avg_sq"].view(-1)[held]
        return cls(owner[held], gradient, mean, square, state["step"].clone())  # AdamW counts up in each part


def _state_of(optimizer: torch.optim.AdamW, owner: torch.Tensor) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = optimizer.state[owner]
    if not state:  # as AdamW would
        state["step"] = torch.tensor(0.0)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(owner), torch.zeros_like(owner)
    return state


def _adamw(parts: Sequence[_Part], settings: Mapping[str, Any]) -> None:
    owners, gradients, means, squares, steps = (list(each) for each in zip(*parts, strict=True))
    adamw(
        owners,
        gradients,
        means,
        squares,
        [],
        steps,
        fused=True,
        amsgrad=False,
        beta1=settings["betas"][0],
        beta2=settings["betas"][1],
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=False,
    )
