"""What is trained on what: the seam between a launch and the two kinds of work that it can do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from scaletrain.data.run_data import RunData
from scaletrain.engine.checkpoint import Found
from scaletrain.tasks.task import Task


class Job(Protocol):
    """Pretraining or fine-tuning, settled: its data are open, its model is known and not built."""

    @property
    def data(self) -> RunData: ...

    @property
    def context(self) -> int:
        """Places of a sample, at most."""
        ...

    @property
    def max_samples(self) -> int | None:
        """Samples of the whole run, where the recipe's epochs set its length."""
        ...

    @property
    def flops_per_token(self) -> float: ...

    @property
    def flops_rule(self) -> str:
        """What `flops_per_token` counts, for a person."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides which model it is: a run resumes with no other."""
        ...

    @property
    def checkpoint_bytes(self) -> int: ...

    def describe(self) -> list[str]:
        """The model, in lines for a person."""
        ...

    def task(self, data: RunData) -> Task:
        """`data`: the job's own, numbered as the run has it."""
        ...

    def finish(self, run: Path, found: Found) -> list[str]:
        """What is written when the run is at its end, from its last checkpoint; lines to tell. First rank only."""
        ...

    def next_steps(self, run: str) -> str:
        """What a person does with the run when it is done."""
        ...
