"""Bytes that a rank sends in an optimizer step, as ZeRO's collectives are given them.

Rings: an all-reduce of n bytes over k ranks sends 2 n (k - 1) / k from each, an all-gather or reduce-scatter half of
that. ZeRO's paper (Rajbhandari et al. 2020, section 7) has 2 P at stages 0 to 2 and 3 P at stage 3. DeepSpeed 0.19
sends else: stages 1 and 2 all-reduce the gradients (use_multi_rank_bucket_allreduce) and gather the weights, 3 P; stage
3 keeps gathered weights for the backward pass while they are below its limits, then 2 P.
"""

from scaletrain.planner.workload import Workload


def sent_bytes(work: Workload) -> float:
    """All of them."""
    return gradient_bytes(work) + weight_bytes(work) + sequence_bytes(work)


def gradient_bytes(work: Workload) -> float:
    """Of the reductions in and after the backward pass. Stages 2 and 3 reduce after each micro-batch."""
    stage = work.zero.stage
    times = work.accumulation if stage >= 2 else 1
    ring = 2 if stage == 0 or (stage < 3 and work.zero.reduces_by_all_reduce) else 1
    size = 0.5 if work.zero.quantizes_gradients else work.itemsize  # ZeRO++: 4 bits
    return ring * times * _others(work.ranks) * size * work.parameters


def weight_bytes(work: Workload) -> float:
    """Of the all-gathers: after the update at stages 1 and 2, in each pass at stage 3."""
    return forward_gather_bytes(work) + backward_gather_bytes(work) + updated_weight_bytes(work)


def updated_weight_bytes(work: Workload) -> float:
    """After the update, at stages 1 and 2."""
    return _others(work.ranks) * work.itemsize * work.parameters if work.zero.stage in (1, 2) else 0.0


def forward_gather_bytes(work: Workload) -> float:
    """At stage 3, from all ranks."""
    if work.zero.stage < 3:
        return 0.0
    return work.accumulation * _others(work.ranks) * _gathered_size(work) * work.parameters


def backward_gather_bytes(work: Workload) -> float:
    """At stage 3, where weights were let go meanwhile: from all ranks, with ZeRO++'s copies from those of the node."""
    if work.zero.stage < 3 or not gathers_again(work):
        return 0.0
    ranks = work.zero.copy_ranks if work.zero.copy_ranks > 1 else work.ranks
    return work.accumulation * _others(ranks) * _gathered_size(work) * work.parameters


def gathers_again(work: Workload) -> bool:
    """Whether stage 3 gathers weights for the backward pass too. A block that runs again does so right before its
    backward pass, with the weights of that."""
    return work.parameters > min(work.zero.max_live, work.zero.max_reuse)


def sequence_bytes(work: Workload) -> float:
    """Of the all-to-all exchanges of ranks that share samples (Ulysses): queries, keys and values before attention,
    its result after it; the same backward, and once more in blocks that run again."""
    arch = work.arch
    width = (2 * arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim
    passes = 3 if work.checkpointing in ("full", "offload") else 2
    blocks = passes * work.accumulation * arch.num_layers
    return blocks * _others(work.sharing) * work.tokens * width * work.itemsize


def _gathered_size(work: Workload) -> int:
    return 1 if work.zero.quantizes_weights else work.itemsize


def _others(ranks: int) -> float:
    """What of each rank's part goes to others in a ring."""
    return (ranks - 1) / ranks
