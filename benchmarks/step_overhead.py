"""What a step through DeepSpeed and this project's engine costs above a bare torch loop with the same model code.

    python benchmarks/step_overhead.py [--stages 0,1,2,3] [--ranks 2] [--output benchmarks/results/NAME.json]
    python benchmarks/step_overhead.py --profile [--stages 1]

Each pair is a process of its own (overhead_pair.py): the same GPT from the same weights, the same fused AdamW groups,
clipping and micro-batches, in alternating blocks of steps. In bf16 the bare loop holds float32 copies of the weights,
as DeepSpeed does (bare_loop.py tells exactly). A pair's figures are taken within a round: the ratio of the median
steps, and their difference. With --ranks the bare loop is torch's DistributedDataParallel, and a step's tokens are
those of a rank. --profile prints the time by part of both instead, and measures nothing.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import ROOT, last_line_of, save, spread

PAIR = ROOT / "benchmarks" / "overhead_pair.py"


def figures(rounds: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """ratio: ours / bare; times in milliseconds."""
    ours, bare = ([1000 * statistics.median(one[name]) for one in rounds] for name in ("ours", "bare"))
    return {
        "ratio": spread([a / b for a, b in zip(ours, bare, strict=True)]),
        "step_ms": spread(ours),
        "bare_step_ms": spread(bare),
        "overhead_ms": spread([a - b for a, b in zip(ours, bare, strict=True)]),
    }


def run_pair(stage: int, precision: str, batch: int, args: argparse.Namespace) -> Any:
    launcher: list[str | Path] = [sys.executable]
    if args.ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    options = {"stage": stage, "precision": precision, "batch": batch}
    options |= {name: vars(args)[name] for name in ("layers", "heads", "hidden", "context", "rounds", "block")}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return last_line_of([*launcher, PAIR, *words, *(["--profile"] if args.profile else [])])


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("", "ours / bare", "range", "ours ms", "bare ms", "above it ms")
    for row in rows:
        ratio = row["ratio"]
        times = [f"{row[name]['median']:,.1f}" for name in ("step_ms", "bare_step_ms", "overhead_ms")]
        table.add_row(row["name"], f"{ratio['median']:.3f}", f"{ratio['low']:.3f} - {ratio['high']:.3f}", *times)
    Console().print(table)


def show_parts(name: str, parts: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(f"{name}, ms a step", "ours", "bare")
    for part in parts["ours"]:
        table.add_row(part, *(f"{parts[side].get(part, 0.0):,.2f}" for side in ("ours", "bare")))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="0,1,2,3")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="8,1", help="samples a rank and step")
    parser.add_argument("--ranks", type=int, default=1)
    for name, value in (("layers", 6), ("heads", 6), ("hidden", 384), ("context", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=2, help="steps before it is the other's turn")
    parser.add_argument("--profile", action="store_true", help="print the time by part; CPU only")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.profile and torch.cuda.is_available():
        parser.error("--profile watches one thread, a GPU's backward pass runs in another: set CUDA_VISIBLE_DEVICES=")
    rows = []
    for batch in map(int, args.batches.split(",")):
        for precision in args.precisions.split(","):
            for stage in map(int, args.stages.split(",")):
                name = f"ZeRO {stage}, {precision}, {batch * args.context:,} tokens"
                if args.ranks > 1:
                    name += f", {args.ranks} ranks"
                found = run_pair(stage, precision, batch, args)
                if args.profile:
                    show_parts(name, found)
                else:
                    rows.append({"name": name, **figures(found)})
                    print(f"{name}: {rows[-1]['ratio']['median']:.3f} of a bare step", flush=True)
    if rows:
        show(rows)
    if args.output and rows:
        settings = {key: value for key, value in vars(args).items() if key not in ("output", "profile")}
        save(args.output, "step_overhead.py", settings, rows)


if __name__ == "__main__":
    main()
