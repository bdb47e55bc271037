"""Curves as the page's data: columns of numbers, thinned where there are more than a browser draws at once."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from scaletrain.track.curves import Columns, Curves

POINTS_OF_RUN = 100_000  # logged steps in the page: it opens within two seconds
POINTS_OF_ALL = 200_000  # of all runs together
# Of these the page has charts.
SHOWN = (
    "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes", "step_seconds", "data_wait_seconds",
    "forward_seconds", "backward_seconds", "optimizer_seconds", "rank_seconds_median", "rank_seconds_max",
    "skipped_steps",
)  # fmt: skip
Floats = np.ndarray[Any, np.dtype[np.float64]]


def curves_of(curves: Curves, limit: int) -> dict[str, Any]:
    """`rows`: how many were logged, of which at most about `limit` are here. A value that was not logged or not finite
    is None; `not_finite` counts the latter."""
    training, evaluations = curves.training, curves.evaluations
    kept = thin(training.column("loss"), limit)
    steps = np.array(training.steps, dtype=np.float64)
    tokens, seconds = training.column("tokens"), np.round(curves.training_seconds(), 3)
    at = np.array(evaluations.steps, dtype=np.float64)
    return {
        "rows": len(training),
        "not_finite": _count_not_finite(training) + _count_not_finite(evaluations),
        "training": {
            "step": _numbers(steps[kept]),
            "tokens": _numbers(tokens[kept]),
            "seconds": _numbers(seconds[kept]),
            **{name: _numbers(training.column(name)[kept]) for name in SHOWN if name in training.values},
        },
        "evaluation": {
            "step": _numbers(at),
            "tokens": _numbers(_between(at, steps, tokens)),
            "seconds": _numbers(_between(at, steps, seconds)),
            **{f"eval_{name}": _numbers(evaluations.column(name)) for name in evaluations.values},
        },
    }


def thin(values: Floats, limit: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Which rows to keep: all, or the least and the greatest of each of limit / 2 equal parts, and the last row.

    What is not finite counts as the greatest, so that it is not lost.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), limit // 2 + 1).astype(np.int64)
    high = np.where(np.isfinite(values), values, np.inf)
    kept = {len(values) - 1}
    for a, b in pairwise(edges.tolist()):
        part = high[a:b]
        kept |= {int(a + part.argmin()), int(a + part.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def _between(at: Floats, steps: Floats, values: Floats) -> Floats:
    """The values at steps that were evaluated and not logged: on a line between those that were."""
    known = np.isfinite(values)
    return np.interp(at, steps[known], values[known]) if known.any() else np.full(len(at), np.nan)


def _numbers(values: Iterable[float]) -> list[float | int | None]:
    """As JSON has them; whole ones without a point, which is shorter and the same number."""
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() and abs(value) < 1e15 else value
        for value in map(float, values)
    ]


def _count_not_finite(table: Columns) -> int:
    return sum(int(np.isinf(table.column(name)).sum()) for name in table.values)
