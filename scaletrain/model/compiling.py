"""torch.compile, applied from outside: block by block, since all blocks share one compiled code."""

import torch

from scaletrain.model.gpt import GPT
from scaletrain.model.native.attention import takes_native


def compile_blocks(model: GPT) -> None:
    """Each block is compiled at its first call; losses stay within rounding, and names of parameters as they are."""
    torch.compiler.assume_constant_result(takes_native)  # type: ignore[no-untyped-call]  # it marks it
    for block in model.blocks:
        block.compile()
