"""The size of DeepSpeed's gradient buckets, by the model, where its file leaves it open."""

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
