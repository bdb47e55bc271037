"""Whether the switches for speed and memory leave the loss curve where it was.

    python benchmarks/switches.py [--steps 60] [--seeds 1,2,3] [--only compile] [--output benchmarks/results/NAME.json]

A small GPT-2 learns from Python's own sources with a vocabulary of 8,192: once plainly, and once with each switch, in
float32 and in bfloat16 (only there where the switch asks for it). float32: the largest difference of a step's loss to
the plain run of the same seed, which rounding alone may make. bfloat16: the largest difference of a validation loss to
that of the plain run of the same seed, beside what the plain runs of the seeds lie apart at the same step. Exit code 1
when a switch is beyond its bound.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import RECIPE, Sizes, overrides_for, prepare_data
from benchmarks.record import ROOT, run_program, save

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
    "compiled blocks": Switch(("train.compile=blocks",)),
    "without kernels in C++": Switch(("run.env.CXX=/bin/false",), precisions=("bf16",)),
    "4 micro-batches": Switch(("train.micro_batch_size=2",)),
    "ZeRO 0": Switch(stage=0),
    "ZeRO 2": Switch(stage=2),
    "ZeRO 3": Switch(stage=3),
    "2 ranks, ZeRO 1": Switch(ranks=2),
    "2 ranks, ZeRO 3": Switch(stage=3, ranks=2),
}


@dataclass(frozen=True)
class Curve:
    """Losses by step: of training, and of the validation split."""

    train: Mapping[int, float]
    validation: Mapping[int, float]

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
    train = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return Curve(train, {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line})


def measure(data: Path, args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    seeds = list(map(int, args.seeds.split(",")))
    rows = []
    for precision in PRECISIONS:
        used = seeds[:1] if precision == "fp32" else seeds
        plain = [curve(data, args, PLAIN, precision, seed) for seed in used]
        bound = BOUND_FP32 if precision == "fp32" else apart(plain)
        for name in names:
            switch = SWITCHES[name]
            if precision not in switch.precisions:
                continue
            split = "train" if precision == "fp32" else "validation"
            found = [curve(data, args, switch, precision, seed) for seed in used]
            away = max(one.away_from(base, split) for one, base in zip(found, plain, strict=True))
            rows.append({"name": f"{name}, {precision}", "difference": away, "bound": bound, "within": away <= bound})
            print(f"{name}, {precision}: {away:.2e} away, bound {bound:.2e}", flush=True)
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("", "largest difference", "bound", "within")
    for row in rows:
        table.add_row(row["name"], f"{row['difference']:.2e}", f"{row['bound']:.2e}", "yes" if row["within"] else "NO")
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
        ]
        save(args.output, "switches.py", settings, rows, formulas=formulas)
    return int(not all(row["within"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
