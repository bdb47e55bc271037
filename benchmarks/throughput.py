"""Tokens a second, MFU, memory and where a step's time goes, over a grid of models and ways to train them.

    python benchmarks/throughput.py [--sizes 6x384x512] [--presets gpt2-124m] [--stages 0,1,2,3] [--micro-batches 8,max]
        [--checkpointing none,selective,full] [--precisions bf16] [--ranks 1] [--rounds 3] [--output NAME.json]

A size is layers x hidden x context, with heads of 64. Each cell of the grid is a run of launch/pretrain.py in a process
of its own; the cells take turns in each round. `max` searches the largest micro-batch first. What does not fit into the
memory is a row that says so, any other failure a row with its error (and exit code 1 at the end). --against OLD.json
names what became slower, and exits with 1 if anything did.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import prepare_data
from benchmarks.cell import Cell, Run, run_cell
from benchmarks.largest import largest
from benchmarks.record import in_turn, save, slower
from benchmarks.timed import FORMULAS, Timed, fixed_bytes, peak_rule, row_of, step_peak
from scaletrain.assemble.settle import DTYPES, best_precision
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.data.shards import open_dataset
from scaletrain.errors import ConfigError
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.peak import measure_matrix_rate, peak_of

TRIAL_STEPS = 3  # from the second on the optimizer's moments are there
HEAD = 64


class CellError(Exception):
    """A run failed for another reason than memory."""


@dataclass(frozen=True)
class Bench:
    """What all cells share. `limit`: bytes that a run's processes may hold; None on a GPU, which says no by itself."""

    data: Path
    steps: int
    device: torch.device
    limit: int | None

    def run(self, cell: Cell, micro_batch: int) -> Timed:
        """One run of the cell, with the matrix rate of this moment."""
        dtype = DTYPES[cell.precision]
        rate = peak_of(self.device, dtype).flops or measure_matrix_rate(self.device, dtype)
        # Ranks on a CPU share the cores that the rate was measured on.
        rate *= cell.ranks if self.device.type == "cuda" else 1
        return Timed(run_cell(cell, self.data, micro_batch, self.steps, self.limit), rate)

    def largest_batch(self, cell: Cell) -> int:
        """The largest micro-batch that trains; CellError when a trial fails for another reason."""

        def peak_of_batch(batch: int) -> int | None:
            run = run_cell(cell, self.data, batch, TRIAL_STEPS, self.limit)
            if run.error is not None:
                raise CellError(run.error)
            print(f"  {cell.name}: {batch} {'does not fit' if run.out_of_memory else 'fits'}", flush=True)
            return None if run.out_of_memory else step_peak(run) * cell.ranks

        return largest(peak_of_batch, self.limit)


def grid(args: argparse.Namespace, precision: str) -> list[Cell]:
    """Every combination of what was asked for; `precision` where none was."""
    models = [(preset, Model(preset=preset, vocab_size=args.vocab), 1024) for preset in args.presets]
    sizes = args.sizes or ([] if models else [(6, 384, 512)])
    for layers, hidden, context in sizes:
        heads = max(1, hidden // HEAD)
        model = Model(family=args.family, num_layers=layers, num_heads=heads, hidden_size=hidden, vocab_size=args.vocab)
        models.append((f"{args.family} {layers}x{hidden}", model, context))
    return [
        Cell(label, model, context or own_context, stage, checkpointing, chosen or precision, ranks, batch)
        for (label, model, own_context), context, stage, checkpointing, chosen, ranks, batch in product(
            models,
            args.contexts or [None],
            args.stages,
            args.checkpointing,
            args.precisions or [None],
            args.ranks,
            args.micro_batches,
        )
    ]


def settle_batch(bench: Bench, cell: Cell, arch: Architecture) -> tuple[int, Run | None]:
    """The micro-batch of the cell; and instead of one, why there is none."""
    if bench.limit is not None and fixed_bytes(arch) > bench.limit:
        return 0, Run([], out_of_memory=True)
    if cell.micro_batch is not None:
        return cell.micro_batch, None
    try:
        batch = bench.largest_batch(cell)
    except CellError as error:
        return 0, Run([], str(error))
    return batch, None if batch else Run([], out_of_memory=True)


def contestant(bench: Bench, cell: Cell, batch: int, failed: Run | None) -> Callable[[], Timed]:
    """A turn of the cell. One that has failed fails in each round: it is not tried again."""
    known = Timed(failed, 0.0) if failed is not None else None

    def turn() -> Timed:
        nonlocal known
        found = known or bench.run(cell, batch)
        known = None if found.run.is_whole else found
        return found

    return turn


def measure(bench: Bench, cells: list[Cell], rounds: int, *, profile: bool) -> list[dict[str, Any]]:
    """A row a cell, over all rounds."""
    vocab = open_dataset(bench.data).tokenizer.vocab_size
    archs = {cell.name: resolve_architecture(cell.model, vocab, cell.context) for cell in cells}
    batches = {cell.name: settle_batch(bench, cell, archs[cell.name]) for cell in cells}
    turns = {cell.name: contestant(bench, cell, *batches[cell.name]) for cell in cells}
    found = in_turn(
        turns, rounds, lambda number, name, timed: print(f"round {number + 1}: {name}: {timed}", flush=True)
    )
    rows = []
    for cell in cells:
        batch, timed = batches[cell.name][0], [one[cell.name] for one in found]
        row = row_of(cell, batch, archs[cell.name], timed)
        if profile and all(one.run.is_whole for one in timed):
            shares = run_cell(cell, bench.data, batch, bench.steps, bench.limit, profile=True).shares
            row |= {f"profile_{part}": share for part, share in shares.items()}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="of a step: wait for data / forward / backward / update; MFU, HFU: causal (full) attention")
    for column in ("", "batch", "tokens/s", "step, 10% to 90%", "of a step", "peak", "MFU", "HFU"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        if "tokens_per_second" not in row:
            table.add_row(row["name"], "", row.get("error") or "out of memory")
            continue
        speed, step = row["tokens_per_second"], row["step_seconds"]
        parts = (row[f"share_of_{part}"] for part in ("data_wait", "forward", "backward", "optimizer"))
        table.add_row(
            row["name"],
            str(row["micro_batch"]),
            f"{speed['median']:,.0f} ({speed['low']:,.0f} to {speed['high']:,.0f})",
            f"{1000 * step['median']:,.0f} ms, {1000 * step['low']:,.0f} to {1000 * step['high']:,.0f}",
            " / ".join(f"{part:.0%}" for part in parts),
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
            *(f"{row[rate]['median']:.1%} ({row[f'{rate}_full']['median']:.1%})" for rate in ("mfu", "hfu")),
        )
    Console(width=max(160, Console().width)).print(table)  # a narrower one breaks each cell's name
    for row in rows:
        if profiled := [f"{n.removeprefix('profile_')} {v:.0%}" for n, v in row.items() if n.startswith("profile_")]:
            print(f"{row['name']}, profiled step: {', '.join(profiled)}")


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument of several values, comma-separated."""

    def read(text: str) -> list[Any]:
        return [kind(word.strip()) for word in text.split(",")]

    read.__name__ = "list"
    return read


def size(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is no size: give layers x hidden x context, such as 6x384x512")
    return int(parts[0]), int(parts[1]), int(parts[2])


def micro_batch(text: str) -> int | None:
    if text == "max":
        return None
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no micro-batch: give a number of samples, or max")
    return int(text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sizes", type=listed(size), default=[])
    made.add_argument("--presets", type=listed(str), default=[])
    made.add_argument("--family", choices=["gpt2", "llama"], default="gpt2", help="of --sizes")
    made.add_argument("--vocab", type=int, help="rows of the embedding; default: the tokenizer's 8,192")
    made.add_argument("--contexts", type=listed(int), help="default: a size's own, 1,024 for a preset")
    made.add_argument("--stages", type=listed(int), default=[1])
    made.add_argument("--checkpointing", type=listed(str), default=["none"])
    made.add_argument("--precisions", type=listed(str), help="default: bf16 where the device computes in it")
    made.add_argument("--micro-batches", type=listed(micro_batch), default=[8])
    made.add_argument("--ranks", type=listed(int), default=[1])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=12, help="optimizer steps of a run; the first two are left out")
    made.add_argument("--memory-gb", type=float, help="on a CPU, for a run; default: 0.8 of what is free")
    made.add_argument("--profile", action="store_true", help="one more run a cell, with torch's profiler on a step")
    made.add_argument("--against", type=Path, help="JSON of an earlier run: what became slower ends it with 1")
    made.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    return made


def main() -> int:
    args = parser().parse_args()
    device = device_of(World())
    limit = None
    if device.type == "cpu":
        limit = int(args.memory_gb * 1e9 if args.memory_gb else 0.8 * psutil.virtual_memory().available)
    cells = grid(args, best_precision(device))
    bench = Bench(prepare_data(), args.steps, device, limit)
    try:
        rows = measure(bench, cells, args.rounds, profile=args.profile)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(rows)
    formulas = [*FORMULAS, *sorted({peak_rule(device, cell.precision) for cell in cells})]
    print("\n".join(formulas))
    if args.output:
        settings = {"rounds": args.rounds, "steps": args.steps, "memory_limit_bytes": limit}
        save(args.output, "throughput.py", settings, rows, formulas=formulas)
    # A CPU's clock drifts with its load: what counts there is the share of the matrix rate of the same minute.
    found = slower(args.against, rows, "mfu" if device.type == "cpu" else "tokens_per_second") if args.against else []
    for line in found:
        print(line)
    return int(bool(found) or any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
