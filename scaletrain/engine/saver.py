"""When checkpoints are made and what becomes of them: one at a time, written behind training, the old ones removed."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaletrain.config.schema import BaseRecipe, Checkpoint
from scaletrain.data.loader import Step
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Best, Identity, Pending
from scaletrain.engine.engine import Engine
from scaletrain.engine.records import Records
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError
from scaletrain.runtime import dist
from scaletrain.runtime.stop import TimeLimit

LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "mse", "mae", "ter")


@dataclass
class Saver:
    """All ranks call its methods together. `saved_step`: of the checkpoint at hand, on the disk or on its way there."""

    recipe: BaseRecipe
    root: Path
    engine: Engine
    identity: Identity
    reading: Mapping[str, Any] | None  # what a checkpoint must say of the data's order, see Reading.record
    records: Records
    saved_step: int | None = None
    best: Best | None = None  # the checkpoint of the best evaluation so far
    limit: TimeLimit | None = None
    _pending: Pending | None = None
    _digest: int = 0  # of the samples that this rank read since the last save
    _position: Mapping[str, Any] | None = None  # in a live source, after the last step

    def note(self, step: Step) -> None:
        """Hears of the samples of each step that was taken."""
        self._digest, self._position = self._digest + step.digest, step.position

    def count_samples(self, state: RunState, more: int = 0) -> RunState:
        """The state with the digest of all samples noted so far, by all ranks, and of `more` of this rank."""
        (digest,) = dist.sum_modulo([self._digest + more])
        self._digest = 0
        return state.with_samples(digest)

    @property
    def is_written(self) -> bool:
        """Whether a checkpoint waits for the other ranks to have written theirs."""
        return self._pending is not None and self._pending.is_written

    def save(self, state: RunState, memory: Mapping[str, Any], *, wait: bool = False) -> RunState:
        """Begins the checkpoint of `state`, unless there is one; with `wait` it is on the disk afterwards.

        `memory`: what the guards go on with. Returns the state with the digest of its samples. Raises CheckpointError
        on all ranks when it cannot be written, unless the recipe has the run continue and there is no need to `wait`.
        """
        if self.saved_step != state.step:
            self.finish()  # one at a time: a slow disk holds training back
            extra = {
                "recipe": self.recipe.model_dump(mode="json"),
                "time": time.time(),
                "reading": self.reading,
                "guard": dict(memory),
            }
            state = self.count_samples(state)
            with self._policy_for_failures(state, must=wait):
                self._pending = checkpoint.begin(
                    self.root, self.engine, state, self.identity, extra, self._position,
                    background=self.recipe.checkpoint.background and not wait,
                )  # fmt: skip
                self.saved_step = state.step
        if wait or not self.recipe.checkpoint.background:
            self.finish(must=wait)
        return state

    def finish(self, *, must: bool = False) -> None:
        """Makes the checkpoint that is being written count, once all ranks have written it."""
        if (pending := self._pending) is None:
            return
        self._pending = None
        with self._policy_for_failures(pending.state, must=must):
            saved = checkpoint.finish(pending)
            if self.limit is not None:
                self.limit.note_save(saved["seconds"])
            saved["host_copy_bytes"] = self.engine.host_copy_bytes
            self.records.event("checkpoint", pending.state.step, **saved, **pending.state.counted_samples)
            self._clean()

    def judge(self, state: RunState, found: Mapping[str, float], memory: Mapping[str, Any]) -> RunState:
        """Hears of an evaluation of `state`; keeps the checkpoint of the best one, saving it where there is none."""
        wanted = self.recipe.checkpoint
        if wanted.best_metric is None:
            return state
        if wanted.best_metric not in found:
            self.records.say(
                f"note    {wanted.best_metric} is not defined for this evaluation: no checkpoint is judged by it"
            )
            return state
        best = Best(checkpoint.step_folder(self.root, state.step).name, wanted.best_metric, found[wanted.best_metric])
        if not best.is_better(self.best, lowest=_wants_lowest(wanted)):
            return state
        state = self.save(state, memory)
        self.finish()
        if self.saved_step == state.step:  # else it could not be written, and the recipe has the run continue
            self.best = best
            with self.records.noting_faults():
                if dist.rank() == 0:
                    checkpoint.write_best(self.root, best)
            self.records.event("best", state.step, checkpoint=best.checkpoint, metric=best.metric, value=best.value)
            self._clean()
        return state

    def go_back(self, step: int) -> None:
        """The run stands at the checkpoint of `step` again."""
        self.saved_step, self._digest = step, 0
        if self.best is not None and self.best.step > step:
            self.best = None
            with self.records.noting_faults():
                if dist.rank() == 0:
                    (self.root / checkpoint.BEST).unlink(missing_ok=True)

    def _clean(self) -> None:
        if dist.rank() == 0:
            wanted = self.recipe.checkpoint
            kept = self.best.checkpoint if self.best is not None else None
            checkpoint.clean(self.root, wanted.keep_last, wanted.keep_every_steps, kept)

    @contextmanager
    def _policy_for_failures(self, state: RunState, *, must: bool) -> Iterator[None]:
        """A checkpoint that cannot be written ends the run, on all ranks, unless the recipe has it continue."""
        try:
            yield
        except CheckpointError as error:
            if must or self.recipe.checkpoint.on_failure == "stop":
                raise
            self.saved_step = None
            self.records.event("checkpoint_failed", state.step, reason=str(error))
            self.records.say(f"warning {error}; training goes on, as checkpoint.on_failure=continue asks")


def _wants_lowest(wanted: Checkpoint) -> bool:
    if wanted.best_is is None:
        return wanted.best_metric in LOWER_IS_BETTER
    return wanted.best_is == "lowest"
