"""A contestant's turn in a round of peers.py, and the rows that the turns give."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.record import spread

WARM_UP_STEPS = 2
OURS = "scaletrain, ZeRO 1"


@dataclass(frozen=True)
class Turn:
    """The matrix rate, FLOP/s, is of the moment before."""

    matrix_rate: float
    step_seconds: float
    peak_memory_bytes: int


def median_step(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[WARM_UP_STEPS:])


def rows_of(rounds: Sequence[Mapping[str, Turn]], tokens: int, flops: float) -> list[dict[str, Any]]:
    """A row a contestant; `ours_is_faster_by`: ours at ZeRO 1 against it; shares are of their round's median rate."""
    rates = [statistics.median(turn.matrix_rate for turn in one.values()) for one in rounds]
    rows = []
    for name in rounds[0]:
        turns = [one[name] for one in rounds]
        row = {
            "name": name,
            "tokens_per_second": spread([tokens / turn.step_seconds for turn in turns]),
            "share_of_matrix_rate": spread(
                [tokens * flops / turn.step_seconds / rate for turn, rate in zip(turns, rates, strict=True)]
            ),
            "ours_is_faster_by": spread([one[name].step_seconds / one[OURS].step_seconds for one in rounds]),
            "peak_memory_bytes": max(turn.peak_memory_bytes for turn in turns),
        }
        rows.append(row)
    return rows
