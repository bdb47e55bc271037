"""`scaletrain audit`: proves a dataset or a run whole, or shows samples of either; the options and the printing."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from pydantic import ValidationError

from scaletrain.config.load import apply_override
from scaletrain.config.problems import raise_problems, take_unknown_keys, value_problems
from scaletrain.config.schema import Recipe
from scaletrain.errors import CheckpointError, ConfigError, DataError
from scaletrain.runtime.machine import cores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaletrain.data.audit.fault import Fault
    from scaletrain.data.audit.order import SourceUse
    from scaletrain.data.shards import Split
    from scaletrain.data.training_data import TrainingData
    from scaletrain.engine.audit import Run, RunReport

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end


def audit(
    target: Annotated[str, typer.Argument(help="A dataset (folder, URL, another tool's token file) or a run folder")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data.KEY=VALUE",
            help="As in a recipe, such as data.context_length=512, data.cache.dir=DIR, or another data.path of a run",
        ),
    ] = None,
    show: Annotated[int | None, typer.Option(min=1, help="Decode so many samples instead")] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Decode the samples of this optimizer step of a run")] = None,
    split: Annotated[str | None, typer.Option(help="With --show: train (default) or validation")] = None,
    start: Annotated[
        int | None, typer.Option("--from", min=0, help="With --show: row of a dataset or position of a run; default 0")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines")] = False,
) -> None:
    """Hash and count a dataset again, or prove from a run's records that it read each sample once an epoch.

    Exit code 2 and a line for each fault when something is wrong.
    """
    from scaletrain.data.reader import raise_open_files

    if split not in (None, "train", "validation"):
        raise ConfigError(f"--split {split} is unknown: choose train or validation")
    for name, value in (("--split", split), ("--from", start)):
        if show is None and value is not None and step is None:
            raise ConfigError(f"{name} {value} has no effect without --show: add --show N, or remove it")
        if step is not None and value is not None:
            raise ConfigError(f"{name} {value} contradicts --step, which says what is shown: remove one of them")
    raise_open_files()
    is_run = (Path(target) / "recipe.yaml").is_file()
    if step is not None:
        samples = _samples_of_step(target, overrides or [], step, show)
        print(json.dumps(samples) if as_json else "\n\n".join(map(_drawn, samples)))
    elif show is not None:
        samples = (_samples_of_run if is_run else _samples_of_dataset)(
            target, overrides or [], cast("Split", split or "train"), start or 0, show
        )
        print(json.dumps(samples) if as_json else "\n\n".join(map(_drawn, samples)))
    elif is_run:
        _audit_run(Path(target), overrides or [], as_json)
    else:
        _audit_dataset(target, overrides or [], as_json)


def _settings(target: str, overrides: "Sequence[str]") -> Recipe:
    """A recipe that reads the dataset `target`; ConfigError with every override that is wrong."""
    raw: dict[str, Any] = {"run": {"dir": "."}, "data": {"path": target}}
    problems = [line for text in overrides for line in apply_override(raw, text)]
    problems += take_unknown_keys(raw, Recipe)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += value_problems(error, raw, Recipe)[0]
    raise_problems("audit", problems)
    return recipe


def _audit_dataset(target: str, overrides: "Sequence[str]", as_json: bool) -> None:
    from scaletrain.data.audit.dataset import audit_dataset, open_to_audit

    opened = open_to_audit(target, _settings(target, overrides).data)
    with _bar("hashing", opened.bytes, in_bytes=True) as advance:
        report = audit_dataset(opened, advance, cores())
    rate = report.bytes / 1e6 / report.seconds
    if as_json:
        print(json.dumps({"dataset": target, "fingerprint": opened.dataset.fingerprint, **_plain(report)}))
    else:
        _tell(report.faults, report.notes)
    if report.faults:
        files = len({fault.where for fault in report.faults})
        raise DataError(
            f"{target}: {_counted(len(report.faults), 'fault')} in {_counted(files, 'place')}: copy what is named "
            "again, or prepare the dataset again"
        )
    if not as_json:
        print(
            f"whole: {report.tokens:,} tokens, {report.documents:,} documents, {report.files:,} files, "
            f"{report.bytes / 1e9:.3f} GB, {report.seconds:.1f} seconds, {rate:,.0f} MB/s"
        )


def _audit_run(folder: Path, overrides: "Sequence[str]", as_json: bool) -> None:
    from scaletrain.engine.audit import open_run, prove_run

    run = open_run(folder, overrides)
    with _bar("computing", run.samples, in_bytes=False) as advance:
        report = prove_run(run, advance, cores())
    if as_json:
        launches = [{**asdict(launch), "state": launch.state.to_dict()} for launch in report.launches]
        found = {"run": str(folder), **_plain(report), "state": report.state.to_dict(), "launches": launches}
        print(json.dumps(found))
    else:
        for line in _run_lines(report):
            print(line)
        _tell(report.faults, report.notes)
    if report.faults:
        raise CheckpointError(
            f"{folder}: {_counted(len(report.faults), 'fault')}: the run did not read what its recipe and data say, or "
            "its records were changed"
        )
    if not as_json:
        print(_verdict(report))


def _run_lines(report: "RunReport") -> list[str]:
    """Launches, then what was read of each source."""
    lines = []
    for number, launch in enumerate(report.launches, start=1):
        batch = f", {launch.batch} samples a step" if launch.batch else ""
        began = f"{launch.kind} at step {launch.state.step:,}, {_counted(launch.ranks, 'rank')}{batch}"
        lines.append(f"launch {number}  {began}, saved up to step {launch.saved:,}, {launch.end}")
    return lines + [_source_line(source) for source in report.sources]


def _source_line(source: "SourceUse") -> str:
    parts = f"source {source.name}  {source.samples:,} samples of {source.rows:,} rows: "
    parts += f"{_counted(source.epochs, 'whole epoch')}, {source.samples % source.rows / source.rows:.1%} of the next"
    if not source.is_checked:
        return f"{parts}; counted only: more rows than an audit keeps bits for"
    return parts


def _verdict(report: "RunReport") -> str:
    state = report.state
    if not report.is_provable:
        return "not provable: a live source (data.source=huggingface) has no order that could be computed again"
    if not report.claims:
        return "nothing to prove: no checkpoint was written"
    unchecked = [source.name for source in report.sources if not source.is_checked]
    once = f", once an epoch but for {', '.join(unchecked)}" if unchecked else ", each row once an epoch"
    over = f" ({state.passed_over:,} samples were passed over by roll-backs)" if state.passed_over else ""
    return (
        f"proven: step {state.step:,}, {state.samples_seen:,} samples{over} as the order says{once}; "
        f"{_counted(report.proven, 'record')} of {_counted(len(report.launches), 'launch', 'launches')} agree, "
        f"{_counted(len(report.checkpoints), 'checkpoint')} on the disk"
    )


def _tell(faults: "Sequence[Fault]", notes: "Sequence[Fault]") -> None:
    for note in notes:
        print(f"note: {note}")
    for fault in faults:
        print(f"fault: {fault}")


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _plain(report: Any) -> dict[str, Any]:
    """A report for JSON: faults and notes as their lines."""
    lines = {name: [str(fault) for fault in getattr(report, name)] for name in ("faults", "notes")}
    return {**asdict(report), **lines}


def _samples_of_dataset(
    target: str, overrides: "Sequence[str]", split: "Split", start: int, count: int
) -> list[dict[str, Any]]:
    from scaletrain.data.training_data import open_training_data

    recipe = _settings(target, overrides)
    data = open_training_data(recipe.data, recipe.seed)
    return _decoded(data, split, _rows_from(data, split, start, count))


def _samples_of_run(
    target: str, overrides: "Sequence[str]", split: "Split", start: int, count: int
) -> list[dict[str, Any]]:
    from scaletrain.engine.audit import open_run

    return _samples_at(open_run(Path(target), overrides), target, split, start, count)


def _samples_at(run: "Run", target: str, split: "Split", start: int, count: int) -> list[dict[str, Any]]:
    from scaletrain.data.row_order import RowOrder

    if run.data is None:
        raise DataError(f"{target} reads a live source (data.source=huggingface): its samples cannot be shown again")
    if isinstance(run.data, RowOrder):
        raise DataError(
            f"{target} is a fine-tuning run, whose rows are shown by its recipe: scaletrain preview "
            f"{target}/recipe.yaml --from {start} --rows {count}"
        )
    if split == "validation":
        return _decoded(run.data, split, _rows_from(run.data, split, start, count))
    samples = _decoded(run.data, split, run.rows_at(start, count))
    return [{"position": start + number, **sample} for number, sample in enumerate(samples)]


def _samples_of_step(target: str, overrides: "Sequence[str]", step: int, count: int | None) -> list[dict[str, Any]]:
    from scaletrain.engine.audit import open_run

    if not (Path(target) / "recipe.yaml").is_file():
        raise ConfigError(f"--step {step} is of a run and {target} is none: give a run folder, or --from and --show")
    run = open_run(Path(target), overrides)
    *others, (start, samples) = run.samples_of(step)
    if others:
        shown = ", ".join(f"--from {first} --show {number}" for first, number in others)
        print(
            f"note: step {step} was taken {len(others) + 1} times, each on other samples; these are of the last, and "
            f"those before: {shown}",
            file=sys.stderr,
        )
    return _samples_at(run, target, "train", start, min(count or samples, samples))


def _rows_from(data: "TrainingData", split: "Split", start: int, count: int) -> list[tuple[str, int]]:
    """`count` rows from number `start` on, one source after the other; fewer at the end."""
    parts = data.train if split == "train" else data.validation
    total = sum(map(len, parts.values()))
    if start >= total:
        raise DataError(
            f"--from {start} is beyond the {total:,} rows of the {split} split of {data.name}: "
            + ("choose a lower one" if total else "choose another --split")
        )
    found, first = [], 0
    for name, rows in parts.items():
        inside = range(max(start - first, 0), min(start + count - first, len(rows)))
        found += [(name, row) for row in inside]
        first += len(rows)
    return found


def _decoded(data: "TrainingData", split: "Split", rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    from scaletrain.data.audit.samples import decode_samples

    return [asdict(sample) for sample in decode_samples(data, split, rows)]


def _drawn(sample: dict[str, Any]) -> str:
    """A sample for a terminal: a heading for each piece, its text indented."""
    place = f"position {sample['position']:,}, " if "position" in sample else ""
    lines = [f"=== {place}source {sample['source']}, row {sample['row']:,}"]
    for piece in sample["pieces"]:
        begin = f"its token {piece['document_token']:,}" if piece["document_token"] else "its beginning"
        lines.append(
            f"--- {piece['file']} token {piece['first_token']:,}: {_counted(piece['tokens'], 'token')} of document "
            f"{piece['document']:,} from {begin} on" + (", to its end" if piece["is_end"] else "")
        )
        text = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), piece["text"])
        lines += [f"    {line}" for line in text.split("\n")]
    if sample["padding"]:
        lines.append(f"--- {_counted(sample['padding'], 'token')} of padding")
    return "\n".join(lines)


@contextmanager
def _bar(what: str, total: int, *, in_bytes: bool) -> "Iterator[Callable[[int], None]]":
    """A progress bar on a terminal's standard error, nothing elsewhere; gives what is told of progress."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    counts = [DownloadColumn(), Speed()] if in_bytes else [MofNCompleteColumn()]
    with Progress(TextColumn(what), BarColumn(), *counts, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=max(1, total))
        yield lambda done: progress.update(task, advance=done)
