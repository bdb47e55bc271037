"""Bytes that a rank sends in an optimizer step, as ZeRO's collectives are given them.

Rings: an all-reduce of n bytes over k ranks sends 2 n (k - 1) / k from each, an all-gather or reduce-scatter half of
that. ZeRO's paper (Rajbhandari et al. 2020, section 7) has 2 P at stages 0 to 2 and 3 P at stage 3. DeepSpeed 0.19
sends else: stages 1 and 2 all-reduce the gradients (use_multi_rank_bucket_allreduce) and gather the weights, 3 P; stage
3 keeps gathered weights for the backward pass while they are below its limits, then 2 P.
"""

from scaletrain.planner.workload import Workload


def sent_bytes(work: Workload) -> float:
    """Gradients and weights together."""
    return gradient_bytes(work) + weight_bytes(work)


def gradient_bytes(work: Workload) -> float:
    """Of the reductions in and after the backward pass. Stages 2 and 3 reduce after each micro-batch."""
    stage = work.zero.stage
    times = work.accumulation if stage >= 2 else 1
    ring = 2 if stage == 0 or (stage < 3 and work.zero.reduces_by_all_reduce) else 1
    return ring * times * _ring(work) * work.itemsize * work.parameters


def weight_bytes(work: Workload) -> float:
    """Of the all-gathers: after the update at stages 1 and 2, in each pass at stage 3."""
    if work.zero.stage == 0:
        return 0.0
    times = work.accumulation * gathers(work) if work.zero.stage == 3 else 1
    return times * _ring(work) * work.itemsize * work.parameters


def gathers(work: Workload) -> int:
    """Times that stage 3 gathers each weight in a micro-batch. A block that runs again does so right before its
    backward pass, with the weights of that."""
    return 1 if work.parameters <= min(work.zero.max_live, work.zero.max_reuse) else 2


def _ring(work: Workload) -> float:
    return (work.ranks - 1) / work.ranks
