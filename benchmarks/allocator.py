"""Bytes that torch's allocator hands out while something runs: at its end and at most, temporaries inside of operators
included."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile


@dataclass(frozen=True)
class Allocated:
    """Above what was allocated before: `kept` when it had ended, its result still held; `peak` on the way there."""

    kept: int
    peak: int


def allocated_by(work: Callable[[], Any]) -> Allocated:
    """Runs `work` once. On a CPU torch's profiler tells each allocation, to the byte; what oneDNN takes for itself is
    in none of them."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        found = Allocated(torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before)
        del result
        return found
    with profile(profile_memory=True) as told:
        result = work()
    events = [event for event in told.kineto_results.events() if event.name() == "[memory]"]
    live = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    del result
    return Allocated(live[-1], max(live))
