"""torch.compile, applied from outside: block by block, since all blocks share one compiled code."""

from scaletrain.model.gpt import GPT


def compile_blocks(model: GPT) -> None:
    """Each block is compiled at its first call; losses stay within rounding, and names of parameters as they are."""
    for block in model.blocks:
        block.compile()
