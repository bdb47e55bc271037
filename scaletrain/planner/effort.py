"""What a rank does in an optimizer step: operations, bytes of its memory, bytes that it sends, and host work."""

from dataclasses import dataclass, replace

from scaletrain.model.count import (
    block_matmul_parameters,
    flops_per_token,
    recomputed_flops_per_token,
    recomputed_products,
)
from scaletrain.planner.communication import (
    backward_gather_bytes,
    forward_gather_bytes,
    gradient_bytes,
    sequence_bytes,
    updated_weight_bytes,
)
from scaletrain.planner.workload import Workload

ADAM_BYTES = 28  # a parameter: masters, moments and gradient read, masters and moments written
# The same with moments in 8 bits; on a CPU what bitsandbytes' torch operators took, 61 ns a parameter on two cores.
_BYTES_OF_8_BITS = {"cuda": 16, "cpu": 600}
# More at stage 0 in 16 bits, where DeepSpeed makes each gradient float32, looks at it and scales it in passes of their
# own (unfused_optimizer.py, step); the others do so in the pass of the update, or of less.
_WIDENING_BYTES = 16
# Seconds of Python and of starting operations, forward and backward: of a micro-batch, and of each of its blocks. On a
# CPU with gloo by benchmarks/plan_speed.py, where they come on top; assumed of a GPU, which computes meanwhile.
_PASS = {"cpu": 2e-3, "cuda": 1e-3}
_BLOCK = {"cpu": 0.7e-3, "cuda": 0.4e-3}
_TENSOR_OF_STAGE_3 = {"cpu": 0.9e-3, "cuda": 0.15e-3}  # more for each tensor of a block: hooks, gathers, a reduction
_TENSORS = {"gpt2": 12, "llama": 7}  # of a block


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
    # Read and written beside products: by what selective checkpointing computes again, on gradients' way and where they
    # are added up, by rounding.
    again_bytes: float = 0.0
    forward_fp8: float = 0.0
    backward_fp8: float = 0.0
    # Inside the passes of a CPU, where nothing is hidden: bytes of stage 3's gathers and of ranks that share samples,
    # seconds of host work.
    awaited_bytes: float = 0.0
    host_seconds: float = 0.0

    def passes(self, fp8_gain: float | None) -> tuple[float, float]:
        """FLOPs of both, those in FP8 counted as the fewer in the plain precision that take as long."""
        spared = 1 - 1 / (fp8_gain or 1.0)
        return self.forward_flops - spared * self.forward_fp8, self.backward_flops - spared * self.backward_fp8


def effort_of(work: Workload) -> Effort:
    tokens = work.tokens * work.accumulation
    useful = flops_per_token(work.arch, work.context) * tokens
    again = recomputed_flops_per_token(work.arch, work.context, work.checkpointing) * tokens
    is_here = not work.zero.offloads_optimizer or work.device == "cpu"
    widens = work.zero.stage == 0 and work.itemsize < 4 and not work.updates_in_blocks
    of_each = _BYTES_OF_8_BITS[work.device] if work.optimizer == "adamw_8bit" else ADAM_BYTES
    of_each += _WIDENING_BYTES if widens else 0
    update = float(of_each * work.updated_parameters) if is_here else 0.0
    is_cpu = work.device == "cpu"
    gathers = forward_gather_bytes(work) + backward_gather_bytes(work)
    products = 2 * work.arch.num_layers * block_matmul_parameters(work.arch) * tokens if work.fp8 else 0
    products_again = recomputed_products(work.arch, work.checkpointing) * tokens if work.fp8 else 0
    return Effort(
        forward_flops=useful / 3,
        backward_flops=useful * 2 / 3 + again,
        update_bytes=update,
        gradient_bytes=gradient_bytes(work),
        gathered_bytes=updated_weight_bytes(work),
        again_bytes=_again_bytes(work) + _bucketing_bytes(work) + _rounding_bytes(work) + _adding_bytes(work),
        forward_fp8=products,
        backward_fp8=2 * products + products_again,
        awaited_bytes=gathers + sequence_bytes(work) if is_cpu else 0.0,
        host_seconds=host_seconds(work) if is_cpu else 0.0,
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


def _adding_bytes(work: Workload) -> float:
    """Gradients of a further micro-batch are added to those before: two read, one written."""
    mine = work.parameters if work.zero.stage < 2 else work.share_of(work.parameters)
    return 3.0 * work.itemsize * mine * (work.accumulation - 1)


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


def host_seconds(work: Workload) -> float:
    """Of the passes of a step, beside what is computed and sent."""
    again = 1.0 if work.checkpointing == "none" else 1.3
    block = again * _BLOCK[work.device]
    if work.zero.stage == 3 and work.ranks > 1:
        gathered = 1.5 if work.checkpointing == "full" else 1.0  # a third time
        block += gathered * _TENSOR_OF_STAGE_3[work.device] * _TENSORS[work.arch.family]
    return work.accumulation * (_PASS[work.device] + work.arch.num_layers * block)
