"""What is known of a run from what it wrote: its launches, its checkpoints, where it went back, and what is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaletrain.data.audit.fault import Fault
from scaletrain.engine.state import RunState

RUNNING = "killed, or still at work"
RESUMED, ROLLED_BACK, PASSED_OVER = "resume", "rolled back", "passed over samples"


@dataclass
class Launch:
    """One start of the program: where it began, on how many ranks, how many samples a step, and how it ended."""

    where: str
    kind: str
    state: RunState
    ranks: int
    batch: int | None = None
    record: Mapping[str, Any] = field(default_factory=dict)  # of the mixture that it read by
    saved: int = 0  # the step of its last checkpoint
    reached: int = 0  # the last step that an event tells of
    end: str = RUNNING


@dataclass(frozen=True)
class Detour:
    """A roll-back to the sample at `first`, or with `end` the samples first..end-1 that were passed over."""

    where: str
    first: int
    end: int | None = None


@dataclass
class History:
    """What the events tell. `saved`: the checkpoints from which the training that counts went on, by name; `told`: the
    line that tells of each last. `detours`: those since the run began, the first one first."""

    launches: list[Launch] = field(default_factory=list)
    points: list[tuple[str, Launch, RunState]] = field(default_factory=list)
    saved: dict[str, RunState] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    detours: list[Detour] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)


def past_weights(record: Mapping[str, Any], samples: int) -> list[tuple[int, dict[int, int]]]:
    """What a mixture's record decides of the first `samples`: where each segment begins, and the sources' weights."""
    numbers = {name: number for number, name in enumerate(record.get("sources", []))}
    return [
        (part["start"], {numbers[name]: weight for name, weight in part["weights"].items() if weight})
        for part in record.get("segments", [])
        if part["start"] < samples
    ]


def shown(state: RunState) -> str:
    over = f" ({state.passed_over:,} of them passed over)" if state.passed_over else ""
    return f"step {state.step:,} with {state.samples_seen:,} samples{over} and digest {state.sample_digest:016x}"
