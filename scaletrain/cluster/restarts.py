"""Whether a launch that died is started again, on how many ranks, and after which wait. Pure but for its counters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_LONGEST_WAIT_SECONDS = 60.0
_FRUITLESS_BEFORE_FEWER = 2


class Fit(Protocol):
    """A number of ranks that the recipe runs on (config/fewer_ranks.py)."""

    @property
    def ranks(self) -> int: ...
    @property
    def micro_batch(self) -> int: ...


@dataclass(frozen=True)
class Restart:
    """The next launch. `number`: how many restarts in a row this makes since a new step was saved."""

    number: int
    ranks: int
    wait_seconds: float
    fewer: tuple[int, str] | None = None  # micro-batch for the smaller number of ranks, and why it is smaller


@dataclass
class Restarts:
    """Counts what a supervisor did since the run last saved a new step.

    A launch is fruitless when it died, left no newer checkpoint than it found, and did not roll the run back, which is
    progress too. Restarts are counted from the last launch that was not: `max_restarts` fruitless ones in a row after
    it (or after the first launch) are the end.
    """

    max_restarts: int
    ranks: int
    fewer: Callable[[int], Fit | None]  # the largest number of ranks that fits, up to the one given
    spent: int = 0
    fruitless: int = 0  # at this number of ranks

    def after_death(self, *, progressed: bool, gpus: int | None) -> Restart | str:
        """The next launch, or why there is none. `progressed`: the dead one was not fruitless. `gpus`: those that are
        left; None on a machine that has none."""
        if progressed:
            self.spent = self.fruitless = 0
        else:
            self.fruitless += 1
        if self.spent >= self.max_restarts:
            return self._why_over(progressed=progressed)
        smaller: Fit | None = None
        reason = ""
        if gpus is not None and gpus < self.ranks:
            reason = f"{gpus} {'GPU is' if gpus == 1 else 'GPUs are'} left for {self.ranks} ranks"
            if (smaller := self.fewer(gpus)) is None:
                return f"{reason}: repair them, or set train.min_ranks to what may go on"
        elif self.fruitless >= _FRUITLESS_BEFORE_FEWER and (smaller := self.fewer(self.ranks - 1)) is not None:
            reason = f"{self.fruitless} launches in a row on {self.ranks} ranks saved no new step"
        if smaller is not None:
            self.ranks, self.fruitless = smaller.ranks, 0
        wait = min(_LONGEST_WAIT_SECONDS, 2.0**self.spent)
        self.spent += 1
        fewer = None if smaller is None else (smaller.micro_batch, reason)
        return Restart(self.spent, self.ranks, wait, fewer)

    def _why_over(self, *, progressed: bool) -> str:
        rule = f"train.max_restarts={self.max_restarts}"
        if progressed or self.max_restarts == 0:
            return f"{rule} allows no restart"
        return f"{self.max_restarts + 1} launches in a row saved no new step ({rule})"
