"""FP8 matrix products, applied from outside: those of the blocks' Linear layers, by torchao."""

from dataclasses import replace

from scaletrain.model.gpt import GPT

# Scales by row, rounded to powers of two, and e4m3 for gradients too: torchao's stable recipe. The other, a scale for a
# whole tensor, is as fast or faster and coarser; what it gains with FSDP, gathering weights in FP8, ZeRO does not do.
RECIPE = "rowwise"


def multiply_in_fp8(model: GPT, *, emulated: bool = False) -> None:
    """Forward and backward products of each block round their factors to 8 bits; weights, names and all else stay.

    `emulated`: the same rounding, multiplied in the precision of the weights, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(Float8LinearConfig.from_recipe_name(RECIPE), emulate=emulated)
    for block in model.blocks:
        convert_to_float8_training(block, config=config)
