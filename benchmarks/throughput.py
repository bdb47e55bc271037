"""Tokens a second, MFU, memory and where a step's time goes, over a grid of models and ways to train them.

    python benchmarks/throughput.py [--sizes 6x384x512] [--presets gpt2-124m] [--stages 0,1,2,3] [--micro-batches 8,max]
        [--checkpointing none,selective,full] [--precisions bf16] [--ranks 1] [--rounds 3] [--output NAME.json]

A size is layers x hidden x context, with heads of 64. Each cell of the grid is a run of launch/pretrain.py in a process
of its own; the cells take turns in each round. `max` searches the largest micro-batch first. What does not fit into the
memory is a row that says so, any other failure a row with its error (and exit code 1 at the end). --against OLD.json
names what became slower, and exits with 1 if anything did.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import prepare_data
from benchmarks.cell import Cell, Run, run_cell
from benchmarks.grid import grid, parser
from benchmarks.largest import largest
from benchmarks.record import in_turn, save, slower
from benchmarks.timed import FORMULAS, Timed, fixed_bytes, peak_rule, row_of, step_peak
from scaletrain.assemble.settle import DTYPES, best_precision
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.data.shards import open_dataset
from scaletrain.errors import ConfigError
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.peak import measure_matrix_rate, peak_of

TRIAL_STEPS = 3  # from the second on the optimizer's moments are there


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
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        if "tokens_per_second" not in row:
            table.add_row(row["name"], "", "failed" if "error" in row else "out of memory")
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
        if "error" in row:
            print(f"{row['name']}: {row['error']}")
        if profiled := [f"{n.removeprefix('profile_')} {v:.0%}" for n, v in row.items() if n.startswith("profile_")]:
            print(f"{row['name']}, profiled step: {', '.join(profiled)}")


def main() -> int:
    args = parser(__doc__).parse_args()
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
