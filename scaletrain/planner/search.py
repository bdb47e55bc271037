"""All ways to train a recipe on a cluster that fit, the fastest first."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scaletrain.planner.fit import Room, Variant, micro_batches, with_micro_batch
from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.time import Cluster, StepTime, step_time
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero

MODES = ("none", "selective", "full")


@dataclass(frozen=True)
class Found:
    variant: Variant
    memory: Memory
    time: StepTime


def search(work: Workload, room: Room, cluster: Cluster, presets: Mapping[str, Zero]) -> list[Found]:
    """ZeRO stage and offload (`presets`, by the DeepSpeed file's path) x checkpointing x micro-batch; the fastest by
    plan first, of equally fast ones the one that needs least memory."""
    found = []
    for path, zero in presets.items():
        for mode in MODES:
            for size in micro_batches(work):
                one = replace(with_micro_batch(work, size), zero=zero, checkpointing=mode)
                memory = memory_of(one)
                if room.holds(memory):
                    overrides = (
                        f"deepspeed={path}",
                        f"train.micro_batch_size={size}",
                        f"train.activation_checkpointing={mode}",
                    )
                    found.append(Found(Variant(one, overrides), memory, step_time(one, cluster)))
    return sorted(found, key=lambda one: (-round(one.time.tokens_per_second, 3), one.memory.peak_bytes))
