"""What the runs of a cell come to: a row with tokens/s, MFU, HFU, memory and the parts of a step, and its formulas."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cell import Cell, Run
from benchmarks.record import spread
from scaletrain.config.architecture import Architecture
from scaletrain.config.hardware import dense_bf16_peak
from scaletrain.config.schema import Precision
from scaletrain.model.count import count_parameters, flops_per_token, recomputed_flops_per_token

WARM_UP_STEPS = 2
STATE_BYTES = 16  # a parameter: weight, gradient and two moments in float32; in bf16 with float32 masters a little more
FORMULAS = [
    "tokens/s = micro-batch x ranks x context / median step of a round, its first two steps left out; range: rounds",
    "step seconds: the median of all steps of all rounds, tenth to ninetieth percentile",
    "MFU = tokens/s x F / P, HFU = tokens/s x (F + R) / P",
    "F, a token = 6 N + 6 L T W: N weights of all matrix products, L layers, T context, W width of all heads; causal "
    "attention counted once. In full, as PaLM (appendix B) counts: 6 N + 12 L T W",
    "R, a token = what activation checkpointing does again. full: of each block 2 x (its N without the last product) + "
    "2 T W (in full 4 T W); every_N: of each Nth block; none, selective: 0",
    "the wait for other ranks is part of forward, backward and update; --profile tells the collectives apart",
]


@dataclass(frozen=True)
class Timed:
    """A run, and the FLOP/s that all its ranks could reach."""

    run: Run
    peak: float

    def __str__(self) -> str:
        if self.run.out_of_memory or self.run.error:
            return self.run.error or "out of memory"
        return f"{1000 * statistics.median(step_seconds(self.run)):,.1f} ms a step"


def fixed_bytes(arch: Architecture) -> int:
    """What one rank holds at least, before any activation."""
    return STATE_BYTES * count_parameters(arch).total


def peak_rule(device: torch.device, precision: Precision) -> str:
    """What P is."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = dense_bf16_peak(name)
        if known is not None and precision != "fp32":
            return f"P, {precision} = {known / 1e12:,.0f} TFLOP/s x ranks: data sheet of {name}, dense"
    shared = " x ranks" if device.type == "cuda" else ", all cores"
    return f"P, {precision} = what a 2,048 square product reaches right before the run{shared}"


def step_seconds(run: Run) -> list[float]:
    """Of each step but the first ones."""
    return [line["step_seconds"] for line in run.lines[WARM_UP_STEPS:]]


def step_peak(run: Run) -> int:
    """The most bytes that rank 0 held in the run's steps."""
    return max(line["peak_memory_bytes"] for line in run.lines)


def row_of(cell: Cell, micro_batch: int, arch: Architecture, rounds: Sequence[Timed]) -> dict[str, Any]:
    """The cell's row; of a cell that failed, what failed."""
    row: dict[str, Any] = {
        "name": cell.name,
        "model": cell.label,
        "parameters": count_parameters(arch).total,
        "context": cell.context,
        "zero_stage": cell.stage,
        "checkpointing": cell.checkpointing,
        "precision": cell.precision,
        "ranks": cell.ranks,
    }
    runs = [one.run for one in rounds]
    if failed := next((run for run in runs if not run.is_whole), None):
        return row | ({"out_of_memory": True} if failed.out_of_memory else {"error": failed.error})
    seconds = sorted(second for run in runs for second in step_seconds(run))
    tokens = micro_batch * cell.ranks * cell.context
    speeds = [tokens / statistics.median(step_seconds(run)) for run in runs]
    row |= {
        "micro_batch": micro_batch,
        "tokens_per_second": spread(speeds),
        "step_seconds": {
            "median": statistics.median(seconds),
            "low": seconds[len(seconds) // 10],  # tenth and ninetieth percentile
            "high": seconds[-1 - len(seconds) // 10],
        },
        "peak_memory_bytes": max(step_peak(run) for run in runs),
        **_shares(runs),
    }
    for suffix, attention in (("", "causal"), ("_full", "full")):
        flops = flops_per_token(arch, cell.context, attention)
        again = recomputed_flops_per_token(arch, cell.context, cell.checkpointing, attention)
        row[f"mfu{suffix}"] = spread([v * flops / one.peak for v, one in zip(speeds, rounds, strict=True)])
        row[f"hfu{suffix}"] = spread([v * (flops + again) / one.peak for v, one in zip(speeds, rounds, strict=True)])
    return row


def _shares(runs: Sequence[Run]) -> dict[str, float]:
    lines = [line for run in runs for line in run.lines[WARM_UP_STEPS:]]
    whole = sum(line["step_seconds"] for line in lines)
    parts = ("data_wait", "forward", "backward", "optimizer")
    return {f"share_of_{part}": sum(line[f"{part}_seconds"] for line in lines) / whole for part in parts}
