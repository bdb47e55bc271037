"""launch/pretrain.py with torch's profiler around one step: which share of the device's time goes where.

    python benchmarks/profiled_step.py FILE STEP RECIPE [section.key=value ...]

FILE gets rank 0's shares of step STEP as JSON. A profiled step is slower than others: its seconds are not told.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# The first pattern that is found in an operation's or kernel's name counts. On a CPU the products inside attention are
# operations of their own and count as products.
PARTS = {
    "collectives": r"nccl|gloo:|c10d",
    "optimizer": r"adam",
    "attention": r"attention|attn|flash|fmha",
    "products": r"::(add|b|badd)*mm\b|gemm|nvjet|cutlass|linear",
}


def shares(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Operations' own times by part, as shares of their sum."""
    sums = dict.fromkeys((*PARTS, "other"), 0.0)
    for name, seconds in times:
        sums[next((part for part, pattern in PARTS.items() if re.search(pattern, name, re.I)), "other")] += seconds
    total = sum(sums.values())
    return {part: value / total for part, value in sums.items()} if total else sums


def profile_step(file: Path, number: int) -> None:
    """From now on the `number`th step of this process is profiled."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from scaletrain.engine.engine import Engine
    from scaletrain.runtime import dist

    train_step, calls = Engine.train_step, 0
    on_gpu = torch.cuda.is_available()

    def profiled(engine: Engine, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return train_step(engine, *args)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as profiler:
            result = train_step(engine, *args)
            if on_gpu:
                torch.cuda.synchronize()
        rows = profiler.key_averages()
        if on_gpu:
            times = [(row.key, row.self_device_time_total) for row in rows if row.device_type == DeviceType.CUDA]
        else:
            times = [(row.key, row.self_cpu_time_total) for row in rows]
        if dist.rank() == 0:
            file.write_text(json.dumps(shares(times)), encoding="utf-8")
        return result

    Engine.train_step = profiled  # type: ignore[method-assign]


if __name__ == "__main__":
    from scaletrain.commands.train import main
    from scaletrain.runtime.log import leave

    profile_step(Path(sys.argv[1]), int(sys.argv[2]))
    leave(main("pretrain", sys.argv[3:]))
