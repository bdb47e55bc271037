"""Initial weights: each parameter from a generator of its own, so the partition of the model does not change them.

GPT-2's scheme (Radford et al. 2019): normal with deviation 0.02, divided by sqrt(2 * layers) for the two matrices of a
block that write into the residual stream; norms 1; biases 0.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from scaletrain.model.gpt import GPT

STD = 0.02
RESIDUAL_OUTPUTS = ("attention.output.weight", "feed_forward.down.weight")
Gather = Callable[[nn.Parameter], AbstractContextManager[bool]]


@contextmanager
def whole_parameter(parameter: nn.Parameter) -> Iterator[bool]:
    """The `Gather` of a model that is not partitioned: the parameter is all there, and this process writes it."""
    yield True


@torch.no_grad()
def init_parameters(model: GPT, seed: int, gather: Gather = whole_parameter) -> None:
    """Fills every parameter of `model` with its initial value for `seed`.

    All ranks enter `gather(parameter)` in the same order; inside it the parameter is whole, and its value says whether
    this rank writes (ZeRO-3: deepspeed.zero.GatheredParameters, whose exit hands rank 0's values to the others).
    A loop without it would fill size-0 tensors under zero.Init and silently leave the weights as they were.
    """
    for name, parameter in model.named_parameters():
        with gather(parameter) as writes:
            if writes:
                fill_parameter(name, parameter, seed, model.arch.num_layers)


def fill_parameter(name: str, parameter: Tensor, seed: int, num_layers: int) -> None:
    """Writes one parameter's initial value: drawn on the CPU in float32, so that all devices and types start alike."""
    if name.endswith("bias"):
        parameter.zero_()
    elif "norm" in name:
        parameter.fill_(1.0)
    else:
        std = STD / math.sqrt(2 * num_layers) if name.endswith(RESIDUAL_OUTPUTS) else STD
        generator = torch.Generator().manual_seed(parameter_seed(seed, name))
        parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))


def parameter_seed(seed: int, name: str) -> int:
    """A 63-bit seed of its own for each (seed, parameter name)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1
