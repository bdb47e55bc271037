"""What starts the ranks of a training program, for the commands that launch one."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.load import AnyRecipe
from scaletrain.errors import ConfigError

SCRIPT = Path("launch", "pretrain.py")
FINETUNE = Path("launch", "finetune.py")
RANKS = "{ranks}"  # in a launcher's words: their number
TORCHRUN = (sys.executable, "-m", "scaletrain.runtime.torchrun", "--standalone", f"--nproc_per_node={RANKS}")


def script_of(recipe: AnyRecipe) -> Path:
    """The program that trains such a recipe, in the repository."""
    return FINETUNE if isinstance(recipe, FinetuneRecipe) else SCRIPT


def script_in(places: Sequence[Path], script: Path = SCRIPT) -> Path | None:
    """The program of a rank, in the first of the places that has it: an installed package has none beside it."""
    return next((place / script for place in places if (place / script).is_file()), None)


def find_script(places: Sequence[Path], script: Path = SCRIPT) -> Path:
    """The program of a rank, or another file of the repository; ConfigError when no place has it."""
    if (found := script_in(places, script)) is None:
        raise ConfigError(f"{script} is not in {' or '.join(map(str, places))}: run this in a clone of the repository")
    return found


def launcher_words(template: str | None, ranks: int, least: int | None) -> list[str]:
    """The words before the script, with {ranks} where their number goes; `least`: train.min_ranks."""
    if least is not None and least > ranks:
        raise ConfigError(f"train.min_ranks={least} is more than the {ranks} ranks to start with: lower it")
    if template is None:
        return [*TORCHRUN, "--max-restarts=0"]
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ConfigError(
            f"--launch {template!r} cannot be split into words ({error}): quote it as for a shell"
        ) from None
    if not words:
        raise ConfigError("--launch is empty: give a command such as 'deepspeed --num_gpus {ranks}', or leave it out")
    if least is not None and not any(RANKS in word for word in words):
        raise ConfigError(
            f"--launch {template!r} has no {RANKS}, so train.min_ranks={least} cannot be followed: add it"
        )
    return words


def with_ranks(words: Sequence[str], ranks: int) -> list[str]:
    """A launcher's words for so many ranks."""
    return [word.replace(RANKS, str(ranks)) for word in words]
