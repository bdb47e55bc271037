"""How time and memory of a token grow with context, layers and ranks: the second part of scaling.py.

A straight line is fitted to each figure, and it is told where the figure leaves such a line upwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rank_steps import Steps, plural
from benchmarks.record import NOISE, spread
from scaletrain.model.activation_bytes import activations

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
LAYERS = (2, 4, 8, 16, 24)
Found = dict[str, Any]
Spread = Mapping[str, float]  # as record.spread gives it


@dataclass(frozen=True)
class Line:
    """intercept + slope * x."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


def fit(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Least squares of the relative errors, as the points span a factor of ten and their noise grows with them."""
    assert len(xs) == len(ys) >= 2, f"{len(xs)} and {len(ys)} points: a line needs two"
    weights = [1 / y**2 for y in ys]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    across = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys, strict=True)) / across
    return Line(mean_y - slope * mean_x, slope)


def exceeding(xs: Sequence[float], points: Sequence[Spread]) -> list[float]:
    """Each x whose figure lies above the line through the points before it by more than the noise: NOISE, and the
    widest of their ranges, which counts for more the further the line is drawn on."""
    found = []
    for i in range(2, len(xs)):
        line = fit(xs[:i], [point["median"] for point in points[:i]])
        reach = (xs[i] - xs[0]) / (xs[i - 1] - xs[0])
        noise = NOISE + reach * max((point["high"] - point["low"]) / point["median"] for point in points[:i])
        if points[i]["low"] > line.at(xs[i]) * (1 + noise):
            found.append(xs[i])
    return found


def cases_of(base: Steps, tokens: int, counts: Sequence[int]) -> dict[tuple[str, int, int], Steps]:
    """By what grows, ranks and size; `tokens` a rank and step in each."""
    cases = {}
    for ranks in counts:
        for context in (c for c in CONTEXTS if c <= tokens):
            cases["context", ranks, context] = replace(base, context=context, samples=tokens // context)
        for layers in LAYERS:
            samples = max(1, tokens // 4 // base.context)  # fewer: the deepest has six times the base's layers
            cases["layers", ranks, layers] = replace(base, layers=layers, samples=samples)
    return cases


def rows_of(cases: Mapping[tuple[str, int, int], Steps], rounds: Sequence[Mapping[str, Found]]) -> list[Found]:
    rows = []
    for (what, ranks, size), steps in cases.items():
        mine = [one[name_of(what, ranks, size)] for one in rounds]
        tokens = steps.samples * steps.context
        told = activations(
            steps.architecture(),
            steps.checkpointing,
            samples=steps.samples,
            tokens=steps.context,
            itemsize=steps.itemsize,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        rows.append(
            {
                "name": name_of(what, ranks, size),
                "series": f"{what}, {plural(ranks)}",
                "x_name": what,
                "x": size,
                "token_seconds": spread([1 / steps.speed(found["step_seconds"], ranks) for found in mine]),
                "token_bytes": spread([found["step_bytes"] / tokens for found in mine]),
                "activation_bytes": told.peak / tokens,
            }
        )
    return rows


def name_of(what: str, ranks: int, size: int) -> str:
    return f"{what} {size}, {plural(ranks)}"


def fits(rows: Sequence[Found]) -> list[Found]:
    """A line for each series and figure, its largest relative error, and where growth is more than linear."""
    found = []
    for series in dict.fromkeys(row["series"] for row in rows):
        mine = [row for row in rows if row["series"] == series]
        xs = [row["x"] for row in mine]
        for figure in ("token_seconds", "token_bytes"):
            points = [row[figure] for row in mine]
            line = fit(xs, [point["median"] for point in points])
            error = max(abs(line.at(x) / point["median"] - 1) for x, point in zip(xs, points, strict=True))
            above = exceeding(xs, points)
            found.append({"series": series, "figure": figure, **asdict(line), "error": error, "above_linear_at": above})
    return found


def show(rows: Sequence[Found], lines: Sequence[Found]) -> list[str]:
    """Prints all; the lines once more in words."""
    table = Table("", "us a token", "range", "kB a token", "activations, by formula")
    for row in rows:
        seconds = row["token_seconds"]
        table.add_row(
            row["name"],
            f"{seconds['median'] * 1e6:.1f}",
            f"{seconds['low'] * 1e6:.1f} - {seconds['high'] * 1e6:.1f}",
            f"{row['token_bytes']['median'] / 1e3:.1f}",
            f"{row['activation_bytes'] / 1e3:.1f}",
        )
    Console(width=120).print(table)
    told = [_told(line) for line in lines]
    print("\n".join(told))
    return told


def _told(line: Found) -> str:
    above = line["above_linear_at"]
    more = f"; more than linear at {', '.join(map(str, above))}" if above else ""
    formula = f"{line['figure']} = {line['intercept']:.4g} + {line['slope']:.4g} x"
    return f"{line['series']}: {formula}, within {line['error']:.0%}{more}"
