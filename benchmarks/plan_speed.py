"""Planned seconds of a step beside measured ones, after one run has told the machine's speed; and whether the way to
train that the planner takes for the fastest is as fast as the best of all.

    python benchmarks/plan_speed.py [--sizes 6x384x512,4x256x256] [--ranks 2] [--rounds 2] [--output NAME.json]

The first size is trained in each of 12 ways: ZeRO 0 to 3, with activation checkpointing none, selective and full; the
other sizes at ZeRO 1 and 3, none and full. The runs take turns in each round. The first way of the first size (ZeRO 1,
none) calibrates all plans of the round, as `scaletrain plan --calibrate RUN` does.
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
from scaletrain.planner.fit import Room
from scaletrain.planner.plan import Plan
from scaletrain.planner.search import rank
from scaletrain.planner.time import Cluster, effort_of
from scaletrain.planner.workload import Workload

STAGES, MODES = (1, 0, 2, 3), ("none", "selective", "full")
NEAR = 0.25  # that a plan may be wrong


def cells_of(sizes: Sequence[tuple[int, int, int]], ranks: int, micro_batch: int) -> dict[str, list[Cell]]:
    """By what they are for; the first of all calibrates."""
    found: dict[str, list[Cell]] = {"ways": [], "sizes": []}
    for number, (layers, hidden, context) in enumerate(sizes):
        model = Model(family="gpt2", num_layers=layers, num_heads=max(1, hidden // HEAD), hidden_size=hidden)
        for stage in STAGES if number == 0 else (1, 3):
            for mode in MODES if number == 0 else ("none", "full"):
                label = f"gpt2 {layers}x{hidden}"
                made = Cell(label, model, context, stage, mode, "bf16", ranks, micro_batch)
                found["sizes" if number else "ways"].append(made)
    return found


def workload(cell: Cell, data: Path, vocabulary: int) -> Workload:
    """As the planner takes the recipe of the cell."""
    words = overrides(cell, data, Path("run"), cell.micro_batch or 1, 2)
    loaded, preset = load_with_deepspeed(Path(RECIPE), words, None)
    recipe = settle(need_pretraining(loaded, Path(RECIPE)), preset)
    arch = resolve_architecture(recipe.model, vocabulary, cell.context)
    return workload_of(recipe, preset, arch, ranks=cell.ranks, precision=cell.precision, device="cpu")


def plans(works: Mapping[str, Workload], first: Run, ranks: int) -> dict[str, Plan]:
    """All at the speed of the first one's run."""
    cluster = Cluster(cpu(1.0, "calibrated"), 1, ranks, 0.0)
    name, work = next(iter(works.items()))
    begun = Plan(work, cluster, Room(0, is_cpu=True), steps=1, keep_last=1)
    speed = speed_of(effort_of(work), ranks, first.lines[WARM_UP:], cluster.link)
    calibrated = at_speed(begun, speed, f"{name}'s run")
    return {name: replace(calibrated, work=work) for name, work in works.items()}


def rows_of(works: Mapping[str, Workload], rounds: Sequence[Mapping[str, Run]], ways: set[str]) -> list[dict[str, Any]]:
    first = next(iter(works))
    ranks = works[first].ranks
    planned = [plans(works, one[first], ranks) for one in rounds]
    rows = []
    for name in works:
        measured = [statistics.median(step_seconds(one[name])) for one in rounds]
        told = [one[name].time.seconds for one in planned]
        ratios = [plan / run for plan, run in zip(told, measured, strict=True)]
        rows.append(
            {
                "name": name,
                "step_seconds": spread(measured),
                "planned_seconds": spread(told),
                "ratio": spread(ratios),
                "planned_bytes": planned[0][name].memory.peak_bytes,
                "is_way": name in ways,
                "calibrates": name == first,
            }
        )
    return rows


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many plans are near, and how the way that is fastest by plan does among the ways."""
    told = [row for row in rows if not row["calibrates"]]
    ways = [row for row in rows if row["is_way"]]
    chosen = min(ways, key=lambda row: rank(row["planned_seconds"]["median"], row["planned_bytes"]))
    best = min(ways, key=lambda row: row["step_seconds"]["median"])
    return {
        "plans": len(told),
        "within_25_percent": sum(abs(row["ratio"]["median"] - 1) <= NEAR for row in told),
        "fastest_by_plan": chosen["name"],
        "fastest": best["name"],
        "chosen_takes_times_the_fastest": chosen["step_seconds"]["median"] / best["step_seconds"]["median"],
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
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=steps, default=8, help="optimizer steps of a run; the first two are left out")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    args = parser.parse_args()
    data = prepare_data()
    vocabulary = open_dataset(data).tokenizer.vocab_size
    cells = cells_of(args.sizes, args.ranks, args.micro_batch)
    named = {cell.name: cell for group in cells.values() for cell in group}
    runs = {name: partial(run_cell, cell, data, args.micro_batch, args.steps, None) for name, cell in named.items()}
    rounds = in_turn(runs, args.rounds, lambda number, name, run: print(f"round {number + 1}: {name}", flush=True))
    runs_of_all = [(name, run) for one in rounds for name, run in one.items()]
    if failed := [f"{name}: {run.error or 'out of memory'}" for name, run in runs_of_all if not run.is_whole]:
        print("\n".join(failed), file=sys.stderr)
        return 1
    works = {name: workload(cell, data, vocabulary) for name, cell in named.items()}
    rows = rows_of(works, rounds, {cell.name for cell in cells["ways"]})
    told = verdict(rows)
    show(rows, told)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        settings["sizes"] = ["x".join(map(str, one)) for one in args.sizes]
        save(args.output, "plan_speed.py", settings | told, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
