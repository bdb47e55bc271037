"""Planned seconds of a step beside measured ones, after one run has told the machine's speed; and whether the way to
train that `scaletrain plan --search` then puts first is as fast as the best of all.

    python benchmarks/plan_speed.py [--sizes 6x384x512,4x256x256] [--ranks 2] [--rounds 2] [--output NAME.json]

The first size is trained in each of 16 ways: ZeRO 0 to 3, with activation checkpointing none, selective and full and
all samples of a step in one micro-batch, and with none in micro-batches of two; the other sizes at ZeRO 1 and 3, none
and full, and in micro-batches of one. The runs take turns in each round. The first way of the first size (ZeRO 1, none)
calibrates all plans of the round, as `scaletrain plan --calibrate RUN` does. What a search at that speed puts first, of
all stages, modes and micro-batches, is run too if it is none of the 16.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import RECIPE, prepare_data
from benchmarks.cell import Cell, Run, overrides, run_cell
from benchmarks.grid import HEAD, listed, size, steps
from benchmarks.record import in_turn, save, spread
from benchmarks.timed import step_seconds
from scaletrain.assemble.planned import workload_of
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.deepspeed import settle
from scaletrain.config.hardware import cpu
from scaletrain.config.load import load_with_deepspeed, need_pretraining
from scaletrain.config.schema import Model
from scaletrain.data.shards import open_dataset
from scaletrain.planner.calibration import WARM_UP, at_speed, speed_of
from scaletrain.planner.effort import effort_of
from scaletrain.planner.fit import Room
from scaletrain.planner.plan import Plan
from scaletrain.planner.search import search
from scaletrain.planner.time import Cluster
from scaletrain.planner.workload import Workload
from scaletrain.runtime.machine import available_memory

STAGES, MODES = (1, 0, 2, 3), ("none", "selective", "full")
NEAR = 0.25  # that a plan may be wrong


def cells_of(sizes: Sequence[tuple[int, int, int]], ranks: int, samples: int) -> dict[str, list[Cell]]:
    """By what they are for; the first of all calibrates. `samples`: that a rank reads in a step."""
    found: dict[str, list[Cell]] = {"ways": [], "sizes": []}
    for number, (layers, hidden, context) in enumerate(sizes):
        model = Model(family="gpt2", num_layers=layers, num_heads=max(1, hidden // HEAD), hidden_size=hidden)
        stages, modes, small = (STAGES, MODES, 2) if number == 0 else ((1, 3), ("none", "full"), 1)
        for stage in stages:
            for mode, micro_batch in [*((mode, samples) for mode in modes), ("none", small)]:
                label = f"gpt2 {layers}x{hidden}"
                made = Cell(label, model, context, stage, mode, "bf16", ranks, micro_batch, samples)
                found["sizes" if number else "ways"].append(made)
    return found


def workload(cell: Cell, data: Path, vocabulary: int) -> Workload:
    """As the planner takes the recipe of the cell."""
    words = overrides(cell, data, Path("run"), cell.micro_batch or 1, 2)
    loaded, preset = load_with_deepspeed(Path(RECIPE), words, None)
    recipe = settle(need_pretraining(loaded, Path(RECIPE)), preset)
    arch = resolve_architecture(recipe.model, vocabulary, cell.context)
    return workload_of(recipe, preset, arch, ranks=cell.ranks, precision=cell.precision, device="cpu")


def calibrated(work: Workload, first: Run) -> Plan:
    """A plan of the first way at the speed of its run."""
    cluster = Cluster(cpu(1.0, "calibrated"), 1, work.ranks, 0.0)
    room = Room((available_memory() or 10**12) // work.ranks, is_cpu=True)
    begun = Plan(work, cluster, room, steps=1, keep_last=1)
    speed = speed_of(effort_of(work), work.ranks, first.lines[WARM_UP:], cluster.link)
    return at_speed(begun, speed, "the first way's run")


def found_by_search(begun: Plan, first: Cell) -> Cell:
    """What a search puts first."""
    presets = {str(stage): replace(begun.work.zero, stage=stage) for stage in STAGES}
    work = search(begun, presets)[0].variant.work
    return replace(first, stage=work.zero.stage, checkpointing=work.checkpointing, micro_batch=work.micro_batch)


def rows_of(works: Mapping[str, Workload], rounds: Sequence[Mapping[str, Run]], ways: set[str]) -> list[dict[str, Any]]:
    first = next(iter(works))
    begun = [calibrated(works[first], one[first]) for one in rounds]
    rows = []
    for name, work in works.items():
        measured = [statistics.median(step_seconds(one[name])) for one in rounds]
        told = [replace(one, work=work).time.seconds for one in begun]
        ratios = [plan / run for plan, run in zip(told, measured, strict=True)]
        rows.append(
            {
                "name": name,
                "step_seconds": spread(measured),
                "planned_seconds": spread(told),
                "ratio": spread(ratios),
                "is_way": name in ways,
                "calibrates": name == first,
            }
        )
    return rows


def verdict(rows: Sequence[Mapping[str, Any]], chosen: str) -> dict[str, Any]:
    """How many plans are near, and how the way that a search puts first does among the ways."""
    told = [row for row in rows if not row["calibrates"]]
    seconds = {row["name"]: row["step_seconds"]["median"] for row in rows if row["is_way"]}
    best = min(seconds, key=lambda name: seconds[name])
    return {
        "plans": len(told),
        "within_25_percent": sum(abs(row["ratio"]["median"] - 1) <= NEAR for row in told),
        "first_of_the_search": chosen,
        "fastest": best,
        "chosen_takes_times_the_fastest": seconds[chosen] / seconds[best],
    }


def show(rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> None:
    table = Table("", "measured s", "planned s", "planned / measured", "range")
    for row in rows:
        ratio = row["ratio"]
        cells = [f"{row[name]['median']:.3f}" for name in ("step_seconds", "planned_seconds")]
        table.add_row(row["name"], *cells, f"{ratio['median']:.2f}", f"{ratio['low']:.2f} - {ratio['high']:.2f}")
    Console(width=130).print(table)
    print("\n".join(f"{name}: {value}" for name, value in told.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=listed(size), default=[(6, 384, 512), (4, 256, 256), (8, 512, 512)])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="that a rank reads in a step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=steps, default=8, help="optimizer steps of a run; the first two are left out")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    args = parser.parse_args()
    data = prepare_data()
    vocabulary = open_dataset(data).tokenizer.vocab_size
    cells = cells_of(args.sizes, args.ranks, args.samples)
    named = {cell.name: cell for group in cells.values() for cell in group}
    ways = {cell.name for cell in cells["ways"]}

    def measure(which: Mapping[str, Cell]) -> list[dict[str, Run]]:
        runs = {n: partial(run_cell, c, data, c.micro_batch or 1, args.steps, None) for n, c in which.items()}
        return in_turn(runs, args.rounds, lambda number, name, run: print(f"round {number + 1}: {name}", flush=True))

    rounds = measure(named)
    works = {name: workload(cell, data, vocabulary) for name, cell in named.items()}
    first = cells["ways"][0]
    runs_of_first = [one[first.name] for one in rounds]
    if all(run.is_whole for run in runs_of_first):
        lines = [line for run in runs_of_first for line in run.lines[WARM_UP:]]
        chosen = found_by_search(calibrated(works[first.name], Run([*runs_of_first[0].lines[:WARM_UP], *lines])), first)
        if chosen.name not in named:
            works[chosen.name] = workload(chosen, data, vocabulary)
            rounds = [one | more for one, more in zip(rounds, measure({chosen.name: chosen}), strict=True)]
        ways.add(chosen.name)
    runs_of_all = [(name, run) for one in rounds for name, run in one.items()]
    if failed := [f"{name}: {run.error or 'out of memory'}" for name, run in runs_of_all if not run.is_whole]:
        print("\n".join(failed), file=sys.stderr)
        return 1
    rows = rows_of(works, rounds, ways)
    told = verdict(rows, chosen.name)
    show(rows, told)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        settings["sizes"] = ["x".join(map(str, one)) for one in args.sizes]
        save(args.output, "plan_speed.py", settings | told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
