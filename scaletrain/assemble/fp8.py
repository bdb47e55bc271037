"""Where train.fp8 can work: the library, the GPU, ZeRO and sizes, each fault in a line."""

import importlib.util

import torch

from scaletrain.config.architecture import Architecture
from scaletrain.config.schema import Precision, Train
from scaletrain.errors import ConfigError

Capability = tuple[int, int]
FIRST_WITH_FP8: Capability = (8, 9)  # Ada; Hopper is 9.0
RECOMPUTING_ALL = ("full", "offload")  # modes in which nothing of a block is kept but its input
UNIT = 16  # elements: cuBLAS's and CUTLASS's FP8 products take inner and last dimensions that are multiples of it


def capability_of(device: torch.device) -> Capability | None:
    """CUDA's compute capability; None of a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def check_fp8_place(source: str, train: Train, precision: Precision, stage: int, capability: Capability | None) -> None:
    """ConfigError where nothing multiplies in FP8, or ZeRO or the precision stand against it."""
    mode = train.activation_checkpointing
    if precision != "bf16":
        raise ConfigError(
            f"{source}: train.fp8=true with train.precision={precision}: the products are rounded from bf16 and back: "
            "set train.precision=bf16, or train.fp8=false"
        )
    if stage == 3 and mode not in RECOMPUTING_ALL:
        raise ConfigError(
            f"{source}: train.fp8=true with ZeRO stage 3 and train.activation_checkpointing={mode}: torchao keeps each "
            "gathered weight for the backward pass, so that every rank would hold the whole model: use full or "
            "offload, or stage 1 or 2"
        )
    if capability is None or capability < FIRST_WITH_FP8:
        has = "a CPU" if capability is None else f"one of {capability[0]}.{capability[1]}"
        raise ConfigError(
            f"{source}: train.fp8=true needs a GPU of compute capability 8.9 or higher (Ada, Hopper, Blackwell), this "
            f"is {has}: set train.fp8=false"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f"{source}: train.fp8=true needs torchao, which is not installed: pip install 'scaletrain[fp8]', or set "
            "train.fp8=false"
        )


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
