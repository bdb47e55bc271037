"""Our kernels beside torch's plain ones: seconds forward and backward, share of the machine's roofline, memory.

    python benchmarks/kernels.py [--rounds 3] [--only attention,loss] [--output benchmarks/results/NAME.json]

All variants of a kernel take their turns in one process, round after round; a round's figure is the median of several
calls, forward and backward. The roofline (roofline.py) is measured in each round: FLOPs over the rate of a large matrix
product, or the bytes that must be moved (each input read and each result written once a pass) over the bandwidth of a
large copy, whichever is longer. Small sizes stay in a CPU's cache, and can pass a bound by memory. FLOPs are those of
matrix products; attention's are the causal half, counted once. Memory: the most that is allocated above the inputs,
results and gradients included.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.allocator import allocated_by
from benchmarks.kernel_variants import KERNELS, Kernel, Shape
from benchmarks.record import in_turn, save, spread
from benchmarks.roofline import Machine, bound, measure_machine
from scaletrain.assemble.settle import DTYPES, best_precision
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World

MACHINE = "machine"
SECONDS, CALLS = 0.3, 3  # a round's figure: calls for so long, and at least so many


@dataclass(frozen=True)
class Timed:
    """Median seconds of a call."""

    forward: float
    both: float


def time_variant(compute: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Timed:
    """Both passes, again and again; gradients are made anew in each, as in training."""
    result = compute(*inputs)
    gradient = torch.ones_like(result)
    result.backward(gradient)
    forward, both = [], []
    until = time.perf_counter() + SECONDS
    while len(both) < CALLS or time.perf_counter() < until:
        _forget_gradients(inputs)
        began = _now(result.device)
        result = compute(*inputs)
        between = _now(result.device)
        result.backward(gradient)
        forward.append(between - began)
        both.append(_now(result.device) - began)
    return Timed(statistics.median(forward), statistics.median(both))


def peak_bytes(compute: Callable[..., Tensor], inputs: Sequence[Tensor]) -> int:
    def both() -> Tensor:
        result = compute(*inputs)
        result.backward(torch.ones_like(result))
        return result

    _forget_gradients(inputs)
    return allocated_by(both).peak


def _forget_gradients(inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        tensor.grad = None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def rows_of(
    kernels: Mapping[str, Kernel], rounds: Sequence[Mapping[str, Any]], peaks: Mapping[str, int]
) -> list[dict[str, Any]]:
    rows = []
    for kernel, made in kernels.items():
        for variant in made.variants:
            name = f"{kernel}: {variant}"
            bounds = [bound(made.flops, made.moved, one[MACHINE]) for one in rounds]
            rows.append(
                {
                    "name": name,
                    "seconds": spread([one[name].both for one in rounds]),
                    "forward_seconds": spread([one[name].forward for one in rounds]),
                    "flops": made.flops,
                    "bytes": made.moved,
                    "bound": statistics.mode(each.by for each in bounds),
                    "share_of_roofline": spread(
                        [each.seconds / one[name].both for each, one in zip(bounds, rounds, strict=True)]
                    ),
                    "peak_bytes": peaks[name],
                    "ours_is_faster_by": spread([one[name].both / one[f"{kernel}: ours"].both for one in rounds]),
                }
            )
    return rows


def show(rows: Sequence[Mapping[str, Any]], machines: Sequence[Machine], shape: Shape) -> list[str]:
    table = Table("", "ms", "range", "forward", "of roofline", "bound", "MB", "this / ours", title=str(shape))
    table.columns[0].no_wrap = True
    for row in rows:
        seconds, share = row["seconds"], row["share_of_roofline"]
        table.add_row(
            row["name"],
            f"{seconds['median'] * 1e3:.2f}",
            f"{seconds['low'] * 1e3:.2f} - {seconds['high'] * 1e3:.2f}",
            f"{row['forward_seconds']['median'] * 1e3:.2f}",
            f"{share['median']:.0%}",
            row["bound"],
            f"{row['peak_bytes'] / 1e6:.1f}",
            f"{row['ours_is_faster_by']['median']:.2f}",
        )
    Console(width=120).print(table)
    rate = statistics.median(machine.matrix_rate for machine in machines)
    bandwidth = statistics.median(machine.copy_bandwidth for machine in machines)
    formula = "share of roofline = max(flops / matrix rate, bytes / copy bandwidth) / seconds"
    medians = (
        f"medians of the rounds: matrix rate {rate / 1e9:,.0f} GFLOP/s, copy bandwidth {bandwidth / 1e9:,.1f} GB/s"
    )
    print(f"{formula}; {medians}")
    return [formula, medians]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"comma-separated: {', '.join(KERNELS)}")
    for name, default in asdict(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--precision", choices=DTYPES, help="default: the one that recipes train in here")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = device_of(World())
    precision = args.precision or best_precision(device)
    shape = Shape(**{name: getattr(args, name) for name in asdict(Shape())})
    wanted = args.only.split(",") if args.only else list(KERNELS)
    kernels = {name: KERNELS[name](shape, device, DTYPES[precision]) for name in wanted}
    contestants: dict[str, Callable[[], Any]] = {MACHINE: partial(measure_machine, device, DTYPES[precision])}
    peaks = {}
    for name, kernel in kernels.items():
        for variant, compute in kernel.variants.items():
            contestants[f"{name}: {variant}"] = partial(time_variant, compute, kernel.inputs)
            peaks[f"{name}: {variant}"] = peak_bytes(compute, kernel.inputs)
    rounds = in_turn(contestants, args.rounds, lambda number, name, _: print(f"round {number + 1}: {name}", flush=True))
    rows = rows_of(kernels, rounds, peaks)
    machines = [one[MACHINE] for one in rounds]
    formulas = show(rows, machines, shape)
    if args.output:
        settings = {**asdict(shape), "precision": precision, "rounds": args.rounds}
        save(args.output, "kernels.py", settings, rows, formulas=formulas, machine=[asdict(one) for one in machines])


if __name__ == "__main__":
    main()
