"""What more ranks bring and send, and how time and memory grow with context, layers and ranks.

    python benchmarks/scaling.py [--rounds 3] [--steps 5] [--output benchmarks/results/NAME.json]
    python benchmarks/scaling.py --growth

Ranks (torchrun on this machine, random tokens, benchmarks/rank_steps.py): on a CPU ranks x threads = cores at each
count, so the machine is the same and the efficiency is tokens/s over those of one rank; on GPUs it is that over the
ranks too. weak: each rank has --samples; strong: all ranks together. Bytes that a rank sends in a step: counted from
the tensors of torch's collectives, read from the loopback interface (other programs' traffic included), and by theory
(traffic.py). One process a figure, contestants in turn.

--growth: seconds and bytes of memory a token against the context (--tokens a rank and step) and the layers, on one rank
and on two at ZeRO 1, with a line fitted to each (growth.py). Memory: resident, above what weights and optimizer take.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import growth
from benchmarks.rank_steps import ITEMSIZE, Steps, plural
from benchmarks.record import in_turn, last_line_of, save, spread
from benchmarks.traffic import sent, theory
from scaletrain.model.count import count_parameters
from scaletrain.runtime.machine import cores

Found = dict[str, Any]
FORMULAS = [
    "efficiency = tokens/s over those of one rank in the same round (on GPUs also over the ranks)",
    "sent bytes = (n - 1) / n x (2 all-reduced + all-gathered + reduce-scattered + broadcast + reduced), n ranks",
    "theory bytes = (n - 1) / n x P x (2, at stage 3: 3), P the parameters' bytes (ZeRO, Rajbhandari et al. 2020)",
]


def run(steps: Steps, ranks: int) -> Found:
    """The figures of rank_steps.py, all of its steps taken in new processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks > 1 else ["-m"]
    # torchrun says 1 where nothing is set; the ranks set their own.
    found: Found = last_line_of(
        [sys.executable, *launch, "benchmarks.rank_steps", steps.as_json()], OMP_NUM_THREADS="1"
    )
    return found


def tell(number: int, name: str, found: Found) -> None:
    print(f"round {number + 1}: {name}: {statistics.median(found['step_seconds']):.3f} s a step", flush=True)


def rank_cases(base: Steps, counts: Sequence[int], stages: Sequence[int]) -> dict[tuple[str, int, int], Steps]:
    """By kind, stage and ranks. One rank is the beginning of both kinds; counts that do not divide are left out."""
    cases = {}
    for stage in stages:
        for ranks in counts:
            cases["weak", stage, ranks] = replace(base, stage=stage)
            if ranks > 1 and base.samples % ranks == 0:
                cases["strong", stage, ranks] = replace(base, stage=stage, samples=base.samples // ranks)
    return cases


def rank_rows(cases: Mapping[tuple[str, int, int], Steps], rounds: Sequence[Mapping[str, Found]]) -> list[Found]:
    rows = []
    for (way, stage, ranks), steps in cases.items():
        parameters = count_parameters(steps.architecture()).total
        expected = theory(stage, ranks, parameters, steps.itemsize)
        mine = [one[_name(way, stage, ranks)] for one in rounds]
        alone = [one[_name("weak", stage, 1)] for one in rounds]
        devices = ranks if torch.cuda.is_available() else 1
        speeds = [steps.speed(found["step_seconds"], ranks) for found in mine]
        first = [cases["weak", stage, 1].speed(found["step_seconds"], 1) for found in alone]
        row = {
            "name": _name(way, stage, ranks),
            "series": f"{way}, ZeRO {stage}",
            "x_name": "ranks",
            "x": ranks,
            "tokens_per_second": spread(speeds),
            "efficiency": spread([speed / one / devices for speed, one in zip(speeds, first, strict=True)]),
            "sent_bytes": sent(mine[0]["whole_bytes"], ranks),
            "theory_bytes": expected,
            **{f"{kind}_bytes": size for kind, size in mine[0]["whole_bytes"].items()},  # of the whole tensors
            "step_bytes": spread([found["step_bytes"] for found in mine]),
        }
        if ranks > 1 and all(found["wire_bytes"] is not None for found in mine):
            row["wire_bytes"] = spread([found["wire_bytes"] for found in mine])
        rows.append(row)
        if ranks == 1:
            rows.append({**row, "name": _name("strong", stage, 1), "series": f"strong, ZeRO {stage}"})
    return rows


def _name(kind: str, stage: int, ranks: int) -> str:
    return f"{kind}, ZeRO {stage}, {plural(ranks)}"


def show_ranks(rows: Sequence[Found]) -> None:
    columns = ("", "tokens/s", "efficiency", "sent MB", "loopback MB", "theory MB", "sent / theory", "step MB")
    table = Table(*columns, title="ranks: MB are a rank's and step's")
    for row in rows:
        wire, expected = row.get("wire_bytes"), row["theory_bytes"]
        table.add_row(
            row["name"],
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{row['efficiency']['median']:.2f} ({row['efficiency']['low']:.2f} - {row['efficiency']['high']:.2f})",
            f"{row['sent_bytes'] / 1e6:,.2f}",
            f"{wire['median'] / 1e6:,.2f}" if wire else "",
            f"{expected / 1e6:,.2f}",
            f"{row['sent_bytes'] / expected:.2f}" if expected else "",
            f"{row['step_bytes']['median'] / 1e6:,.0f}",
        )
    Console(width=120).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="against context, layers and ranks, in place of ranks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a process")
    parser.add_argument("--max-ranks", type=int, help="default: GPUs, or cores")
    parser.add_argument("--stages", default="0,1,2,3", help="ZeRO stages of the ranks' part")
    parser.add_argument("--layers", type=int, help="default: 6, and 4 with --growth")
    parser.add_argument("--heads", type=int, help="default: 6, and 4 with --growth")
    parser.add_argument("--hidden", type=int, help="default: 384, and 256 with --growth")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--samples", type=int, default=8, help="a step: each rank's (weak) or all ranks' (strong)")
    parser.add_argument("--tokens", type=int, default=8192, help="a rank and step, with --growth")
    parser.add_argument("--precision", choices=ITEMSIZE, default="bf16")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    layers, heads, hidden = (args.layers or 4, args.heads or 4, args.hidden or 256) if args.growth else (
        args.layers or 6, args.heads or 6, args.hidden or 384)  # fmt: skip
    base = Steps(layers, heads, hidden, args.vocab, args.context, args.samples, 1, args.steps, precision=args.precision)
    most = args.max_ranks or torch.cuda.device_count() or cores()
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= most]
    if args.growth:
        cases, naming = growth.cases_of(base, args.tokens, counts[:2]), growth.name_of
    else:
        cases, naming = rank_cases(base, counts, [int(stage) for stage in args.stages.split(",")]), _name
    contestants = {}
    for key, steps in cases.items():
        ranks = key[1] if args.growth else key[2]
        contestants[naming(*key)] = partial(run, steps, ranks)
    rounds = in_turn(contestants, args.rounds, tell)
    more: dict[str, Any] = {}
    if args.growth:
        rows = growth.rows_of(cases, rounds)
        more["fits"] = growth.fits(rows)
        more["formulas"] = growth.show(rows, more["fits"])
    else:
        rows = rank_rows(cases, rounds)
        more["formulas"] = FORMULAS
        show_ranks(rows)
    if args.output:
        settings = {**asdict(base), "tokens": args.tokens, "rounds": args.rounds, "cores": cores()}
        save(args.output, "scaling.py", settings, rows, **more)


if __name__ == "__main__":
    main()
