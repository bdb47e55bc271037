"""What a run says and leaves when a GPU's memory is full: planned beside held, a change that fits, and a snapshot."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from scaletrain.assemble.expectation import Expected, room_of, workload
from scaletrain.assemble.settle import Settled
from scaletrain.errors import ConfigError
from scaletrain.planner.fit import Room, remedy
from scaletrain.runtime import pulse


@contextmanager
def told(settled: Settled, expected: Expected | None) -> Iterator[None]:
    """Turns torch's error into one line of this rank's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(describe(settled, expected)) from error


def describe(settled: Settled, expected: Expected | None) -> str:
    """Writes RUN/profile/out-of-memory-rank-NNNNN.pickle where torch can; gives the line."""
    device = settled.device
    line = f"a GPU's memory is full in {pulse.last_mark().place}"
    room = room_of(settled) if device.type == "cuda" else None
    if room is not None:
        line += f", {torch.cuda.max_memory_allocated(device) / 1e9:,.1f} of {room / 1e9:,.1f} GB were allocated"
    if expected is not None:
        line += f"; planned were {expected.peak_bytes / 1e9:,.1f} GB, at the {expected.moment}"
    line += f": {_advice(settled, room)}"
    if device.type == "cuda":
        path = Path(settled.recipe.run.dir) / "profile" / f"out-of-memory-rank-{settled.world.rank:05d}.pickle"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
        line += f"; {path} tells what is held (pytorch.org/memory_viz)"
    return line


def _advice(settled: Settled, room: int | None) -> str:
    work = workload(settled)
    change = remedy(work, Room(room), {}) if work is not None and room is not None else None
    if change is not None:
        return f"try {' '.join(change.overrides)}"
    return (
        "lower train.micro_batch_size, set train.activation_checkpointing=full or take a DeepSpeed file that splits "
        "more; `scaletrain plan RECIPE` tells what fits"
    )
