"""How long an optimizer step takes, from a roofline: arithmetic, the update's memory traffic, the network.

Arithmetic runs at a share of the device's dense peak, the update at its memory's bandwidth, collectives at a share of
the slowest link on their way. What DeepSpeed overlaps with the backward pass costs only where it is longer. A plan, not
a promise: kernels' own times, small matrices and stragglers are in the share.
"""

from dataclasses import dataclass

from scaletrain.config.hardware import Hardware
from scaletrain.model.count import flops_per_token, recomputed_flops_per_token
from scaletrain.planner.communication import gathers, gradient_bytes, weight_bytes
from scaletrain.planner.workload import Workload

COMPUTE_SHARE = 0.45  # of the dense peak, recomputation counted: Llama 3 405B had 38% to 43% MFU (Dubey et al. 2024)
LINK_SHARE = 0.8  # of a link's rate that large collectives reach
_ADAM_BYTES = 28  # a parameter: masters, moments and gradient read, masters and moments written
_OFFLOAD_RATE = 25e9  # bytes/s of a rank's part between GPU and host memory: PCIe 4.0 x16, pinned
_HOST_ADAM_RATE = 20e9  # bytes/s of Adam in host memory, of a rank


@dataclass(frozen=True)
class Cluster:
    """`network`: bytes a second of one device to other nodes."""

    hardware: Hardware
    nodes: int
    devices_per_node: int
    network: float

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def link(self) -> float:
        """Bytes a second of a rank in a ring over all ranks: its slowest link."""
        return min(self.hardware.link, self.network) if self.nodes > 1 else self.hardware.link


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step. `exposed`: of the collectives, what nothing hides."""

    forward: float
    backward: float
    update: float
    exposed: float
    tokens: int  # of all ranks

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.update + self.exposed

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def step_time(work: Workload, cluster: Cluster, share: float = COMPUTE_SHARE) -> StepTime:
    """`share`: of the dense peak that matrix products and all around them reach."""
    rate = cluster.hardware.rates[work.precision] * share
    tokens = work.tokens * work.accumulation  # of a rank
    useful = flops_per_token(work.arch, work.context) * tokens
    again = recomputed_flops_per_token(work.arch, work.context, work.checkpointing) * tokens
    forward, backward = useful / 3 / rate, (useful * 2 / 3 + again) / rate
    link = cluster.link * LINK_SHARE
    reducing, gathering = gradient_bytes(work) / link, weight_bytes(work) / link
    if work.zero.stage == 3:  # gathers are fetched ahead in both passes, reductions run beside the backward pass
        passes = gathers(work)
        hidden = [(gathering / passes, forward), (gathering - gathering / passes + reducing, backward)]
        exposed = sum(max(0.0, needed - there) for needed, there in hidden)
    else:
        beside = backward / work.accumulation if work.zero.stage < 2 else backward
        hides = work.zero.stage > 0 and work.zero.overlaps
        exposed = gathering + (max(0.0, reducing - beside) if hides else reducing)
    return StepTime(forward, backward, _update(work, cluster), exposed, tokens * work.ranks)


def _update(work: Workload, cluster: Cluster) -> float:
    """Bound by memory: of a rank's part of the state, from stage 1 on."""
    part = work.parameters if work.zero.stage == 0 else work.share_of(work.parameters)
    if not work.zero.offloads_optimizer or work.device == "cpu":
        return part * _ADAM_BYTES / cluster.hardware.bandwidth
    return part * (2 * work.itemsize / _OFFLOAD_RATE + _ADAM_BYTES / _HOST_ADAM_RATE)
