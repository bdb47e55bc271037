"""`scaletrain verify`: proves on this cluster, with a user's own recipe, that a resume changes nothing."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaletrain.config.deepspeed import batch_plan, check_keys, load_deepspeed, settle
from scaletrain.config.load import SOURCE_TREE, load_recipe
from scaletrain.errors import ConfigError

if TYPE_CHECKING:
    from scaletrain.config.schema import Recipe
    from scaletrain.engine.comparison import Finding

SCRIPT = Path("launch/pretrain.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node={ranks}")


class LaunchError(Exception):
    """A launch that did not do what it was to do."""


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
    script = _script()
    wanted = _read_ranks(ranks)
    template = _read_template(launch)
    settled = _settled(recipe, overrides or [], deepspeed_config)
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


def _rehearse(rehearsal: "Rehearsal", wanted: Sequence[int]) -> bool:
    """Launches and compares, a line a check; whether all agree."""
    from scaletrain.engine.comparison import Finding, compare_closely, compare_exactly, compare_samples, read_trace

    half, end, first = rehearsal.half, 2 * rehearsal.half, wanted[0]
    rehearsal.launch("whole", first, end)
    rehearsal.launch("resumed", first, half)
    copies = {ranks: rehearsal.copy("resumed", f"on-{ranks}-ranks") for ranks in wanted[1:]}
    rehearsal.launch("resumed", first, end)
    whole, resumed = read_trace(rehearsal.folder / "whole"), read_trace(rehearsal.folder / "resumed")
    on_first = _counted(first, "rank")
    repeated = _told(f"repeat  {on_first}, {_span(0, half)} trained twice", compare_exactly(whole, resumed, 0, half))
    agrees = _told(f"resume  {on_first}, {_span(half, end)} after a stop", compare_exactly(whole, resumed, half, end))
    for ranks, name in copies.items():
        rehearsal.launch(name, ranks, end)
        other = read_trace(rehearsal.folder / name)
        # The program refuses to train when the digest of what it loaded is not the checkpoint's.
        digest = resumed.states[half].get("weight")
        loaded = Finding(
            digest is not None, f"state loaded as saved (weight {digest})" if digest else "no state digest"
        )
        found = [loaded, compare_samples(whole, other, end), compare_closely(whole, other, half, end)]
        agrees &= _told(f"reshard {_counted(ranks, 'rank')} after {first}, {_span(half, end)}", found)
    return repeated and agrees


def _told(what: str, findings: Sequence["Finding"]) -> bool:
    print(f"{what}: {', '.join(finding.text for finding in findings)}", flush=True)
    return all(finding.agrees for finding in findings)


@dataclass(frozen=True)
class Rehearsal:
    """A short run that is launched several times: `program` is the script and its arguments, `half` where it stops."""

    template: tuple[str, ...] | None
    program: list[str]
    folder: Path
    half: int

    def launch(self, name: str, ranks: int, until: int) -> None:
        """Trains the run `name` until a step, on so many ranks; LaunchError when that is not what happened."""
        run, is_end = self.folder / name, until == 2 * self.half
        before = (run / "checkpoints").is_dir()
        print(f"launch  {name}, {_counted(ranks, 'rank')}, to step {until}", file=sys.stderr, flush=True)
        stop = "null" if is_end else str(until)
        command = [*self._launcher(ranks), *self.program, f"run.dir={run}", f"train.stop_at_step={stop}"]
        log = self.folder / f"{name}-to-step-{until}.log"
        with log.open("wb") as file:
            try:
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            except OSError as error:
                raise LaunchError(f"{command[0]}: {error.strerror}\ncommand {shlex.join(command)}") from None
        if (wrong := self._wrong(run, ranks, until, before)) is None and is_end and code:
            wrong = f"exit code {code}"  # a launcher makes what it likes of a stop's 75
        if wrong is not None:
            last = _last_error(log.read_text(encoding="utf-8", errors="replace"))
            raise LaunchError(f"{wrong}: {last}\ncommand {shlex.join(command)}\nlog     {log}")

    def _launcher(self, ranks: int) -> list[str]:
        if self.template is None and ranks == 1:
            return [sys.executable]
        return [part.replace("{ranks}", str(ranks)) for part in self.template or TORCHRUN]

    def _wrong(self, run: Path, ranks: int, until: int, resumes: bool) -> str | None:
        """What the run's events say that should not have happened in the last launch."""
        from scaletrain.track.sinks import read_lines

        path = run / "events.jsonl"
        events: list[dict[str, Any]] = read_lines(path) if path.is_file() else []
        begun = [event for event in events if event["event"] in ("start", "resume")]
        last = events[-1] if events else {}
        if last.get("event") != ("end" if until == 2 * self.half else "stop") or last.get("step") != until:
            at = f"step {last['step']}" if begun else "its start"
            return f"training did not come to step {until}, it ended after {at}"
        if begun[-1]["ranks"] != ranks:
            return f"the launch had {_counted(begun[-1]['ranks'], 'rank')}, not {ranks}: --launch must start {{ranks}}"
        if resumes and begun[-1].get("checkpoint") != f"step-{self.half:08d}":
            return f"the launch did not resume from step {self.half}"
        return None

    def copy(self, name: str, other: str) -> str:
        """A run that stands at the checkpoint of the run `name`: the files are linked, where the file system can."""
        source, target = (self.folder / n / "checkpoints" for n in (name, other))
        shutil.copytree(source, target, copy_function=_link)
        return other


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)  # a checkpoint's files are never written again
    except OSError:
        shutil.copy2(source, target)


def _last_error(log: str) -> str:
    """The line of a launch's output that says what was wrong: ours, else the last exception's, else the last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (ours or raised or lines or ["it printed nothing"])[-1]


def _script() -> Path:
    found = next((path for path in (SOURCE_TREE / SCRIPT, SCRIPT.absolute()) if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{SCRIPT} is not here: run verify in a clone of the repository")
    return found


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
    if "{ranks}" not in text:
        raise ConfigError(f"--launch {text!r} has no {{ranks}}: write it where the number of ranks belongs")
    return tuple(parts)


def _settled(recipe: Path, overrides: Sequence[str], deepspeed_config: str | None) -> "Recipe":
    loaded = load_recipe(recipe, overrides, deepspeed_config)
    preset = load_deepspeed(Path(loaded.deepspeed))
    check_keys(preset, loaded.deepspeed)
    return settle(loaded, preset)


def _micro_batch(recipe: "Recipe", wanted: Sequence[int]) -> int:
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


def _counted(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
