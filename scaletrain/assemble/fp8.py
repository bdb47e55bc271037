"""Whether train.fp8 works here: the GPU and the library, each fault in a line."""

import importlib.util

import torch

from scaletrain.errors import ConfigError

Capability = tuple[int, int]
FIRST_WITH_FP8: Capability = (8, 9)  # Ada; Hopper is 9.0


def capability_of(device: torch.device) -> Capability | None:
    """CUDA's compute capability; None of a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def check_fp8_place(source: str, capability: Capability | None) -> None:
    """ConfigError where nothing multiplies in FP8."""
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
