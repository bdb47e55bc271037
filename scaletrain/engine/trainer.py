"""The loop: read, step, count; and when due log, evaluate, save or stop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from scaletrain.config.schema import Recipe
from scaletrain.data.loader import Step
from scaletrain.data.rows import Rows
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine, StepResult
from scaletrain.engine.evaluate import evaluate
from scaletrain.engine.state import RunState
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.runtime.stop import StopRequest
from scaletrain.tasks.task import Task
from scaletrain.track.meter import Meter, peak_memory_bytes
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, Sink


class Steps(Protocol):
    """The loader, seen from here."""

    def __next__(self) -> Step: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How far and how often. Batches in samples, `total_steps` in optimizer steps of the whole run."""

    total_steps: int
    global_batch: int
    micro_batch: int
    tokens_per_sample: int


@dataclass
class Trainer:
    """Everything that a run needs, put together by assemble.py."""

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
    saved_step: int | None = None

    @property
    def checkpoints(self) -> Path:
        return Path(self.recipe.run.dir) / "checkpoints"

    def run(self) -> str | None:
        """Trains to the end or to a stop. Returns None at the end, else why it stopped; either way all is saved."""
        limit, first_step = self.recipe.train.max_hours, self.state.step
        deadline = time.monotonic() + limit * 3600 if limit else None
        loader = self.open_loader(self.state.samples_seen)
        stopped = None
        try:
            while self.state.step < self.plan.total_steps and stopped is None:
                late = deadline is not None and time.monotonic() >= deadline
                stopped = self._step(loader, late)
        finally:
            loader.close()
        trained = self.state.step > first_step
        self._evaluate_if(due=trained and stopped is None and not self._due(self.recipe.evaluate.every_steps))
        self._save_if(due=self.saved_step != self.state.step)
        self.events.write("stop" if stopped else "end", self.state.step, **({"reason": stopped} if stopped else {}))
        return stopped

    def close(self) -> None:
        """Closes the sinks and the progress bar."""
        self.progress.close()
        for sink in self.sinks:
            sink.close()

    def _step(self, loader: Steps, late: bool) -> str | None:
        """One optimizer step and what is due after it; why the run should stop now, as all ranks agree."""
        began = time.perf_counter()
        batches = next(loader)
        waited = time.perf_counter() - began
        mine = sum(self.task.weight(batch) for batch in batches)
        # The one exchange a step on the host: all ranks learn the divisor and whether any was told to stop.
        weight, signals, deadlines = dist.sum_integers([mine, self.stop.signal is not None, late])
        lr = lr_at(self.state.step, self.recipe.optim, self.plan.total_steps)
        result = self.engine.train_step(batches, lr, weight)
        batch = self.plan.global_batch
        self.state = self.state.advance(batch, batch * self.plan.tokens_per_sample)
        self._report(result, lr, began, waited)
        self._evaluate_if(due=self._due(self.recipe.evaluate.every_steps))
        self._save_if(due=self._due(self.recipe.checkpoint.every_steps))
        if signals:
            return self.stop.signal or "signal on another rank"
        return f"train.max_hours={self.recipe.train.max_hours:g} is over" if deadlines else None

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _report(self, result: StepResult, lr: float, began: float, waited: float) -> None:
        step = self.state.step
        if result.skipped:
            self.events.write("skip", step, reason="gradients not finite", samples_seen=self.state.samples_seen)
        if not (self._due(self.recipe.log.every_steps) or step in (1, self.plan.total_steps)):
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
            "skipped_steps": self.engine.skipped_steps,
        }
        self._write(values)
        self.progress.metrics(step, values)

    def _evaluate_if(self, *, due: bool) -> None:
        if not due or self.validation is None:
            return
        began = time.perf_counter()
        wanted = self.recipe.evaluate
        size = wanted.batch_size or self.plan.micro_batch
        found = evaluate(self.engine, self.task, self.validation, size, wanted.max_samples)
        self._write({f"eval_{name}": value for name, value in found.items()})
        self.events.write("evaluate", self.state.step, seconds=time.perf_counter() - began, **found)
        self.progress.say(
            f"step {self.state.step}  validation "
            + "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in found.items())
        )

    def _save_if(self, *, due: bool) -> None:
        if not due:
            return
        extra = {"recipe": self.recipe.model_dump(mode="json"), "time": time.time()}
        saved = checkpoint.save(self.checkpoints, self.engine, self.state, self.identity, extra)
        self.saved_step = self.state.step
        self.events.write("checkpoint", self.state.step, **saved)
        if dist.rank() == 0:
            checkpoint.clean(self.checkpoints, self.recipe.checkpoint.keep_last)

    def _write(self, values: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(self.state.step, values)
