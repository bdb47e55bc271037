"""The loop: read, step, count; and when due log, evaluate, save or stop."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from scaletrain.config.schema import Recipe
from scaletrain.data.loader import Step
from scaletrain.data.rows import Rows
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity, Pending
from scaletrain.engine.engine import Engine, StepResult
from scaletrain.engine.evaluate import evaluate
from scaletrain.engine.guard import SkipGuard, cause_of_skip
from scaletrain.engine.plan import Plan
from scaletrain.engine.state import RunState
from scaletrain.errors import CheckpointError, ScaleTrainError, TrainingError
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.runtime.stop import StopRequest, TimeLimit
from scaletrain.tasks.task import Task
from scaletrain.track.meter import Meter, peak_memory_bytes
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, Sink


class Steps(Protocol):
    """The loader, seen from here."""

    def __next__(self) -> Step: ...
    def close(self) -> None: ...


@dataclass
class Trainer:
    """Everything that a run needs, put together by assemble/start.py."""

    recipe: Recipe
    plan: Plan
    task: Task
    engine: Engine
    validation: Rows | None
    open_loader: Callable[[int], Steps]
    identity: Identity
    device: torch.device
    meter: Meter
    sinks: Sequence[Sink]
    events: Events
    progress: RunProgress
    stop: StopRequest
    state: RunState
    skips: SkipGuard
    record: Mapping[str, Any] | None = None  # what a checkpoint must say of the data's order, see Reading.record
    saved_step: int | None = None  # of the checkpoint at hand
    evaluated_step: int | None = None  # of the last evaluation in metrics.jsonl
    _limit: TimeLimit | None = None
    _pending: Pending | None = None  # the checkpoint that is being written
    _fault: OSError | None = None
    _data_fault: ScaleTrainError | None = None
    _digest: int = 0  # of the samples that this rank read since the last save
    _position: Mapping[str, Any] | None = None  # in a live source, after the last step

    @property
    def checkpoints(self) -> Path:
        return Path(self.recipe.run.dir) / "checkpoints"

    def run(self) -> str | None:
        """Trains to the end or to a stop. Returns None at the end, else why it stopped; either way all is saved."""
        if hours := self.recipe.train.max_hours:
            self._limit = TimeLimit(hours * 3600, time.monotonic() - (time.time() - self.stop.launched))
        loader = self.open_loader(self.state.samples_seen)
        if stopped := self._stop_step_reached():
            stopped += " already, no step was trained"
        self._evaluate_if(due=self._due(self.recipe.evaluate.every_steps))  # a kill came between the save and this
        try:
            while self.state.step < self.plan.total_steps and stopped is None:
                late = self._limit is not None and self._limit.is_reached(time.monotonic())
                stopped = self._step(loader, late)
        finally:
            loader.close()
        self._save_if(due=True, wait=True)
        self._evaluate_if(due=stopped is None)
        if stopped:
            with self._noting_faults():
                self.stop.remove_file()
        self._record("stop" if stopped else "end", **({"reason": stopped} if stopped else {}))
        # All wait for rank 0's last lines: a launcher ends the ranks that are left as soon as one exits.
        (faults,) = dist.sum_integers([self._fault is not None])
        self._share_faults(faults)
        return stopped

    def close(self) -> None:
        """Closes the sinks and the progress bar."""
        self.progress.close()
        for sink in self.sinks:
            sink.close()

    def _step(self, loader: Steps, late: bool) -> str | None:
        """One optimizer step and what is due after it; why the run should stop now, as all ranks agree."""
        began = time.perf_counter()
        step = self._read(loader)
        waited = time.perf_counter() - began
        mine = sum(self.task.weight(batch) for batch in step.batches)
        # The one exchange a step on the host: all ranks learn the divisor, and whether any should stop, cannot write or
        # cannot read.
        written = self._pending is not None and self._pending.is_written
        flags = [self.stop.reason is not None, late, self._fault is not None, self._data_fault is not None, written]
        weight, signals, deadlines, faults, data_faults, saved = dist.sum_integers([mine, *flags])
        self._share_faults(faults)
        if saved == dist.size():
            self._finish_save()
        self._save_and_share(data_faults)
        lr = lr_at(self.state.step, self.recipe.optim, self.plan.total_steps)
        result = self.engine.train_step(step.batches, lr, weight)
        batch = self.plan.global_batch
        self.state = self.state.advance(batch, batch * self.plan.tokens_per_sample, skipped=result.skipped)
        self._digest, self._position = self._digest + step.digest, step.position
        self._report(result, lr, began, waited)
        self._guard_skips(result)
        self._save_if(due=self._due(self.recipe.checkpoint.every_steps))
        if signals:
            return self.stop.reason or "asked for on another rank"
        if deadlines:
            return f"train.max_hours={self.recipe.train.max_hours:g} is over but for the time to save"
        self._evaluate_if(due=self._due(self.recipe.evaluate.every_steps))
        return self._stop_step_reached()

    def _stop_step_reached(self) -> str | None:
        """The reason to stop that all ranks see without a word: the recipe's step, unless the run is at its end."""
        wanted = self.recipe.train.stop_at_step
        if wanted is None or not wanted <= self.state.step < self.plan.total_steps:
            return None
        return f"train.stop_at_step={wanted} is reached"

    def _read(self, loader: Steps) -> Step:
        try:
            return next(loader)
        except ScaleTrainError as error:  # told to all ranks: one that left here would keep the others waiting
            self._data_fault = error
            return Step([])

    def _save_and_share(self, data_faults: int) -> None:
        """Data that cannot be read ends the run on every rank, with the work saved."""
        if data_faults:
            self._save_if(due=self.state.step > 0, wait=True)
            with dist.together():
                if self._data_fault is not None:
                    raise self._data_fault

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step > 0 and self.state.step % every == 0

    def _guard_skips(self, result: StepResult) -> None:
        """Tells why an update was left out; ends the run, saved, when the recipe says so."""
        if not result.skipped:
            self.skips.note(None)
            return
        finite = dist.gather(bool(torch.isfinite(result.loss_sum)))
        batch = self.plan.global_batch
        first = self.state.samples_seen - batch
        cause = cause_of_skip(result.weight, finite, first, batch)
        ranks = [rank for rank, is_finite in enumerate(finite) if not is_finite]
        self._record("skip", reason=cause, first_sample=first, samples=batch, ranks=ranks)
        self.progress.say(
            f"skipped step {self.state.step}: {cause}; scaletrain audit {self.recipe.run.dir} --from {first} "
            f"--show {batch} shows them"
        )
        try:
            self.skips.note(cause)
        except TrainingError:
            self._save_if(due=True, wait=True)
            raise

    def _report(self, result: StepResult, lr: float, began: float, waited: float) -> None:
        step = self.state.step
        if not result.weight or not (self._due(self.recipe.log.every_steps) or step in (1, self.plan.total_steps)):
            self.meter.add(time.perf_counter() - began, waited)
            self.progress.step(step)
            return
        loss = result.loss()
        self.meter.add(time.perf_counter() - began, waited)
        values: dict[str, Any] = {
            "samples": self.state.samples_seen,
            "tokens": self.state.tokens_seen,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(result.grad_norm),
            **self.meter.read(),
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "skipped_steps": self.state.skipped_steps,
        }
        self._write(values)
        self.progress.metrics(step, values)

    def _evaluate_if(self, *, due: bool) -> None:
        if not due or self.validation is None or self.evaluated_step == self.state.step:
            return
        self._finish_save()  # an evaluation may be long: a kill in it should not cost the checkpoint before it
        began = time.perf_counter()
        wanted = self.recipe.evaluate
        size = wanted.batch_size or self.plan.micro_batch
        try:
            found = evaluate(self.engine, self.task, self.validation, size, wanted.max_samples)
        except ScaleTrainError:  # on all ranks at once: data that cannot be read
            self._save_if(due=self.state.step > 0, wait=True)
            raise
        self.evaluated_step = self.state.step
        self._write({f"eval_{name}": value for name, value in found.items()})
        self._record("evaluate", seconds=time.perf_counter() - began, **found)
        self.progress.say(
            f"step {self.state.step}  validation "
            + "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in found.items())
        )

    def _save_if(self, *, due: bool, wait: bool = False) -> None:
        """Begins a checkpoint if one is due and this step has none; with `wait` it is on the disk afterwards."""
        if due and self.saved_step != self.state.step:
            self._finish_save()  # one at a time: a slow disk holds training back
            extra = {"recipe": self.recipe.model_dump(mode="json"), "time": time.time(), "reading": self.record}
            (digest,) = dist.sum_modulo([self._digest])
            self.state, self._digest = self.state.with_samples(digest), 0
            with self._policy_for_failed_saves(must=wait):
                self._pending = checkpoint.begin(
                    self.checkpoints, self.engine, self.state, self.identity, extra, self._position,
                    background=self.recipe.checkpoint.background and not wait,
                )  # fmt: skip
                self.saved_step = self.state.step
        if wait or not self.recipe.checkpoint.background:
            self._finish_save(must=wait)

    def _finish_save(self, *, must: bool = False) -> None:
        """Makes the checkpoint that is being written count, once all ranks have written it."""
        if (pending := self._pending) is None:
            return
        self._pending = None
        with self._policy_for_failed_saves(must=must):
            saved = checkpoint.finish(pending)
            if self._limit is not None:
                self._limit.note_save(saved["seconds"])
            state = pending.state.to_dict()
            with self._noting_faults():
                counters = {name: state[name] for name in ("samples_seen", "sample_digest")}
                self.events.write("checkpoint", pending.state.step, **saved, **counters)
            if dist.rank() == 0:
                wanted = self.recipe.checkpoint
                checkpoint.clean(self.checkpoints, wanted.keep_last, wanted.keep_every_steps)

    @contextmanager
    def _policy_for_failed_saves(self, *, must: bool) -> Iterator[None]:
        """A checkpoint that cannot be written ends the run, on all ranks, unless the recipe has it continue."""
        try:
            yield
        except CheckpointError as error:
            if must or self.recipe.checkpoint.on_failure == "stop":
                raise
            self.saved_step = None
            self._record("checkpoint_failed", reason=str(error))
            self.progress.say(f"warning {error}; training goes on, as checkpoint.on_failure=continue asks")

    def _write(self, values: dict[str, Any]) -> None:
        with self._noting_faults():
            for sink in self.sinks:
                sink.write(self.state.step, values)

    def _record(self, event: str, **values: Any) -> None:
        with self._noting_faults():
            self.events.write(event, self.state.step, **values)

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        """Only rank 0 writes these files: a full disk is told to all ranks at the next step, so that none is left."""
        try:
            yield
        except OSError as error:
            self._fault = self._fault or error

    def _share_faults(self, faults: int) -> None:
        if faults:
            with dist.together():
                if self._fault is not None:
                    raise self._fault
