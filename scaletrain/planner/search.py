"""All ways to train a recipe on a cluster that fit, the fastest first."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from scaletrain.planner.fit import Variant, micro_batches, with_micro_batch
from scaletrain.planner.memory import Memory
from scaletrain.planner.plan import Plan
from scaletrain.planner.time import StepTime
from scaletrain.planner.zero import Zero

MODES = ("none", "selective", "full", "offload")
NEAR = 1.01
ROOMY = 0.85  # of a rank's memory


@dataclass(frozen=True)
class Found:
    variant: Variant
    memory: Memory
    time: StepTime


def search(plan: Plan, presets: Mapping[str, Zero]) -> list[Found]:
    """ZeRO stage and offload (`presets`, by the DeepSpeed file's path) x checkpointing x micro-batch; the best first,
    see ordered."""
    found = []
    for path, zero in presets.items():
        for mode in MODES if plan.work.device == "cuda" else MODES[:-1]:
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
    return ordered(found, int(ROOMY * plan.room.bytes))


def ordered(found: Iterable[Found], roomy: int) -> list[Found]:
    """The fastest first, and of those within a percent of the fastest left the plainest: no plan knows more. What takes
    more than `roomy` bytes is behind those that leave room."""
    left = sorted(found, key=lambda one: one.time.seconds)
    best: list[Found] = []
    while left:
        near = bisect_right(left, NEAR * left[0].time.seconds, key=lambda one: one.time.seconds)
        best += sorted(left[:near], key=lambda one: (one.memory.peak_bytes > roomy, *_plainness(one)))
        left = left[near:]
    return best


def _plainness(one: Found) -> tuple[bool, int, int, int, int]:
    """Less is better. What a plan knows least of comes last: offload, a higher stage, more checkpointing, many small
    micro-batches; then memory counts."""
    work, zero = one.variant.work, one.variant.work.zero
    away = zero.offloads_optimizer or zero.offloads_parameters
    return away, zero.stage, MODES.index(work.checkpointing), -work.micro_batch, one.memory.peak_bytes
