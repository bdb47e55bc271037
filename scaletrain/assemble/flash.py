"""FlashAttention 3 behind torch's own attention, where torch, the GPU and its package can."""

import torch

from scaletrain.assemble.fp8 import Capability
from scaletrain.errors import ConfigError

_HOPPER = 9


def activate_flash_attention_3(source: str, capability: Capability | None) -> None:
    """Of this process, for good: torch's dispatcher then takes it for attention and for attention over documents.

    ConfigError where it cannot (torch.nn.attention.activate_flash_attention_impl, a prototype of torch's).
    """
    asked, remedy = f"{source}: train.flash_attention=fa3", "or set train.flash_attention=torch"
    if capability is None or capability[0] != _HOPPER:
        has = "a CPU" if capability is None else f"one of {capability[0]}.{capability[1]}"
        raise ConfigError(f"{asked} needs a GPU of compute capability 9.0 (Hopper), this is {has}: use one, {remedy}")
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise ConfigError(f"{asked}: torch {torch.__version__} cannot switch to it: take a newer one, {remedy}")
    try:
        activate("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{asked} cannot be had ({reason}): install FlashAttention 3 (its module is flash_attn_interface), {remedy}"
        ) from error
