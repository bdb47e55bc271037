"""What a DeepSpeed file says of ZeRO, with DeepSpeed's own defaults for what it leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaletrain.config.deepspeed import offloads_optimizer, offloads_parameters, without_auto, zero_stage


@dataclass(frozen=True)
class Zero:
    """Buckets and limits count elements, not bytes. `overlaps`: collectives run while the backward pass goes on."""

    stage: int
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    pins: bool = False  # what is offloaded lies in pinned memory
    overlaps: bool = False
    reduce_bucket: int | None = None  # None: by the model, see Workload.reduce_bucket
    max_live: int = 1_000_000_000  # gathered elements at stage 3
    max_reuse: int = 1_000_000_000
    prefetch_bucket: int = 50_000_000  # that are gathered at once
    sub_group: int = 1_000_000_000
    reduces_by_all_reduce: bool = True  # stages 1 and 2, see communication.py
    # ZeRO++ at stage 3: so many neighbours hold a copy of the weights among them; what travels in 8 and 4 bits.
    copy_ranks: int = 1
    quantizes_weights: bool = False
    quantizes_gradients: bool = False


def read_zero(preset: Mapping[str, Any]) -> Zero:
    """`preset`: checked (config/deepspeed_file.py). Defaults: deepspeed/runtime/zero/config.py, 0.19."""
    stage = zero_stage(dict(preset))
    said = without_auto(dict(preset)).get("zero_optimization", {})
    pinned = [said.get(part, {}).get("pin_memory", False) for part in ("offload_optimizer", "offload_param")]
    return Zero(
        stage=stage,
        offloads_optimizer=offloads_optimizer(dict(preset)),
        offloads_parameters=offloads_parameters(dict(preset)),
        pins=any(pinned),
        overlaps=said.get("overlap_comm", stage == 3),
        reduce_bucket=int(said["reduce_bucket_size"]) if "reduce_bucket_size" in said else None,
        max_live=int(said.get("stage3_max_live_parameters", 1_000_000_000)),
        max_reuse=int(said.get("stage3_max_reuse_distance", 1_000_000_000)),
        prefetch_bucket=int(said.get("stage3_prefetch_bucket_size", 50_000_000)),
        sub_group=int(said.get("sub_group_size", 1_000_000_000)),
        reduces_by_all_reduce=said.get("use_multi_rank_bucket_allreduce", True),
        copy_ranks=int(said.get("zero_hpz_partition_size", 1)),
        quantizes_weights=said.get("zero_quantized_weights", False),
        quantizes_gradients=said.get("zero_quantized_gradients", False),
    )
