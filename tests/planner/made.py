"""Workloads for tests."""

from dataclasses import replace
from typing import Any

from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero

SEVEN = resolve_architecture(Model(preset="llama-7b", vocab_size=32000), 32000, 4096)


def workload(
    stage: int = 1, *, arch: Architecture = SEVEN, zero: dict[str, Any] | None = None, **more: Any
) -> Workload:
    """7 billion parameters in bf16 on 8 GPUs, buckets of 50 million, no copy for saving."""
    base = Workload(
        arch=arch,
        context=4096,
        micro_batch=1,
        accumulation=1,
        checkpointing="full",
        precision="bf16",
        zero=Zero(stage, **{"overlaps": True, "reduce_bucket": 50_000_000, **(zero or {})}),
        ranks=8,
        copies_state=False,
    )
    return replace(base, **more)
