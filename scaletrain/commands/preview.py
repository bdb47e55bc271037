"""`scaletrain preview`: what a fine-tuning recipe trains on, as the model sees it, before anything trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaletrain.commands.model_source import quiet_libraries
from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from scaletrain.assemble.finetuning import Finetuning
    from scaletrain.tasks.kind import Shown


def preview(
    recipe: Annotated[Path, typer.Argument(help="A fine-tuning recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="As for training")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show")] = 3,
    first: Annotated[int, typer.Option("--from", min=0, help="The first row to show, as training reads them")] = 0,
    split: Annotated[str, typer.Option(help="train or validation")] = "train",
) -> None:
    """Print rows as tokens: green is what something is learned from, and what is to be said stands below.

    Reads the examples and the tokenizer as a launch does, and tells what it would: faults, lengths, what is cut.
    """
    if split not in ("train", "validation"):
        raise ConfigError(f"--split {split} is unknown: choose train or validation")
    from rich.console import Console

    from scaletrain.assemble.finetuning import open_job
    from scaletrain.assemble.settle import settle_launch
    from scaletrain.config.deepspeed import settle
    from scaletrain.config.load import load_with_deepspeed, need_finetuning
    from scaletrain.runtime.world import World

    quiet_libraries()
    loaded, preset = load_with_deepspeed(recipe, overrides or [])
    settled = settle(need_finetuning(loaded, recipe), preset)
    job = open_job(settled, settle_launch(settled, preset, World()).precision)
    out = Console(highlight=False, soft_wrap=True)
    for line in [*job.describe(), *job.data.describe()]:
        out.print(line, markup=False)
    for number in _numbers(job, split, first, rows):
        held = job.data.training if split == "train" else job.data.validation
        assert held is not None
        shown = job.kind.show(held.rows[number])
        out.print(f"\n--- {split} row {number}, {len(shown.tokens)} tokens", markup=False)
        _draw(out, shown)


def _numbers(job: "Finetuning", split: str, first: int, count: int) -> list[int]:
    """Rows in the order of training; of the validation split as they stand."""
    if split == "train":
        reading = job.data.reading({}, 0)
        return [int(number) for number in reading.order.ids(first, count)]
    if job.data.validation is None:
        raise ConfigError("--split validation: nothing is held out; set data.validation or data.validation_share")
    return list(range(first, min(first + count, len(job.data.validation))))


def _draw(out: "Console", shown: "Shown") -> None:
    from rich.text import Text

    text = Text()
    for token, is_learned in shown.tokens:
        text.append(token, style="bold green" if is_learned else "dim")
    out.print(text)
    out.print(f"=> {shown.answer}", markup=False, style="green")
