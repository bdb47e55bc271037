"""What the planner says of memory and of bytes sent, held against runs on this machine.

    python benchmarks/plan_memory.py [--only TEXT] [--again OLD.json] [--output benchmarks/results/NAME.json]

Each case trains two steps on random tokens in new processes (rank_memory.py), writes a checkpoint from a copy and takes
one more. Memory: the most that a rank holds above what it holds with all libraries loaded; on a CPU resident, on a GPU
torch's allocator. Bytes sent: counted from the tensors of torch's collectives (traffic.py), two ranks.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rank_memory import load_libraries, run_ranks
from benchmarks.rank_steps import Steps, read_preset
from benchmarks.record import save
from benchmarks.traffic import sent
from scaletrain.planner.communication import sent_bytes
from scaletrain.planner.memory import Memory, memory_of
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import read_zero

# Layers, heads, width, vocabulary, tokens of a sample, samples: 8, 23 and 55 million parameters.
SIZES = {"small": (4, 6, 384, 2048, 128, 2), "medium": (7, 8, 512, 4096, 128, 2), "large": (8, 12, 768, 8192, 128, 2)}
MEASURED = ("measured_bytes", "measured_before_saving_bytes", "held_bytes", "built_bytes")
MODES = ("none", "full", "selective", "every_2")


def cases() -> Iterator[tuple[str, Steps, int]]:
    """Name, what is trained, ranks: each family, size and stage, the modes of checkpointing in turn."""
    number = 0
    for family in ("gpt2", "llama"):
        for size, (layers, heads, hidden, vocab, context, samples) in SIZES.items():
            for stage in range(4):
                mode, ranks = MODES[(number + number // 4) % 4], 2 if size == "medium" else 1
                steps = Steps(layers, heads, hidden, vocab, context, samples, stage, 2, family, mode)
                yield _named(size, steps, ranks)
                number += 1
    layers, heads, hidden, vocab, context, samples = SIZES["medium"]
    base = Steps(layers, heads, hidden, vocab, context, samples, 1, 2, "gpt2", "none")
    for stage in range(4):
        yield _named("medium", replace(base, stage=stage, precision="fp32"), 2)
        yield _named("medium", replace(base, stage=stage, reduce_bucket=4_000_000, samples=16), 2)
        yield _named("medium", replace(base, stage=stage, accumulation=4), 2)
        yield _named("medium", replace(base, stage=stage, optimizer="muon"), 1)


def _named(size: str, steps: Steps, ranks: int) -> tuple[str, Steps, int]:
    bucket = "" if steps.reduce_bucket is None else f", buckets of {steps.reduce_bucket / 1e6:g} M"
    more = f", {steps.accumulation} micro-batches" if steps.accumulation > 1 else ""
    more += ", Muon" if steps.optimizer == "muon" else ""
    way = f"{steps.precision}, {steps.checkpointing}{bucket}{more}"
    return f"{steps.family} {size}, ZeRO {steps.stage}, {way}, {ranks} rank{'s' if ranks > 1 else ''}", steps, ranks


def planned(steps: Steps, ranks: int) -> tuple[Workload, Memory]:
    work = Workload(
        arch=steps.architecture(),
        context=steps.context,
        micro_batch=steps.samples,
        accumulation=steps.accumulation,
        checkpointing=steps.checkpointing,
        precision=steps.precision,  # type: ignore[arg-type]
        zero=read_zero(read_preset(steps)),
        ranks=ranks,
        device="cuda" if torch.cuda.is_available() else "cpu",
        optimizer=steps.optimizer,
    )
    return work, memory_of(work)


def measured(steps: Steps, ranks: int) -> dict[str, float]:
    found = run_ranks(steps, ranks)
    row = {
        "measured_bytes": found["saved"],
        "measured_before_saving_bytes": found["trained"],
        "held_bytes": found["held"],
        "built_bytes": found["built"],
    }
    return row if ranks == 1 else row | {"sent_bytes": sent(found["whole_bytes"], ranks)}


def row_of(name: str, steps: Steps, ranks: int, found: Mapping[str, float]) -> dict[str, Any]:
    """`found`: as measured() gives it, or a row of an earlier result."""
    work, memory = planned(steps, ranks)
    row = {
        **{key: found[key] for key in MEASURED},
        "name": name,
        "parameters": work.parameters,
        "planned_bytes": memory.peak_bytes,
        "moment": memory.peak.name,
        "planned_before_saving_bytes": memory_of(replace(work, copies_state=False)).peak_bytes,
        "ratio": memory.peak_bytes / found["measured_bytes"],
    }
    if ranks > 1:
        told, counted = sent_bytes(work), found["sent_bytes"]
        row |= {"planned_sent_bytes": told, "sent_bytes": counted, "sent_ratio": told / counted}
    return row


def show(rows: list[Mapping[str, Any]]) -> None:
    table = Table("", "parameters", "planned MB", "measured MB", "ratio", "before saving", "sent: ratio", "peak at")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['planned_bytes'] / 1e6:,.0f}",
            f"{row['measured_bytes'] / 1e6:,.0f}",
            f"{row['ratio']:.3f}",
            f"{row['planned_before_saving_bytes'] / row['measured_before_saving_bytes']:.3f}",
            f"{row['sent_ratio']:.3f}" if "sent_ratio" in row else "",
            row["moment"],
        )
    Console(width=160).print(table)
    ratios = [row["ratio"] for row in rows]
    within = sum(0.95 <= ratio <= 1.1 for ratio in ratios)
    print(f"{within} of {len(rows)} within -5% and +10%; from {min(ratios):.3f} to {max(ratios):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--again", type=Path, metavar="OLD.json", help="plan anew for the runs of a result")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    old = json.loads(args.again.read_text(encoding="utf-8"))["rows"] if args.again else []
    known = {row["name"]: row for row in old}
    if not known:
        load_libraries()
    rows: list[Mapping[str, Any]] = []
    for name, steps, ranks in cases():
        if args.only in name and (not known or name in known):
            rows.append(row_of(name, steps, ranks, known[name] if known else measured(steps, ranks)))
            print(json.dumps(rows[-1]), flush=True)
    show(rows)
    if args.output:
        save(args.output, "plan_memory.py", {}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
