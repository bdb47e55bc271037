"""Bytes that ranks send each other: what ZeRO's paper says of a step, and what the collectives of one were given."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")
# Parts of the whole tensor that each of n ranks sends, in units of (n - 1) / n: rings, and for a broadcast and a reduce
# the mean over the ranks. The whole is what goes in for a reduce-scatter, and what comes out for an all-gather.
FACTORS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "reduce": 1}
# torch's operator, the collective, and which argument is the whole tensor.
OPERATORS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
}


def theory(stage: int, ranks: int, parameters: int, itemsize: int, accumulation: int = 1) -> float:
    """Bytes that each rank sends in an optimizer step, by Rajbhandari et al. 2020 (ZeRO), section 7.

    In units of the parameters' bytes, each but for the rank's own part, (n - 1) / n. Stage 0: an all-reduce of the
    gradients, 2. Stages 1 and 2: a reduce-scatter of the gradients and an all-gather of the weights, 2. Stage 3: an
    all-gather of the weights for the forward pass, one for the backward pass, a reduce-scatter of the gradients, 3.
    Each of `accumulation` micro-batches gathers at stage 3, and reduces at stages 2 and 3, whose gradients stay split;
    the paper has one. `itemsize`: bytes of a weight and of its gradient as they travel.

    What DeepSpeed 0.19 does else: stages 1 and 2 all-reduce the gradients (use_multi_rank_bucket_allreduce), 3 in all;
    stage 3 keeps the weights from the forward to the backward pass while they are below stage3_max_live_parameters and
    stage3_max_reuse_distance, 2 in all. It pads flat buffers to multiples of some numbers a rank.
    """
    gradients = {0: 2, 1: 1, 2: accumulation, 3: accumulation}[stage]
    weights = {0: 0, 1: 1, 2: 1, 3: 2 * accumulation}[stage]
    return (gradients + weights) * (ranks - 1) / ranks * parameters * itemsize


def sent(whole: Mapping[str, int], ranks: int) -> float:
    """Bytes that each rank sends for collectives over tensors of so many bytes, see FACTORS."""
    return sum(FACTORS[name] * size for name, size in whole.items()) * (ranks - 1) / ranks


class Collectives(TorchDispatchMode):
    """Adds up the bytes of the tensors that collectives are given while it is entered, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "c10d" and name in OPERATORS:
            kind, argument = OPERATORS[name]
            self.whole[kind] += _bytes(args[argument])
        return function(*args, **(kwargs or {}))


def _bytes(tensors: Any) -> int:
    return tensors.nbytes if isinstance(tensors, torch.Tensor) else sum(map(_bytes, tensors))


def loopback_bytes() -> int | None:
    """What this machine has sent to itself since it started, all programs together; None where it does not tell."""
    return int(LOOPBACK.read_text()) if LOOPBACK.is_file() else None
