"""torch's profiler over some steps of a run: a trace, the dearest operations and, on a GPU, what held its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from scaletrain.runtime import dist

OPERATIONS = 10


class StepProfile:
    """Of rank 0. `steps`: the first and the last one, as train.profile_steps has them; None: nothing is profiled.

    Writes into `folder` trace-FIRST-LAST.json (for ui.perfetto.dev), operations-FIRST-LAST.txt and, on a GPU,
    memory-FIRST-LAST.pickle (for pytorch.org/memory_viz). A run that resumes inside of the steps profiles the rest.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._steps = steps if dist.rank() == 0 else None
        self._running: profile | None = None
        self._first = 0

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around one step; writes after the last one, also when that raises."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            yield
            return
        if self._running is None:
            self._begin(step)
        try:
            yield
        except BaseException:
            self.close(step)
            raise
        if step == self._steps[1]:
            self.close(step)

    def _begin(self, step: int) -> None:
        self._first = step
        if self._device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=100_000)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        self._running = profile(activities=activities)
        self._running.start()

    def close(self, last: int) -> None:
        """Writes what there is up to step `last`, if it is not written yet."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{self._first}-{last}"
        running.export_chrome_trace(str(self._folder / f"trace-{name}.json"))
        (self._folder / f"operations-{name}.txt").write_text(self._table(running), encoding="utf-8")
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self._folder / f"memory-{name}.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)

    def _table(self, running: Any) -> str:
        by = f"self_{self._device.type}_time_total"
        text: str = running.key_averages().table(sort_by=by, row_limit=OPERATIONS)
        return text + "\n"
