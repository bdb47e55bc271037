"""The memory of a rank that fine-tunes a Hugging Face model: state by its parameters, activations by a dry pass."""

from dataclasses import dataclass

from scaletrain.config.schema import OptimizerName, Precision
from scaletrain.planner.memory import Memory, Moment, Part
from scaletrain.planner.resident import FINETUNE_LIBRARIES
from scaletrain.planner.workload import ITEMSIZE, MOMENTS, MOMENTS_OF_8_BITS
from scaletrain.planner.zero import Zero

QUANTIZED = {"none": None, "8bit": 1.0, "4bit": 0.53}  # bytes a weight: NF4 with double quantization has 4.127 bits


@dataclass(frozen=True)
class FinetuneState:
    """Bytes of a rank: on its device, and in host memory."""

    weights: int
    gradients: int
    optimizer: int
    is_offloaded: bool

    @property
    def device(self) -> int:
        return self.weights + self.gradients + (0 if self.is_offloaded else self.optimizer)


def finetune_state(
    parameters: int,
    trained: int,
    *,
    zero: Zero,
    precision: Precision,
    ranks: int,
    quantize: str = "none",
    optimizer: OptimizerName = "adamw",
) -> FinetuneState:
    """`trained` of the model's `parameters`, or of an adapter on top of them, change; the others have no gradient and
    no optimizer state."""
    b = ITEMSIZE[precision]
    split = {part: ranks if zero.stage >= stage else 1 for part, stage in (("o", 1), ("g", 2), ("w", 3))}
    frozen = parameters - trained if trained <= parameters else 0
    held = QUANTIZED[quantize] or b
    moments = MOMENTS_OF_8_BITS if optimizer == "adamw_8bit" else MOMENTS  # Muon's are fewer
    masters = 4 if b < 4 or zero.stage in (1, 2) else 0
    return FinetuneState(
        weights=int(frozen * held + trained * b) // split["w"],
        gradients=b * trained // split["g"],
        optimizer=int((moments + masters) * trained) // split["o"],
        is_offloaded=zero.offloads_optimizer,
    )


def finetune_memory(
    state: FinetuneState, activations: int, logits: int, *, precision: Precision, is_cpu: bool
) -> Memory:
    """When a rank holds most: at the loss, with the gradient of its `logits` (numbers) in float32 and as the model has
    them; or, where a model is large for its batch, when the backward pass is done. On a CPU device and host are one,
    and the process holds more than it uses (resident.py)."""
    passing = activations + (4 + ITEMSIZE[precision]) * logits
    at_loss = passing > state.gradients
    parts = [
        Part("weights", state.weights),
        Part("optimizer", state.optimizer, is_host=state.is_offloaded),
        Part("activations", passing) if at_loss else Part("gradients", state.gradients),
    ]
    if is_cpu:  # batches are as long as their longest row: each leaves holes that the next one does not fit
        parts += [
            Part("libraries that load late", FINETUNE_LIBRARIES),
            Part("freed, kept by the C library", activations // 2),
        ]
    held = tuple(part for part in parts if part.bytes)
    return Memory((Moment("loss" if at_loss else "end of the backward pass", held),), is_one=is_cpu)
