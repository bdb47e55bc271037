"""What a run does about updates left out and spikes of the loss: it tells, ends, or goes back to a checkpoint."""

import math
import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from scaletrain.config.schema import Guard
from scaletrain.errors import TrainingError


class GoBack(Exception):  # noqa: N818  no error: the trainer obeys it
    """The run is to go back to a checkpoint of `last_step` or before, and to pass over the samples up to `end`."""

    def __init__(self, reason: str, last_step: int, end: int) -> None:
        super().__init__(reason)
        self.reason, self.last_step, self.end = reason, last_step, end


@dataclass
class SkipGuard:
    """Counts updates left out in a row."""

    policy: Guard
    in_a_row: int = 0

    def note(self, cause: str | None, step: int = 0, end: int = 0, *, is_usual: bool = False) -> None:
        """Hears of each step, whose samples end before position `end`: why its update was left out, or None.

        `is_usual`: that happens in a healthy run too (no token bears loss, fp16's loss scale was too high), and only
        ends it when it comes in a row. All ranks hear the same and so raise together: TrainingError when the run should
        end, GoBack when it should go back.
        """
        self.in_a_row = self.in_a_row + 1 if cause is not None else 0
        if cause is None:
            return
        if self.in_a_row >= self.policy.max_skips:
            raise TrainingError(
                f"{self.in_a_row} updates in a row were left out (guard.max_skips={self.policy.max_skips}), the last "
                f"one because of {cause}: lower optim.lr, look at the samples, or resume with a higher guard.max_skips"
            )
        if is_usual:
            return
        if self.policy.on_nonfinite == "stop":
            raise TrainingError(
                f"an update was left out because of {cause}, and guard.on_nonfinite is stop: look at the samples, "
                "lower optim.lr, or resume with guard.on_nonfinite=skip"
            )
        if self.policy.on_nonfinite == "roll_back":
            raise GoBack(cause, step - 1, end)


def cause_of_skip(weight: int, bad: Sequence[tuple[int, int]], first_sample: int, samples: int) -> str:
    """In words why an update was left out, and where in the run's order its samples stand.

    `weight`: loss-bearing tokens of the batch; `bad`: rank and number of each micro-batch whose loss was not finite.
    """
    where = f" ({_samples(first_sample, samples)})"
    if not weight:
        return "a batch in which no token bears loss" + where
    if not bad:
        return "gradients that are not finite, though each rank's loss is" + where
    ranks: dict[int, list[str]] = {}
    for rank, number in bad:
        ranks.setdefault(rank, []).append(str(number))
    places = [f"rank {rank} (micro-batch {', '.join(numbers)})" for rank, numbers in ranks.items()]
    return f"a loss that is not finite on {', '.join(places)}" + where


def not_finite(losses: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Rank and number, both from 0, of each micro-batch whose loss is not finite; `losses`: each rank's."""
    return [(rank, n) for rank, of in enumerate(losses) for n, loss in enumerate(of) if not math.isfinite(loss)]


def show_command(run: str, first_sample: int, samples: int) -> str:
    """What shows samples of a run. By their place in its order: a step may be taken again on others."""
    return f"scaletrain audit {shlex.quote(run)} --from {first_sample} --show {samples}"


@dataclass(frozen=True)
class Spike:
    """The loss at the step that made a spike, what it is held against, where the spike began and its samples stand."""

    loss: float
    median: float
    sigma: float
    first_step: int
    first_sample: int
    samples: int

    def __str__(self) -> str:
        return (
            f"a loss of {self.loss:.4g} where the median is {self.median:.4g} with a deviation of {self.sigma:.2g} "
            f"({_samples(self.first_sample, self.samples)})"
        )


@dataclass
class SpikeGuard:
    """Holds each loss against those before it. Losses of a spike are no measure for later ones, until it was told: if
    they stay as high, that is the run's new level.

    The deviation is 1.4826 times the median distance to the median (of normal values: their standard deviation), but a
    hundredth of the median at least, so that the last digits of a flat loss are no spike. A loss that is no number is
    too high.
    """

    policy: Guard
    memory: Mapping[str, Any] = field(default_factory=dict)  # of an earlier launch
    _window: deque[float] = field(init=False)
    _in_a_row: int = field(init=False)  # steps too high
    _first: tuple[int, int] = field(init=False)  # step and sample of the first of these

    def __post_init__(self) -> None:
        self._window = deque(self.memory.get("losses", ()), maxlen=self.policy.spike_window)
        self._in_a_row, *first = self.memory.get("too_high", (0, 0, 0))
        self._first = first[0], first[1]

    @property
    def seen(self) -> dict[str, Any]:
        """What the next launch is to remember."""
        return {"losses": list(self._window), "too_high": [self._in_a_row, *self._first]}

    def note(self, loss: float, step: int, first_sample: int, samples: int) -> Spike | None:
        """Hears of the mean loss of a step over all ranks, and of its samples; a spike at the step that makes it one.

        Steps whose update was left out are not told here.
        """
        if len(self._window) * 2 < self.policy.spike_window:
            self._window.append(loss)
            return None
        middle = median(self._window)
        spread = 1.4826 * median(abs(value - middle) for value in self._window)
        sigma = max(spread, abs(middle) / 100, 1e-3)
        if loss <= middle + self.policy.spike_sigmas * sigma:
            self._window.append(loss)
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row == 1:
            self._first = step, first_sample
        if self._in_a_row > self.policy.spike_steps and math.isfinite(loss):
            self._window.append(loss)
        if self._in_a_row != self.policy.spike_steps:
            return None  # not yet a spike, or told already
        first_step, first = self._first
        return Spike(loss, middle, sigma, first_step, first, first_sample + samples - first)

    def judge(self, spike: Spike) -> None:
        """TrainingError when the recipe ends a run at a spike, GoBack when it has it go back.

        To before the update of the step before the first loss that is too high: that loss is of the weights it made.
        """
        if self.policy.on_spike == "stop":
            raise TrainingError(
                f"{self.policy.spike_steps} steps in a row ended in {spike}, and guard.on_spike is stop: look at the "
                "samples, lower optim.lr, or resume with guard.on_spike=note"
            )
        if self.policy.on_spike == "roll_back":
            raise GoBack(str(spike), spike.first_step - 2, spike.first_sample + spike.samples)


@dataclass
class StragglerGuard:
    """Finds a rank that needs longer than the others for what it does alone, in several logged steps in a row."""

    policy: Guard
    _slow: int | None = None
    _in_a_row: int = 0

    def note(self, seconds: Sequence[float]) -> tuple[Literal["slow", "recovered"], int, dict[str, Any]] | None:
        """Hears of each rank's own seconds a step (reading and forward passes, without waiting for others).

        Tells once that a rank is slow, with the numbers, and once that it is so no longer.
        """
        middle, worst = sorted(seconds)[(len(seconds) - 1) // 2], max(seconds)
        rank = list(seconds).index(worst)
        numbers = {"slow_rank": rank, "seconds": worst, "median_seconds": middle}
        told = self._slow is not None and self._in_a_row >= self.policy.straggler_logs
        if len(seconds) == 1 or worst <= self.policy.straggler_ratio * middle:
            before, self._slow, self._in_a_row = self._slow, None, 0
            return ("recovered", before, numbers) if told and before is not None else None
        self._in_a_row = self._in_a_row + 1 if rank == self._slow else 1
        self._slow = rank
        return ("slow", rank, numbers) if self._in_a_row == self.policy.straggler_logs else None


def _samples(first: int, count: int) -> str:
    return f"samples {first:,} to {first + count - 1:,} of the run"
