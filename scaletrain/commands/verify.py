"""`scaletrain verify`: proves on this cluster, with a user's own recipe, that a resume changes nothing."""

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaletrain.commands.launcher import RANKS, find_script, script_of
from scaletrain.commands.rehearsal import LaunchError, Rehearsal, counted
from scaletrain.config.deepspeed import batch_plan, settle
from scaletrain.config.load import SOURCE_TREE, load_with_deepspeed
from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from scaletrain.config.load import AnyRecipe
    from scaletrain.engine.comparison import Finding


def verify(
    recipe: Annotated[Path, typer.Argument(help="The recipe of the job that is to run here")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="As for training")] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="Ranks of the run, then those to resume it on; default: 2,1, or 1 with one GPU"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps before the stop, and as many after it")] = 4,
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="What starts {ranks} ranks of the script and arguments that follow it, such as "
            "'srun --ntasks={ranks} python' or 'deepspeed --num_gpus={ranks}'; default: torchrun on this node",
        ),
    ] = None,
    deepspeed_config: Annotated[
        str | None, typer.Option("--deepspeed_config", metavar="FILE", help="As for training")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="New folder for the runs, which are then not removed")] = None,
) -> None:
    """Train a few steps, stop, resume on as many and on other ranks, and compare all of it.

    The recipe's model, data, batch and DeepSpeed file; its length, logging, evaluation, checkpoint cadence and warm-up
    give way to those of a short run in a folder beside run.dir. Exit code 1 when something differs or fails.
    """
    wanted = _read_ranks(ranks)
    template = _read_template(launch)
    settled = _settled(recipe, overrides or [], deepspeed_config)
    script = find_script((SOURCE_TREE, Path.cwd()), script_of(settled))
    micro = _micro_batch(settled, wanted)
    folder = _make_folder(keep, Path(settled.run.dir))
    arguments = [str(recipe), *(overrides or []), *_short_run(steps, micro, max(wanted))]
    if deepspeed_config is not None:
        arguments.append(f"--deepspeed_config={deepspeed_config}")
    rehearsal = Rehearsal(template, [str(script), *arguments], folder, steps)
    try:
        agrees = _rehearse(rehearsal, wanted)
    except LaunchError as error:
        print(f"failed  {error}\nkept    {folder}")
        raise typer.Exit(1) from None
    if keep is None and agrees:
        shutil.rmtree(folder)
    else:
        print(f"kept    {folder}")
    print("pass" if agrees else "differs")
    if not agrees:
        raise typer.Exit(1)


def _rehearse(rehearsal: Rehearsal, wanted: Sequence[int]) -> bool:
    """Launches and compares, a line a check; whether all agree."""
    from scaletrain.engine.comparison import (
        compare_closely,
        compare_exactly,
        compare_loaded,
        compare_samples,
        read_trace,
    )

    half, end, first = rehearsal.half, 2 * rehearsal.half, wanted[0]
    rehearsal.launch("whole", first, end)
    rehearsal.launch("resumed", first, half)
    copies = {ranks: rehearsal.copy("resumed", f"on-{ranks}-ranks") for ranks in wanted[1:]}
    rehearsal.launch("resumed", first, end)
    whole, resumed = read_trace(rehearsal.folder / "whole"), read_trace(rehearsal.folder / "resumed")
    on_first = counted(first, "rank")
    repeated = _told(f"repeat  {on_first}, {_span(0, half)} trained twice", compare_exactly(whole, resumed, 0, half))
    found = [compare_loaded(resumed, resumed, half), *compare_exactly(whole, resumed, half, end)]
    agrees = _told(f"resume  {on_first}, {_span(half, end)} after a stop", found)
    for ranks, name in copies.items():
        rehearsal.launch(name, ranks, end)
        other = read_trace(rehearsal.folder / name)
        found = [
            compare_loaded(resumed, other, half),
            compare_samples(whole, other, end),
            *compare_closely(whole, other, half, end),
        ]
        agrees &= _told(f"reshard {counted(ranks, 'rank')} after {first}, {_span(half, end)}", found)
    return repeated and agrees


def _told(what: str, findings: Sequence["Finding"]) -> bool:
    print(f"{what}: {', '.join(finding.text for finding in findings)}", flush=True)
    return all(finding.agrees for finding in findings)


def _read_ranks(text: str | None) -> list[int]:
    if text is None:
        import torch

        text = "1" if torch.cuda.device_count() == 1 else "2,1"
    parts = [part.strip() for part in text.split(",")]
    wanted = [int(part) for part in parts if part.isdecimal() and int(part) > 0]
    if len(wanted) < len(parts) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"--ranks {text} is not a list of different numbers above 0: write it like 8,4")
    return wanted


def _read_template(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--launch {text!r} cannot be split into words ({error}): close its quotes") from None
    if RANKS not in text:
        raise ConfigError(f"--launch {text!r} has no {RANKS}: write it where the number of ranks belongs")
    return tuple(parts)


def _settled(recipe: Path, overrides: Sequence[str], deepspeed_config: str | None) -> "AnyRecipe":
    return settle(*load_with_deepspeed(recipe, overrides, deepspeed_config))


def _micro_batch(recipe: "AnyRecipe", wanted: Sequence[int]) -> int:
    """One for all numbers of ranks, so that fewer ranks need no more memory; ConfigError when one does not divide."""
    return gcd(*(batch_plan(recipe, ranks).micro_batch for ranks in wanted))


def _short_run(half: int, micro: int, most_ranks: int) -> list[str]:
    """What a rehearsal has its own way: the same in each launch but for the stop. The learning rate rises to its peak
    within it, so that the steps move the weights."""
    return [
        f"train.max_steps={2 * half}",
        "train.max_tokens=null",
        "train.max_hours=null",
        f"train.micro_batch_size={micro}",
        "optim.warmup_steps=null",
        f"checkpoint.every_steps={half}",
        "checkpoint.keep_last=2",
        "checkpoint.on_failure=stop",
        "checkpoint.resume=auto",
        "evaluate.every_steps=null",
        f"evaluate.max_samples={most_ranks}",
        "log.every_steps=1",
        "log.tensorboard=false",
        "log.trackers=[]",
    ]


def _make_folder(keep: Path | None, run: Path) -> Path:
    """Where the runs go: on the file system of the real run."""
    if keep is None:
        parent = run.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"verify-{run.name}-", dir=parent))
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ConfigError(f"--keep {keep} is not an empty folder: choose a new one")
    keep.mkdir(parents=True, exist_ok=True)
    return keep.absolute()


def _span(after: int, until: int) -> str:
    return f"steps {after + 1} to {until}" if until > after + 1 else f"step {until}"
