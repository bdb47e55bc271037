"""A recipe checked for a number of ranks before anything runs, without torch: a login node does it in a second."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaletrain.config.deepspeed import BatchPlan, engine_config, settle
from scaletrain.config.load import AnyRecipe, dump_recipe, load_with_deepspeed
from scaletrain.config.problems import raise_problems
from scaletrain.config.sweep import SweepRun
from scaletrain.errors import ConfigError
from scaletrain.runtime.files import write_json, write_whole


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe settled with its DeepSpeed file, and the batches that follow for the ranks."""

    recipe: AnyRecipe
    preset: dict[str, Any]
    batch: BatchPlan

    @property
    def folder(self) -> Path:
        return Path(self.recipe.run.dir)

    def inside(self, name: str) -> "CheckedRecipe":
        """The same with a run folder of this name inside of its own."""
        run = self.recipe.run.model_copy(update={"dir": str(self.folder / name)})
        return replace(self, recipe=self.recipe.model_copy(update={"run": run}))

    def freeze(self, recipe: Path, deepspeed: Path) -> None:
        """Writes both files, so that what is trained is what was checked, however long a job waits or comes back."""
        write_json(deepspeed, self.preset)
        write_whole(recipe, dump_recipe(self.recipe.model_copy(update={"deepspeed": str(deepspeed)})))


def check_recipe(path: Path, overrides: Sequence[str], deepspeed_config: str | None, ranks: int) -> CheckedRecipe:
    """ConfigError for what a launch on so many ranks would refuse, as far as it can be seen without the data."""
    loaded, preset = load_with_deepspeed(path, overrides, deepspeed_config)
    recipe = settle(loaded, preset)
    engine = engine_config(recipe, preset, ranks=ranks, precision=recipe.train.precision or "bf16")
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return CheckedRecipe(recipe, preset, BatchPlan(*(engine[size] for size in sizes)))


def check_sweep(
    path: Path, overrides: Sequence[str], deepspeed_config: str | None, ranks: int, runs: Sequence[SweepRun]
) -> list[CheckedRecipe]:
    """Each run of a sweep, in a folder of its own below the recipe's run.dir. ConfigError with a line for each that
    cannot run; those with the same fault share one."""
    found: list[CheckedRecipe] = []
    faults: dict[str, list[str]] = {}
    for run in runs:
        try:
            checked = check_recipe(path, [*overrides, *run.overrides], deepspeed_config, ranks)
        except ConfigError as error:
            faults.setdefault("; ".join(line.strip() for line in str(error).splitlines()), []).append(run.name)
        else:
            found.append(checked.inside(run.name))
    problems = [f"{_listed(names)}: {fault}" for fault, names in faults.items()]
    raise_problems("the sweep", problems)
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more runs" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
