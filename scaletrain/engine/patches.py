"""What DeepSpeed 0.19 does and a run can do without."""

from collections.abc import Iterable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from scaletrain.runtime import dist


def load_muon_as_it_is() -> None:
    """Each ZeRO optimizer loads DeepSpeed's Muon, to see whether it has it, and that has torch's compiler loaded, to be
    compiled (zero/muon/original_muon.py). Nothing here uses it: optim/muon.py is ours."""
    with patch("deepspeed.runtime.compiler.compile", lambda: lambda function: function):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


def look_for_infinities_once(engine: Any) -> None:
    """ZeRO 1 and 2 look at each bfloat16 or float16 gradient for infinities and NaN, and then at their norm, which is
    not finite where one of them is not, and which skips the step too (stage_1_and_2.py, step). The first look is a
    float32 copy of each gradient, two reductions, a collective and a wait for the device: a third of what DeepSpeed
    adds to an update on a CPU.

    With the optimizer in host memory the look is of a flag, which stays.
    """
    optimizer = engine.optimizer
    if getattr(optimizer, "check_grad_overflow", False) and optimizer.compute_grad_norm and not optimizer.cpu_offload:
        optimizer.check_overflow = _look_at_nothing


def _look_at_nothing(partition_gradients: bool = True) -> None:
    pass


def take_norm_at_once(engine: Any) -> None:
    """ZeRO 1 and 2 take the norm of a float64 copy of each gradient, one by one (stage_1_and_2.py,
    get_grad_norm_direct): 18 bytes a parameter are moved. torch reads all of them once, and sums in float32."""
    zero = engine.optimizer
    if not _is_zero_1_or_2(zero):
        return
    norm_of = zero.get_grad_norm_direct

    def norm(gradients: Iterable[Tensor], params: Sequence[Tensor], norm_type: float = 2) -> Any:
        taken = [g.detach() for g in gradients if not getattr(g, "_zero_padding", False)]
        if norm_type != 2 or not taken:
            return norm_of(taken, params, norm_type)
        norms = torch._foreach_norm(taken, 2, dtype=torch.float32)
        return norm_of([torch.stack(norms)], list(params)[:1], 2)

    zero.get_grad_norm_direct = norm


def look_at_all_gradients_at_once(engine: Any) -> None:
    """ZeRO 0 asks of each gradient whether it is finite, and the host waits for each answer (utils.py, CheckOverflow):
    76 times an update of a GPT with 6 layers. Their greatest values are asked once."""
    checker = getattr(engine.optimizer, "overflow_checker", None)
    if checker is not None:
        checker.has_overflow_serial = _has_overflow


def _has_overflow(parameters: list[torch.nn.Parameter]) -> bool:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return False
    greatest = torch._foreach_norm(gradients, float("inf"))
    return not bool(torch.stack(greatest).isfinite().all())


def keep_gradients_in_place(engine: Any) -> None:
    """One rank has no gradient to send or to receive, yet ZeRO 1 and 2 copy each into a bucket and from there into new
    memory of all of them, whose page faults are most of the cost on a CPU. Left alone, they are summed where autograd
    puts them."""
    zero = engine.optimizer
    is_alone = is_zero_on_cpu(zero) and dist.size() == 1
    if is_alone and not zero.use_separate_grad_accum:
        zero.reduce_ready_partitions_and_remove_grads = _leave_gradient


def _leave_gradient(param: torch.nn.Parameter, group: int) -> None:
    pass


def is_zero_on_cpu(optimizer: Any) -> bool:
    """Whether this is DeepSpeed's optimizer of ZeRO 1 and 2, on a CPU and with nothing offloaded."""
    return _is_zero_1_or_2(optimizer) and optimizer.device == "cpu" and not optimizer.cpu_offload


def _is_zero_1_or_2(optimizer: Any) -> bool:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    return type(optimizer) is DeepSpeedZeroOptimizer


def is_unfused(optimizer: Any) -> bool:
    """Whether this is DeepSpeed's optimizer of ZeRO 0 in 16 bits."""
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    return type(optimizer) is FP16_UnfusedOptimizer
