"""One rank's part of a run, in numbers: what the planner's formulas take."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scaletrain.config.architecture import Architecture
from scaletrain.config.deepspeed import bucket_elements
from scaletrain.config.fp8_rules import trains_in_fp8
from scaletrain.config.schema import OptimizerName, Precision
from scaletrain.model.activation_bytes import Activations, activations
from scaletrain.model.count import block_matmul_parameters, count_parameters
from scaletrain.planner.zero import Zero

MOMENTS = 8  # bytes of a parameter's two in float32
MOMENTS_OF_8_BITS = 2 + 8 / 256  # each 256 share two float32 scales
ITEMSIZE: dict[Precision, int] = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Workload:
    """`sharing` ranks share each sample; `micro_batch` samples a forward pass. `copies_state`: checkpoints are written
    from a copy in host memory while training goes on. `fp8`: the blocks' products are.
    `libraries`: those of resident.py that it needs beside what every run needs."""

    arch: Architecture
    context: int
    micro_batch: int
    accumulation: int
    checkpointing: str
    precision: Precision
    zero: Zero
    ranks: int
    device: Literal["cpu", "cuda"] = "cuda"
    sharing: int = 1
    optimizer: OptimizerName = "adamw"
    copies_state: bool = True
    fp8: bool = False
    libraries: tuple[str, ...] = ()

    @property
    def is_allowed(self) -> bool:
        """Whether a run does not refuse it."""
        return not self.fp8 or trains_in_fp8(self.zero.stage, self.checkpointing)

    @property
    def itemsize(self) -> int:
        """Bytes of a weight as the model computes with it, and of its gradient."""
        return ITEMSIZE[self.precision]

    @cached_property
    def parameters(self) -> int:
        return count_parameters(self.arch).total

    @property
    def reduce_bucket(self) -> int:
        """Elements of a gradient bucket."""
        said = self.zero.reduce_bucket
        return bucket_elements(self.parameters) if said is None else said

    @cached_property
    def embedding(self) -> int:
        """Elements of one vocabulary matrix."""
        return self.arch.vocab_size * self.arch.hidden_size

    @cached_property
    def largest_parameter(self) -> int:
        wide = self.arch.hidden_size * self.arch.ffn_hidden_size
        return max(self.embedding, wide)

    @property
    def updates_in_blocks(self) -> bool:
        """See engine/update.py."""
        is_unfused = self.device == "cpu" and self.zero.stage == 0 and self.itemsize < 4
        return (self._is_zero_on_cpu or is_unfused) and self.optimizer == "adamw"

    @property
    def keeps_gradients_in_place(self) -> bool:
        """Where autograd puts them, until the update: see engine/patches.py for stages 1 and 2."""
        return self.zero.stage == 0 or (self._is_zero_on_cpu and self.ranks == 1)

    @property
    def _is_zero_on_cpu(self) -> bool:
        """As in engine/patches.py."""
        return self.device == "cpu" and self.zero.stage in (1, 2) and not self.zero.offloads_optimizer

    @cached_property
    def decayed(self) -> int:
        """Parameters with weight decay: the optimizer's first group, see optim/groups.py."""
        head = 0 if self.arch.tie_embeddings else self.embedding
        return self.arch.num_layers * block_matmul_parameters(self.arch) + head

    @property
    def updated_parameters(self) -> int:
        """Those whose moments a rank holds: its part, from stage 1 on."""
        return self.parameters if self.zero.stage == 0 else self.share_of(self.parameters)

    def moments_of(self, elements: int) -> int:
        """Bytes of the optimizer's moments of so many parameters."""
        eight = self.optimizer == "adamw_8bit"
        return int(MOMENTS_OF_8_BITS * elements) if eight else self.float_moments_of(elements)

    def float_moments_of(self, elements: int) -> int:
        """The same as a checkpoint holds them, in float32: two each, of Muon's matrices (those of the layers) one."""
        matrices = self.arch.num_layers * block_matmul_parameters(self.arch) if self.optimizer == "muon" else 0
        return MOMENTS * elements - 4 * matrices * elements // self.parameters

    @property
    def largest_group(self) -> int:
        return max(self.decayed, self.parameters - self.decayed)

    @cached_property
    def of_block(self) -> int:
        """Parameters of one block."""
        non_embedding = count_parameters(self.arch).non_embedding
        norm = (2 if self.arch.family == "gpt2" else 1) * self.arch.hidden_size
        return (non_embedding - norm) // self.arch.num_layers

    @property
    def tokens(self) -> int:
        """Of one micro-batch on one rank."""
        return self.micro_batch * self.context // self.sharing

    @cached_property
    def activations(self) -> Activations:
        return activations(
            self.arch,
            self.checkpointing,
            samples=self.micro_batch,
            tokens=self.context // self.sharing,
            itemsize=self.itemsize,
            device=self.device,
        )

    def share_of(self, elements: int) -> int:
        """A rank's part of so many, where the stage splits them."""
        return -(-elements // self.ranks)
