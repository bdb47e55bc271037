"""The next smaller number of ranks that a recipe can run on, with the same batches and no more memory a rank."""

from dataclasses import dataclass
from typing import Any

from scaletrain.config.deepspeed import batch_plan, engine_config
from scaletrain.config.schema import BaseRecipe
from scaletrain.errors import ConfigError


@dataclass(frozen=True)
class Fit:
    """A number of ranks, and the samples a forward pass on each."""

    ranks: int
    micro_batch: int


def fewer_ranks(recipe: BaseRecipe, preset: dict[str, Any], *, began_with: int, at_most: int) -> Fit | None:
    """The largest number of ranks from `at_most` down to train.min_ranks on which the recipe runs; None: there is none.

    `recipe` is settled with `preset` (see config.deepspeed.settle). The global batch stays the same: each rank takes
    more samples a step, in more forward passes, none larger than on the `began_with` ranks, whose memory it fitted.
    """
    least = recipe.train.min_ranks
    if least is None:
        return None
    most_samples = batch_plan(recipe, began_with).micro_batch
    for ranks in range(at_most, least - 1, -1):
        share, rest = divmod(recipe.train.global_batch_size * recipe.train.sequence_parallel, ranks)
        given = recipe.train.micro_batch_size
        sizes = [given] if given else range(min(most_samples, share), 0, -1)
        micro = next((size for size in sizes if share % size == 0), None)
        if rest == 0 and micro is not None and _runs(recipe, preset, ranks, micro):
            return Fit(ranks, micro)
    return None


def _runs(recipe: BaseRecipe, preset: dict[str, Any], ranks: int, micro_batch: int) -> bool:
    """Whether the DeepSpeed file agrees: it may fix the accumulation."""
    train = recipe.train.model_copy(update={"micro_batch_size": micro_batch})
    try:
        engine_config(recipe.model_copy(update={"train": train}), preset, ranks=ranks, precision="fp32")
    except ConfigError:
        return False
    return True
