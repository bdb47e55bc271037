"""What an update costs with each optimizer: AdamW beside Muon, on the same GPT, through the engine.

    python benchmarks/optimizers.py [--stage 1] [--precision bf16] [--output benchmarks/results/NAME.json]

Both train in this process from the same weights on the same random tokens, in turn; a round is A B B A. The time of the
update is what the engine reports: clipping, the optimizer, and weights back into the model.
"""

import argparse
import os
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import Sizes
from benchmarks.overhead_pair import LR, VOCABULARY, random_batches, settled_launch
from benchmarks.record import save, spread
from scaletrain.assemble.settle import set_threads
from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import resolve_architecture
from scaletrain.engine.engine import Engine
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from scaletrain.tasks.pretrain import PretrainTask

NAMES = ("adamw", "muon")
Seconds = dict[str, list[float]]  # of each step, by part


def build_engine(name: str, sizes: Sizes, stage: int, precision: str, world: World) -> Engine:
    launch, recipe = settled_launch(sizes, stage, precision, 1, world)
    architecture = resolve_architecture(recipe.model, VOCABULARY, sizes.context)
    optim = recipe.optim.model_copy(update={"name": name})
    return Engine(PretrainTask(architecture, None, seed=1), launch.deepspeed, optim, launch.device)  # type: ignore[arg-type]


def run_steps(engine: Engine, sizes: Sizes, count: int) -> Seconds:
    found: Seconds = {"update": [], "step": []}
    batches = random_batches(sizes, 1)
    for _ in range(count):
        parts = engine.train_step(batches, LR, sizes.batch * sizes.context).part_seconds()
        found["update"].append(parts["optimizer_seconds"])
        found["step"].append(sum(parts.values()))
    return found


def run_round(engines: dict[str, Engine], sizes: Sizes, block: int) -> dict[str, dict[str, float]]:
    """Medians of each optimizer's steps, in milliseconds."""
    found: dict[str, Seconds] = {name: {"update": [], "step": []} for name in engines}
    for name in (*engines, *reversed(engines)):
        for part, seconds in run_steps(engines[name], sizes, block).items():
            found[name][part] += seconds
    return {n: {part: 1000 * statistics.median(s) for part, s in parts.items()} for n, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=range(4), default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    for name, value in (("layers", 6), ("heads", 6), ("hidden", 384), ("context", 512), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    world = read_world(os.environ)
    set_threads(world)
    dist.start(world)
    sizes = Sizes(args.layers, args.heads, args.hidden, args.context, args.batch)
    engines = {name: build_engine(name, sizes, args.stage, args.precision, world) for name in NAMES}
    run_round(engines, sizes, 1)  # warm-up
    rounds = [run_round(engines, sizes, args.block) for _ in range(args.rounds)]
    rows = [
        {"name": n, **{f"{part}_ms": spread([one[n][part] for one in rounds]) for part in ("update", "step")}}
        for n in NAMES
    ]
    table = Table("", "update ms", "range", "step ms", "range")
    for row in rows:
        cells = []
        for part in (row["update_ms"], row["step_ms"]):
            cells += [f"{part['median']:,.0f}", f"{part['low']:,.0f} - {part['high']:,.0f}"]
        table.add_row(row["name"], *cells)
    Console().print(table)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key != "output"}
        save(args.output, "optimizers.py", settings, rows)


if __name__ == "__main__":
    main()
