"""The state of a fine-tuned Hugging Face model on one rank, by its parameters; activations are not planned."""

from dataclasses import dataclass

from scaletrain.config.schema import Precision
from scaletrain.planner.workload import ITEMSIZE
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
    parameters: int, trained: int, *, zero: Zero, precision: Precision, ranks: int, quantize: str = "none"
) -> FinetuneState:
    """`trained` of the model's `parameters`, or of an adapter on top of them, change; the others have no gradient and
    no optimizer state."""
    b = ITEMSIZE[precision]
    split = {part: ranks if zero.stage >= stage else 1 for part, stage in (("o", 1), ("g", 2), ("w", 3))}
    frozen = parameters - trained if trained <= parameters else 0
    held = QUANTIZED[quantize] or b
    masters = 4 if b < 4 or zero.stage in (1, 2) else 0
    return FinetuneState(
        weights=int(frozen * held + trained * b) // split["w"],
        gradients=b * trained // split["g"],
        optimizer=(8 + masters) * trained // split["o"],
        is_offloaded=zero.offloads_optimizer,
    )
