"""How long an optimizer step takes, from a roofline: arithmetic, the update's memory traffic, the network.

Arithmetic runs at a share of the device's dense peak, the update at its memory's bandwidth, collectives at a share of
the slowest link on their way. What DeepSpeed overlaps with the backward pass costs only where it is longer; on a CPU
nothing overlaps. A plan, not a promise: kernels' own times, small matrices and stragglers are in the share.
"""

from dataclasses import dataclass, replace

from scaletrain.config.hardware import Hardware
from scaletrain.model.count import (
    block_matmul_parameters,
    flops_per_token,
    recomputed_flops_per_token,
    recomputed_products,
)
from scaletrain.planner.communication import gathers, gradient_bytes, weight_bytes
from scaletrain.planner.workload import Workload

COMPUTE_SHARE = 0.45  # of the dense peak, recomputation counted: Llama 3 405B had 38% to 43% MFU (Dubey et al. 2024)
LINK_SHARE = 0.8  # of a link's rate that large collectives reach
_ADAM_BYTES = 28  # a parameter: masters, moments and gradient read, masters and moments written
_OFFLOAD_RATE = 25e9  # bytes/s of a rank's part between GPU and host memory: PCIe 4.0 x16, pinned
_HOST_ADAM_RATE = 20e9  # bytes/s of Adam in host memory, of a rank
# Seconds that stage 3 takes for a tensor and micro-batch beside its bytes, on a CPU: hooks, gathers, a reduction. By
# benchmarks/plan_speed.py, with gloo and two ranks; a GPU computes meanwhile.
_HANDLING = 0.9e-3
_TENSORS = {"gpt2": 12, "llama": 7}  # of a block


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
class Effort:
    """What a rank does in an optimizer step, on whatever device. Backward FLOPs: recomputation too; `fp8`: those of
    them that are products in FP8. Bytes: of the update in the device's memory (0: it is elsewhere), of what a rank
    sends for the gradients, and for the weights after the update (at stage 3 nothing then)."""

    forward_flops: float
    backward_flops: float
    update_bytes: float
    gradient_bytes: float
    gathered_bytes: float
    # Read and written beside products: by what selective checkpointing computes again, on gradients' way, by rounding.
    again_bytes: float = 0.0
    forward_fp8: float = 0.0
    backward_fp8: float = 0.0
    # What stage 3 takes inside the passes of a CPU, where nothing is hidden: gathers, and seconds of its own work.
    awaited_bytes: float = 0.0
    handling_seconds: float = 0.0

    def passes(self, fp8_gain: float | None) -> tuple[float, float]:
        """FLOPs of both, those in FP8 counted as the fewer in the plain precision that take as long."""
        spared = 1 - 1 / (fp8_gain or 1.0)
        return self.forward_flops - spared * self.forward_fp8, self.backward_flops - spared * self.backward_fp8


def effort_of(work: Workload) -> Effort:
    tokens = work.tokens * work.accumulation
    useful = flops_per_token(work.arch, work.context) * tokens
    again = recomputed_flops_per_token(work.arch, work.context, work.checkpointing) * tokens
    is_here = not work.zero.offloads_optimizer or work.device == "cpu"
    update = _ADAM_BYTES * _updated(work) if is_here else 0.0
    is_gathered_within = work.zero.stage == 3 and work.device == "cpu"
    products = 2 * work.arch.num_layers * block_matmul_parameters(work.arch) * tokens if work.fp8 else 0
    products_again = recomputed_products(work.arch, work.checkpointing) * tokens if work.fp8 else 0
    return Effort(
        forward_flops=useful / 3,
        backward_flops=useful * 2 / 3 + again,
        update_bytes=update,
        gradient_bytes=gradient_bytes(work),
        gathered_bytes=weight_bytes(work) if work.zero.stage < 3 else 0.0,
        again_bytes=_again_bytes(work) + _bucketing_bytes(work) + _rounding_bytes(work),
        forward_fp8=products,
        backward_fp8=2 * products + products_again,
        awaited_bytes=weight_bytes(work) if is_gathered_within else 0.0,
        handling_seconds=_handling(work),
    )


def _again_bytes(work: Workload) -> float:
    """Elementwise operations are bound by memory: each result that is not kept is written again, and two are read."""
    if work.checkpointing != "selective":
        return 0.0
    kept = replace(work, checkpointing="none").activations.head - work.activations.head
    return 3.0 * kept * work.accumulation


def _bucketing_bytes(work: Workload) -> float:
    """ZeRO 1 and 2 copy each gradient into a bucket, divide it there and copy the rank's part out; a GPU does so beside
    the backward pass."""
    if work.zero.stage not in (1, 2) or work.ranks == 1 or work.device != "cpu":
        return 0.0
    times = work.accumulation if work.zero.stage == 2 else 1
    return times * work.itemsize * (4.0 * work.parameters + 2.0 * work.share_of(work.parameters))


def _rounding_bytes(work: Workload) -> float:
    """FP8 with a scale for each row: both factors of a product are read in bf16 and written in a byte along the
    dimension that it sums over. Of a Linear layer's three products each factor is in two."""
    if not work.fp8:
        return 0.0
    arch = work.arch
    wide = arch.ffn_hidden_size * (1 if arch.family == "gpt2" else 2)  # out of up, or gate and up
    heads = arch.head_dim * (arch.num_heads + 2 * arch.num_kv_heads)
    inputs = 2 * arch.hidden_size + arch.num_heads * arch.head_dim + arch.ffn_hidden_size
    outputs = 2 * arch.hidden_size + wide + heads
    factors = work.tokens * (inputs + outputs) + block_matmul_parameters(arch)
    return 2.0 * (work.itemsize + 1) * arch.num_layers * factors * work.accumulation


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step. `exposed`: of the collectives, what nothing hides; `rest`: what is none of all."""

    forward: float
    backward: float
    update: float
    exposed: float
    tokens: int  # of all ranks
    rest: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.update + self.exposed + self.rest

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def step_time(work: Workload, cluster: Cluster, share: float = COMPUTE_SHARE, rest: float = 0.0) -> StepTime:
    """`share`: of the dense peak that matrix products and all around them reach. `rest`: seconds of a step that are
    neither passes nor update."""
    effort, rate = effort_of(work), cluster.hardware.rates[work.precision] * share
    forward, backward = (flops / rate for flops in effort.passes(cluster.hardware.fp8_gain))
    backward += effort.again_bytes / cluster.hardware.bandwidth
    link = cluster.link * LINK_SHARE
    reducing, gathering = effort.gradient_bytes / link, weight_bytes(work) / link
    if work.device == "cpu":  # collectives take the cores that compute
        exposed = reducing + gathering
    elif work.zero.stage == 3:  # gathers are fetched ahead in both passes, reductions run beside the backward pass
        passes = gathers(work)
        hidden = [(gathering / passes, forward), (gathering - gathering / passes + reducing, backward)]
        exposed = sum(max(0.0, needed - there) for needed, there in hidden)
    else:
        beside = backward / work.accumulation if work.zero.stage < 2 else backward
        hides = work.zero.stage > 0 and work.zero.overlaps
        exposed = gathering + (max(0.0, reducing - beside) if hides else reducing)
    tokens = work.tokens * work.accumulation * work.ranks
    return StepTime(forward, backward, _update(work, effort, cluster), exposed + effort.handling_seconds, tokens, rest)


def _handling(work: Workload) -> float:
    if work.zero.stage < 3 or work.device != "cpu" or work.ranks == 1:
        return 0.0
    again = 1.5 if work.checkpointing == "full" else 1.0  # gathered a third time
    return _HANDLING * again * _TENSORS[work.arch.family] * work.arch.num_layers * work.accumulation


def _update(work: Workload, effort: Effort, cluster: Cluster) -> float:
    """Bound by memory."""
    if effort.update_bytes:
        return effort.update_bytes / cluster.hardware.bandwidth
    return _updated(work) * (2 * work.itemsize / _OFFLOAD_RATE + _ADAM_BYTES / _HOST_ADAM_RATE)


def _updated(work: Workload) -> int:
    """Parameters that a rank updates: its part, from stage 1 on."""
    return work.parameters if work.zero.stage == 0 else work.share_of(work.parameters)
