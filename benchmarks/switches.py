"""Whether the switches for speed and memory leave the loss curve where it was, and what they gain.

    python benchmarks/switches.py [--steps 60] [--seeds 1,2,3] [--only compile] [--output benchmarks/results/NAME.json]

A small GPT-2 learns from Python's own sources with a vocabulary of 8,192: once plainly, and once with each switch, in
float32 and in bfloat16 (only there where the switch asks for it). float32: the largest difference of a step's loss to
the plain run of the same seed, which rounding alone may make. bfloat16: the largest difference of a validation loss to
that of the plain run of the same seed, beside what the plain runs of the seeds lie apart at the same step. Exit code 1
when a switch is beyond its bound. Step and memory are the runs' own, beside the plain run of the same seed; runs of one
seed follow each other.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import RECIPE, Sizes, overrides_for, prepare_data
from benchmarks.record import ROOT, run_program, save, spread
from benchmarks.timed import WARM_UP_STEPS

BOUND_FP32 = 1e-5
EVALUATIONS = 6
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Switch:
    """What it sets in the recipe, and how it is launched."""

    overrides: tuple[str, ...] = ()
    stage: int = 1
    ranks: int = 1
    precisions: tuple[str, ...] = PRECISIONS


PLAIN = Switch()
SWITCHES = {
    "selective checkpointing": Switch(("train.activation_checkpointing=selective",)),
    "full checkpointing": Switch(("train.activation_checkpointing=full",)),
    "checkpointing of every 2nd block": Switch(("train.activation_checkpointing=every_2",)),
    "checkpointing with offload": Switch(("train.activation_checkpointing=offload",)),
    "compiled blocks": Switch(("train.compile=blocks",)),
    "without kernels in C++": Switch(("run.env.CXX=/bin/false",), precisions=("bf16",)),
    "4 micro-batches": Switch(("train.micro_batch_size=2",)),
    "ZeRO 0": Switch(stage=0),
    "ZeRO 2": Switch(stage=2),
    "ZeRO 3": Switch(stage=3),
    "2 ranks, ZeRO 1": Switch(ranks=2),
    "2 ranks, ZeRO 3": Switch(stage=3, ranks=2),
    "2 ranks that share samples": Switch(("train.sequence_parallel=2",), ranks=2),
}


@dataclass(frozen=True)
class Curve:
    """Losses by step: of training, and of the validation split. What a step took, in the middle, and a rank held."""

    train: Mapping[int, float]
    validation: Mapping[int, float]
    step_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def away_from(self, other: "Curve", split: str) -> float:
        """The largest difference at a step."""
        mine, others = getattr(self, split), getattr(other, split)
        assert mine.keys() == others.keys(), "runs of other steps cannot be compared"
        return max(abs(mine[step] - others[step]) for step in mine)


def apart(curves: Sequence[Curve]) -> float:
    """What the validation losses of the plain runs lie apart: of all evaluations, the least."""
    evaluations = zip(*(one.validation.values() for one in curves), strict=True)
    return min(max(losses) - min(losses) for losses in evaluations)


def curve(data: Path, args: argparse.Namespace, switch: Switch, precision: str, seed: int) -> Curve:
    """The losses of one run of launch/pretrain.py."""
    sizes = Sizes(args.layers, args.hidden // 64, args.hidden, args.context, args.batch)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={switch.ranks}"]
    with tempfile.TemporaryDirectory(prefix="scaletrain-benchmark-") as folder:
        run = Path(folder) / "run"
        words = [
            *overrides_for(data, run, sizes, args.steps, switch.stage),
            f"seed={seed}",
            f"train.precision={precision}",
            "optim.lr=1e-3",
            f"evaluate.every_steps={args.steps // EVALUATIONS}",
            "evaluate.max_samples=32",
            *switch.overrides,
        ]
        script = ROOT / "launch" / "pretrain.py"
        run_program([sys.executable, *(launch if switch.ranks > 1 else []), script, RECIPE, *words])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    return Curve(
        {line["step"]: line["loss"] for line in steps},
        {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line},
        statistics.median(line["step_seconds"] for line in steps[WARM_UP_STEPS:]),
        steps[-1]["peak_memory_bytes"],
    )


def measure(data: Path, args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    seeds = list(map(int, args.seeds.split(",")))
    rows = []
    for precision in PRECISIONS:
        used = seeds[:1] if precision == "fp32" else seeds
        wanted = [name for name in names if precision in SWITCHES[name].precisions]
        turns = {"": PLAIN, **{name: SWITCHES[name] for name in wanted}}
        found = {seed: {n: curve(data, args, s, precision, seed) for n, s in turns.items()} for seed in used}
        bound = BOUND_FP32 if precision == "fp32" else apart([curves[""] for curves in found.values()])
        rows += [row_of(name, precision, [(c[name], c[""]) for c in found.values()], bound) for name in wanted]
    return rows


def row_of(name: str, precision: str, pairs: Sequence[tuple[Curve, Curve]], bound: float) -> dict[str, Any]:
    """`pairs`: the curve with the switch and the plain one, of each seed."""
    split = "train" if precision == "fp32" else "validation"
    away = max(one.away_from(plain, split) for one, plain in pairs)
    row = {
        "name": f"{name}, {precision}",
        "difference": away,
        "bound": bound,
        "within": away <= bound,
        "step_takes_times_the_plain": spread([one.step_seconds / plain.step_seconds for one, plain in pairs]),
        "rank_holds_times_the_plain": spread([one.peak_memory_bytes / plain.peak_memory_bytes for one, plain in pairs]),
    }
    print(f"{row['name']}: {away:.2e} away, bound {bound:.2e}", flush=True)
    return row


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("", "largest difference", "bound", "within", "step, times plain", "memory, times plain")
    for row in rows:
        gains = (row[name]["median"] for name in ("step_takes_times_the_plain", "rank_holds_times_the_plain"))
        told = [f"{row['difference']:.2e}", f"{row['bound']:.2e}", "yes" if row["within"] else "NO"]
        table.add_row(row["name"], *told, *(f"{gain:.2f}" for gain in gains))
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", default="1,2,3", help="of the bfloat16 runs; float32 takes the first")
    parser.add_argument("--only", help="part of a switch's name")
    for name, value in (("layers", 4), ("hidden", 256), ("context", 256), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.steps % EVALUATIONS:
        parser.error(f"--steps {args.steps} is not a multiple of {EVALUATIONS}, the number of evaluations")
    names = [name for name in SWITCHES if not args.only or args.only in name]
    if not names:
        parser.error(f"--only {args.only} is in none of: {', '.join(SWITCHES)}")
    rows = measure(prepare_data(), args, names)
    show(rows)
    if args.output:
        settings = {key: value for key, value in vars(args).items() if key not in ("output", "only")}
        formulas = [
            "float32: largest difference of a training loss to the plain run; bound 1e-5",
            "bfloat16: largest difference of a validation loss to the plain run of the seed; bound: the least that the "
            "plain runs of the seeds lie apart at an evaluation",
            "step: median of a run's steps, the first two left out, over that of the plain run; memory: the process's "
            "or the GPU's peak over that of the plain run",
        ]
        save(args.output, "switches.py", settings, rows, formulas=formulas)
    return int(not all(row["within"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
