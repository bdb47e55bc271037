"""The same state saved by torch.distributed.checkpoint, waiting or in its own background thread."""

import time
from pathlib import Path

import torch
import torch.distributed.checkpoint as torch_checkpoint


def save(state: dict[str, torch.Tensor], folder: Path, *, background: bool) -> tuple[float, float]:
    """Seconds until training could go on, and until all is written."""
    began = time.perf_counter()
    if background:
        future = torch_checkpoint.async_save(state, checkpoint_id=str(folder))
        stall = time.perf_counter() - began
        future.result()
    else:
        torch_checkpoint.save(state, checkpoint_id=str(folder))
        stall = time.perf_counter() - began
    return stall, time.perf_counter() - began
