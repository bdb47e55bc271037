"""A run's logged values as columns, each step once: what a roll-back or a resume took again counts as it was last."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np

_EVALUATION = "eval_"
_NOT_KEPT = ("step", "samples")


class Columns:
    """Rows by step. In a column NaN stands for a value that was not logged, infinity for one that was not finite."""

    def __init__(self) -> None:
        self.steps: array[int] = array("q")
        self.values: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, step: int, values: Mapping[str, Any]) -> None:
        """A row; those of this step and later ones go."""
        self.cut(step)
        rows = len(self.steps)
        for name, value in values.items():
            if (number := _number(value)) is not None:
                if name not in self.values:
                    self.values[name] = array("d", [math.nan]) * rows
                self.values[name].append(number)
        for column in self.values.values():
            if len(column) == rows:
                column.append(math.nan)
        self.steps.append(step)

    def cut(self, step: int) -> None:
        """Drops the rows from `step` on."""
        if self.steps and self.steps[-1] >= step:
            first = bisect_left(self.steps, step)
            del self.steps[first:]
            for column in self.values.values():
                del column[first:]

    def column(self, name: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """A copy of it; all NaN when nothing was logged by that name."""
        found = self.values.get(name)
        return np.array(found, dtype=np.float64) if found is not None else np.full(len(self), np.nan)

    def last(self, name: str) -> float | None:
        """The last row's value, if it has a finite one."""
        value = self.values[name][-1] if len(self) and name in self.values else math.nan
        return value if math.isfinite(value) else None


class Curves:
    """Training steps and evaluations (without their `eval_`), from the lines of metrics.jsonl."""

    def __init__(self) -> None:
        self.training, self.evaluations = Columns(), Columns()

    def add(self, line: Mapping[str, Any]) -> None:
        """Hears of the next line; a line without a step is none of ours."""
        step = line.get("step")
        if not isinstance(step, int) or abs(step) >= 1 << 62:
            return
        kept = {name: value for name, value in line.items() if name not in _NOT_KEPT}
        evaluated = {n.removeprefix(_EVALUATION): value for n, value in kept.items() if n.startswith(_EVALUATION)}
        if evaluated:
            self.training.cut(step + 1)
            self.evaluations.put(step, evaluated)
        else:
            self.evaluations.cut(step)  # an evaluation comes after its step
            self.training.put(step, kept)

    def training_seconds(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Seconds of training up to each logged step: the steps' own, without evaluations, saves and pauses."""
        steps = np.array(self.training.steps, dtype=np.float64)
        each = np.nan_to_num(self.training.column("step_seconds"), nan=0.0, posinf=0.0)
        return np.cumsum(np.diff(steps, prepend=0.0) * each)


def _number(value: Any) -> float | None:
    """None for what is no number. JSON has no NaN: metrics.jsonl holds it, and infinity, as a string."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else math.inf
