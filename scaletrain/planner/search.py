"""All ways to train a recipe on a cluster that fit, the fastest first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scaletrain.planner.fit import Variant, micro_batches, with_micro_batch
from scaletrain.planner.memory import Memory
from scaletrain.planner.plan import Plan
from scaletrain.planner.time import StepTime
from scaletrain.planner.zero import Zero

MODES = ("none", "selective", "full")


@dataclass(frozen=True)
class Found:
    variant: Variant
    memory: Memory
    time: StepTime


def search(plan: Plan, presets: Mapping[str, Zero]) -> list[Found]:
    """ZeRO stage and offload (`presets`, by the DeepSpeed file's path) x checkpointing x micro-batch; the fastest by
    plan first, of equally fast ones the one that needs least memory."""
    found = []
    for path, zero in presets.items():
        for mode in MODES:
            for size in micro_batches(plan.work):
                work = replace(with_micro_batch(plan.work, size), zero=zero, checkpointing=mode)
                tried = replace(plan, work=work)
                if work.is_allowed and tried.fits:
                    overrides = (
                        f"deepspeed={path}",
                        f"train.micro_batch_size={size}",
                        f"train.activation_checkpointing={mode}",
                    )
                    found.append(Found(Variant(work, overrides), tried.memory, tried.time))
    return sorted(found, key=lambda one: rank(one.time.seconds, one.memory.peak_bytes))


def rank(step_seconds: float, peak_bytes: int) -> tuple[int, int]:
    """Less is better. Steps within a percent are equally fast: no plan knows more."""
    return round(100 * math.log(step_seconds)), peak_bytes
