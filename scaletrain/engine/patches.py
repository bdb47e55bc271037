"""What DeepSpeed 0.19 does and a run can do without."""

from typing import Any


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
