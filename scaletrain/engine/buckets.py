"""DeepSpeed's gradient buckets: their size, by the model, where its file leaves it open, and how many."""

from typing import Any

from torch import nn

from scaletrain.config.deepspeed import bucket_elements


def with_bucket_size(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """`config` with zero_optimization.reduce_bucket_size: its own, or as many elements as `model` trains, at most
    config.deepspeed.LARGEST_BUCKET.

    DeepSpeed allocates the bucket whole, however few gradients there are, and twice with overlap_comm.
    """
    trained = sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters() if p.requires_grad)
    zero = {"reduce_bucket_size": bucket_elements(trained), **config["zero_optimization"]}
    return {**config, "zero_optimization": zero}


def without_idle_overlap(config: dict[str, Any], ranks: int) -> dict[str, Any]:
    """`config` with overlap_comm off at ZeRO 1 and 2 where one rank has nothing to send: DeepSpeed would hold a second
    bucket, and have the host wait for the device after each micro-batch (stage_1_and_2.py,
    independent_gradient_partition_epilogue)."""
    zero = config["zero_optimization"]
    if ranks > 1 or zero["stage"] not in (1, 2):
        return config
    return {**config, "zero_optimization": {**zero, "overlap_comm": False}}
