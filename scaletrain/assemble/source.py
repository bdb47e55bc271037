"""The samples of a run as its trainer asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaletrain.assemble.settle import Settled
from scaletrain.data.loader import Loader
from scaletrain.data.order import digest
from scaletrain.data.run_data import RunData
from scaletrain.data.training_data import Reading
from scaletrain.engine.plan import Plan, end_before_repeats
from scaletrain.engine.state import RunState

_AT_ONCE = 1 << 20  # samples


@dataclass(frozen=True)
class RunSource:
    """`position`: where this rank was in a live source at the resume."""

    settled: Settled
    data: RunData
    reading: Reading
    position: Mapping[str, Any] | None

    def open(self, start: int) -> Loader:
        """Batches from sample `start` of the run on, read ahead by a thread."""
        steps = self.data.steps(
            self.reading,
            self.settled.share,
            start=start,
            position=self.position,
            pin=self.settled.device.type == "cuda",
        )
        return Loader(steps, self.settled.recipe.data.prefetch_steps)

    def digest(self, start: int, end: int) -> int:
        """Which samples stand at positions start..end-1, whoever reads them."""
        found = 0
        for first in range(start, end, _AT_ONCE):
            count = min(_AT_ONCE, end - first)
            positions = np.arange(first, first + count, dtype=np.int64)
            found += digest(positions, self.reading.order.ids(first, count))
        return found

    def limit(self, state: RunState) -> tuple[int, str] | None:
        """The first sample at which a source would be read too often, and its name."""
        return self.data.repeat_limit(self.reading.order, self.settled.plan(state).total_samples)

    def plan(self, state: RunState) -> Plan:
        """How far the run goes from `state` on. DataError when that reads a source too often."""
        plan, limit = self.settled.plan(state), self.limit(state)
        return end_before_repeats(plan, state, limit, stops=self.data.ends_at_repeats)
