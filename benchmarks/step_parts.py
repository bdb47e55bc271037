"""Where the time of a training step goes: by part, from Python's own profiling hook; on a CPU, whose backward pass runs
in the thread that is watched."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

# Functions by the part that they begin; what they call counts to it unless it begins a part of its own. The names are
# those of DeepSpeed 0.19, of torch and of this project.
PARTS: dict[str, tuple[str, set[str]]] = {
    "forward": ("scaletrain/model/gpt.py", {"forward"}),
    "backward": ("torch/_tensor.py", {"backward"}),
    "optimizer": ("torch/optim/", {"step", "_single_tensor_adam", "_multi_tensor_adam", "_fused_adam"}),
    "norm and clipping": (
        "",
        {
            "clip_grad_norm_", "scaled_global_norm", "get_grad_norm_direct", "unscale_and_clip_grads", "has_overflow",
            "get_weight_norm", "get_global_norm", "get_flattened_grad_norm", "get_global_norm_of_tensors",
            "clip_tensors_by_global_norm", "_get_norm_groups", "has_overflow_serial", "check_overflow",
        },
    ),
    "flatten, copy": (
        "",
        {
            "flatten", "unflatten", "flatten_dense_tensors_aligned", "get_flat_partition", "update_lp_params",
            "_update_model_bit16_weights", "_prepare_fp32_grad_for_sub_group", "_unflatten_partitioned_parameters",
            "_reassign_or_swap_out_partitioned_parameters", "free_grad_in_param_list",
            "_widen_gradients", "_round_weights",
        },
    ),
    "reduction": (
        "deepspeed/",
        {
            "grad_handling_hook", "reduce_partition_and_remove_grads", "allreduce_gradients", "reduce_gradients",
            "overlapping_partition_gradients_reduce_epilogue", "all_gather_dp_groups",
        },
    ),
    "forward hooks": (
        "deepspeed/",
        {
            "_module_forward_pre_hook", "_module_forward_post_hook", "_pre_forward_module_hook",
            "_post_forward_module_hook", "_start_of_forward_hook", "register_output_backward_hooks",
        },
    ),
    "backward hooks": (
        "deepspeed/",
        {
            "_pre_backward_module_hook", "_post_backward_module_hook", "_alternate_post_backward_module_hook",
            "_run_before_backward_function", "_run_after_backward_function", "_run_before_forward_function",
            "_run_after_backward_hook", "_backward_prologue", "_backward_epilogue", "backward_hook",
        },
    ),
    "ZeRO-3's linear": ("deepspeed/runtime/zero/linear.py", {"forward", "backward", "zero3_linear_wrap"}),
}  # fmt: skip
REST = "the rest"


def milliseconds_by_part(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Milliseconds a step in each part, the whole and the mean step without watching; a part without any is left out.

    The hook sees each call of a Python function, and so makes parts with many calls look longer than they are.
    """
    began = time.perf_counter()
    for _ in range(steps):
        step()
    unwatched = (time.perf_counter() - began) / steps
    watch = _Watch()
    sys.setprofile(watch.see)
    try:
        for _ in range(steps):
            step()
    finally:
        sys.setprofile(None)
    found = {part: 1000 * seconds / steps for part, seconds in watch.seconds.items()}
    shown = {part: found[part] for part in (*PARTS, REST) if part in found}
    return {**shown, "whole step": sum(found.values()), "whole step, not watched": 1000 * unwatched}


def part_of(file: str, name: str) -> str | None:
    """The part that a function begins. The last that fits: the more exact ones stand below."""
    return next((part for part, (path, names) in reversed(PARTS.items()) if name in names and path in file), None)


class _Watch:
    """Adds the time between two switches to the part that was on top of the stack."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack = [REST]
        self._parts: dict[CodeType, str | None] = {}
        self._since = time.perf_counter()

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code not in self._parts:
            self._parts[code] = part_of(code.co_filename, code.co_name)
        part = self._parts[code]
        if part is None or (event == "return" and len(self._stack) == 1):
            return
        now = time.perf_counter()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now
        if event == "call":
            self._stack.append(part)
        else:
            self._stack.pop()
