"""How long an optimizer step takes, from a roofline: arithmetic, the update's memory traffic, the network.

Arithmetic runs at a share of the device's dense peak, the update at its memory's bandwidth, collectives at a share of
the slowest link on their way. What DeepSpeed overlaps with the backward pass costs only where it is longer; on a CPU
nothing overlaps. A plan, not a promise: kernels' own times, small matrices and stragglers are in the share.
"""

from dataclasses import dataclass

from scaletrain.config.hardware import Hardware
from scaletrain.planner.communication import (
    backward_gather_bytes,
    forward_gather_bytes,
    gathers_again,
    sequence_bytes,
    updated_weight_bytes,
)
from scaletrain.planner.effort import ADAM_BYTES, Effort, effort_of, host_seconds
from scaletrain.planner.workload import Workload

# Of the dense peak, recomputation counted. On GPUs Llama 3 405B had 38% to 43% MFU (Dubey et al. 2024); on a CPU with
# AVX-512 BF16 docs/speed.md tells 75% to 86% of a large product's rate.
COMPUTE_SHARES = {"cuda": 0.45, "cpu": 0.75}
LINK_SHARE = 0.8  # of a link's rate that large collectives reach
_OFFLOAD_RATE = 25e9  # bytes/s of a rank's part between GPU and host memory: PCIe 4.0 x16, pinned
_HOST_ADAM_RATE = 20e9  # bytes/s of Adam in host memory, of a rank


@dataclass(frozen=True)
class Cluster:
    """`network`: bytes a second of one device to other nodes, of a CPU's node all its ranks together."""

    hardware: Hardware
    nodes: int
    devices_per_node: int
    network: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def link(self) -> float:
        """Bytes a second of a rank in rings over all ranks: there are as many as adapters, each of which one ring takes
        out of the node, and all pass each rank (NCCL; gloo has one)."""
        if self.nodes == 1:
            return self.hardware.link
        adapters = 1 if self.hardware.is_cpu else self.devices_per_node
        return min(self.hardware.link, self.network * adapters)

    def link_of(self, ranks: int) -> float:
        """As `link`, in rings over so many neighbours."""
        return self.hardware.link if ranks <= self.devices_per_node else self.link


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step. `exposed`: of the collectives, what nothing hides; `host`: the same of host work
    and of what offloading moves; `rest`: what is none of all."""

    forward: float
    backward: float
    update: float
    exposed: float
    tokens: int  # of all ranks
    rest: float = 0.0
    host: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.update + self.exposed + self.host + self.rest

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def step_time(work: Workload, cluster: Cluster, share: float | None = None, rest: float = 0.0) -> StepTime:
    """`share`: of the dense peak that matrix products and all around them reach, None: as assumed. `rest`: seconds of a
    step that are neither passes nor update."""
    share = COMPUTE_SHARES[work.device] if share is None else share
    effort, rate = effort_of(work), cluster.hardware.rates[work.precision] * share
    forward, backward = (flops / rate for flops in effort.passes(cluster.hardware.fp8_gain))
    backward += effort.again_bytes / cluster.hardware.bandwidth
    host = host_seconds(work)
    if work.device == "cuda":  # computes while its host works and memory is copied
        host = max(0.0, max(host, _offloaded_bytes(work) / _OFFLOAD_RATE) - forward - backward)
    tokens = work.tokens * work.accumulation * work.ranks
    exposed = _exposed(work, cluster, effort, forward, backward)
    return StepTime(forward, backward, _update(work, effort, cluster), exposed, tokens, rest, host)


def _exposed(work: Workload, cluster: Cluster, effort: Effort, forward: float, backward: float) -> float:
    """Of the collectives, what the passes do not hide: on a CPU, whose cores they take, nothing."""
    link = cluster.link * LINK_SHARE
    reducing, updating = effort.gradient_bytes / link, updated_weight_bytes(work) / link
    fetching = forward_gather_bytes(work) / link
    near = cluster.link_of(work.zero.copy_ranks) * LINK_SHARE if work.zero.copy_ranks > 1 else link
    fetching_again = backward_gather_bytes(work) / near
    sharing = sequence_bytes(work) / (cluster.link_of(work.sharing) * LINK_SHARE)
    if work.device == "cpu":
        return reducing + updating + fetching + fetching_again + sharing
    if work.zero.stage == 3:  # gathers are fetched ahead in both passes, reductions run beside the backward pass
        hidden = [(fetching, forward), (fetching_again + reducing, backward)]
        return sharing + sum(max(0.0, needed - there) for needed, there in hidden)
    beside = backward / work.accumulation if work.zero.stage < 2 else backward
    hides = work.zero.stage > 0 and work.zero.overlaps
    return sharing + updating + (max(0.0, reducing - beside) if hides else reducing)


def _offloaded_bytes(work: Workload) -> float:
    """Between a GPU and host memory in the passes of a step: blocks' inputs, there and back; a rank's part of the
    weights for each gather, and of the gradients, to which those of a further micro-batch are added on the GPU
    (stage_1_and_2.py, stage3.py)."""
    mine = work.itemsize * work.share_of(work.parameters)
    gathers = 2 if gathers_again(work) else 1
    weights = mine * gathers * work.accumulation if work.zero.offloads_parameters else 0
    times = 1 if work.zero.stage == 1 else 2 * work.accumulation - 1
    inputs = 2 * work.activations.host * work.accumulation
    return inputs + weights + (mine * times if work.zero.offloads_optimizer else 0)


def _update(work: Workload, effort: Effort, cluster: Cluster) -> float:
    """Bound by memory."""
    if effort.update_bytes:
        return effort.update_bytes / cluster.hardware.bandwidth
    return work.updated_parameters * (work.itemsize / _OFFLOAD_RATE + ADAM_BYTES / _HOST_ADAM_RATE)
