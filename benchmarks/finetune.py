"""What fine-tuning learns on real data: each kind of task, all weights and LoRA, at ZeRO stages 2 and 3, on 2 ranks.

    python -m benchmarks.real_data film brown-pos squad-wiki libreoffice-en-de minilm smollm2
    python benchmarks/finetune.py [--only film,pos] [--output benchmarks/results/NAME.json]

A recipe of launch/recipes is trained with the overrides of each row below, and evaluated on its held-out split. The
baseline is what one gets without training: the most frequent label, no answer found, or the model as it was.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UNTRAINED = [
    "train.max_steps=1",
    "train.max_epochs=null",
    "optim.lr=1e-12",
    "optim.warmup_steps=0",
    "adapter.kind=none",
]
# Rank of LoRA, and how much faster it learns than all weights: each has the learning rate that suits it.
FULL = ["adapter.kind=none"]
LORA = ["adapter.kind=lora", "adapter.targets=all-linear"]
QUIET = ["evaluate.every_steps=null", "checkpoint.best_metric=null", "checkpoint.every_steps=null"]


@dataclass(frozen=True)
class Case:
    """A recipe, the score that is told, and the overrides of its rows; `baseline`: `majority` of the labels, or a run
    that learns nothing."""

    recipe: str
    score: str
    baseline: str
    full: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    both: tuple[str, ...] = ()


MATRIX = [
    Case("film", "accuracy", "majority", lora=("optim.lr=2e-3",)),
    Case("pos", "accuracy", "majority", lora=("optim.lr=2e-3",)),
    Case("squad", "f1", "untrained", lora=("optim.lr=2e-3",), both=("train.max_steps=100",)),
    Case("translate", "bleu", "untrained", full=("optim.lr=2e-4",), both=("train.max_steps=40",)),
]
SHORT_NER = ("train.max_epochs=null", "train.max_steps=60")  # the recipe's 228 steps take half an hour on two cores
SINGLES = [
    Case("spam", "f1", "majority"),
    Case("film-scores", "pearson", "untrained"),
    Case("ner", "f1", "untrained", both=SHORT_NER),
    Case("ner", "f1", "untrained", both=(*SHORT_NER, "task.crf=false")),
    Case("pos", "accuracy", "majority", both=("task.crf=false",)),
    Case("chat", "loss", "untrained"),
]


def run(recipe: str, overrides: Sequence[str], ranks: int) -> dict[str, Any]:
    """The last evaluation of a run in a temporary folder, with its seconds, speed and memory."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        script = [str(ROOT / "launch" / "finetune.py"), str(ROOT / "launch" / "recipes" / f"finetune-{recipe}.yaml")]
        command = [sys.executable, *launch, *script, f"run.dir={folder}", *QUIET, "log.tensorboard=false", *overrides]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            sys.exit(f"{' '.join(command)} failed: {errors or done.stderr[-2000:]}")
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    scores = {name.removeprefix("eval_"): value for name, value in lines[-1].items() if name.startswith("eval_")}
    steps = [line for line in lines if "loss" in line]
    return {
        "scores": scores,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(steps[-1]["tokens_per_second"], 1),
        "peak_memory_mb": round(max(line["peak_memory_bytes"] for line in steps) / 1e6),
        "steps": steps[-1]["step"],
    }


def majority(recipe: str, score: str) -> float:
    """The score of one who always says the most frequent label of the validation split."""
    name = {"film": "film/validation.jsonl", "spam": "spam/validation.jsonl", "pos": "brown-pos/validation.conll"}[
        recipe
    ]
    text = (ROOT / "data" / "real" / name).read_text(encoding="utf-8").splitlines()
    if name.endswith(".jsonl"):
        labels = Counter(json.loads(line)["label"] for line in text)
    else:
        labels = Counter(line.split("\t")[-1] for line in text if line)
    share = labels.most_common(1)[0][1] / labels.total()
    return share if score == "accuracy" else share * 2 * share / (1 + share)  # weighted F1: the others' are 0


def baseline_of(case: Case) -> float:
    if case.baseline == "majority":
        return majority(case.recipe, case.score)
    return float(run(case.recipe, [*case.both, *UNTRAINED], 1)["scores"][case.score])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated recipes")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; rows that it has already are kept")
    args = parser.parse_args()
    only = set(args.only.split(",")) if args.only else None
    rows: list[dict[str, Any]] = json.loads(args.output.read_text())["rows"] if _exists(args.output) else []
    known = {json.dumps([row["recipe"], row["overrides"]]) for row in rows}
    for case in [*MATRIX, *SINGLES]:
        if only is not None and case.recipe not in only:
            continue
        variants = [(FULL, case.full), (LORA, case.lora)] if case in MATRIX else [([], ())]
        stages = (2, 3) if case in MATRIX else (2,)
        wanted = [
            [*how, *own, *case.both, f"deepspeed=ds_configs/zero{stage}.json"]
            for how, own in variants
            for stage in stages
        ]
        missing = [o for o in wanted if json.dumps([case.recipe, o]) not in known]
        if not missing:
            continue
        baseline = baseline_of(case)
        for overrides in missing:
            found = run(case.recipe, overrides, args.ranks)
            row = {"recipe": case.recipe, "score": case.score, "baseline": baseline, "overrides": overrides, **found}
            rows.append(row)
            print(f"{case.recipe:12} {' '.join(overrides)}: {case.score} {found['scores'][case.score]:.4f} "
                  f"({baseline:.4f} untrained), {found['seconds']:.0f} s", flush=True)  # fmt: skip
            if args.output is not None:
                _write(args.output, rows, args.ranks)


def _exists(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _write(path: Path, rows: list[dict[str, Any]], ranks: int) -> None:
    from benchmarks.record import surroundings  # costs torch's import, which a run does not need

    path.write_text(
        json.dumps({"ranks": ranks, "environment": surroundings("finetune.py"), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
