"""Which recipes can train in FP8, each fault in a line."""

from scaletrain.config.architecture import Architecture
from scaletrain.config.schema import Precision, Train
from scaletrain.errors import ConfigError

RECOMPUTING_ALL = ("full", "offload")  # modes in which nothing of a block is kept but its input
UNIT = 16  # elements: cuBLAS's and CUTLASS's FP8 products take inner and last dimensions that are multiples of it


def check_fp8_recipe(source: str, train: Train, precision: Precision, stage: int) -> None:
    """ConfigError where the precision or ZeRO's stage stand against it."""
    mode = train.activation_checkpointing
    if precision != "bf16":
        raise ConfigError(
            f"{source}: train.fp8=true with train.precision={precision}: the products are rounded from bf16 and back: "
            "set train.precision=bf16, or train.fp8=false"
        )
    if not trains_in_fp8(stage, mode):
        raise ConfigError(
            f"{source}: train.fp8=true with ZeRO stage 3 and train.activation_checkpointing={mode}: torchao keeps each "
            "gathered weight for the backward pass, so that every rank would hold the whole model: use full or "
            "offload, or stage 1 or 2"
        )


def trains_in_fp8(stage: int, mode: str) -> bool:
    """Whether ZeRO's stage and the mode of checkpointing go with FP8."""
    return stage < 3 or mode in RECOMPUTING_ALL


def check_fp8_sizes(source: str, arch: Architecture, micro_tokens: int) -> None:
    """ConfigError with the sizes that an FP8 product does not take; `micro_tokens`: of a micro-batch on one rank."""
    sizes = {
        "model.hidden_size": arch.hidden_size,
        "model.ffn_hidden_size": arch.ffn_hidden_size,
        "(num_heads + 2 x num_kv_heads) x head size": (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim,
        "tokens of a micro-batch on one rank": micro_tokens,
    }
    if odd := [f"{name} {value}" for name, value in sizes.items() if value % UNIT]:
        raise ConfigError(
            f"{source}: train.fp8=true needs multiples of {UNIT}: {', '.join(odd)} {'is' if len(odd) == 1 else 'are'} "
            "not: change the sizes, or set train.fp8=false"
        )
