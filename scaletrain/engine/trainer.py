"""The loop: read, step, count; and when due log, evaluate, save, go back or stop."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from scaletrain.config.schema import BaseRecipe, profiled
from scaletrain.data.loader import Step
from scaletrain.data.order import Share
from scaletrain.data.rows import Rows
from scaletrain.engine import garbage
from scaletrain.engine.engine import Engine, StepResult
from scaletrain.engine.evaluate import Evaluation, evaluate
from scaletrain.engine.guard import GoBack
from scaletrain.engine.plan import Plan
from scaletrain.engine.predictions import keep_predictions
from scaletrain.engine.records import Records
from scaletrain.engine.roll_back import NoTarget, RollBacks
from scaletrain.engine.saver import Saver
from scaletrain.engine.state import RunState
from scaletrain.engine.step_profile import StepProfile
from scaletrain.engine.watch import Watch
from scaletrain.errors import DataError, ScaleTrainError, TrainingError
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist, pulse
from scaletrain.runtime.seed import seed_step
from scaletrain.runtime.stop import StopRequest, TimeLimit
from scaletrain.tasks.scores.result import shown
from scaletrain.tasks.task import Task
from scaletrain.track.meter import Meter, peak_memory_bytes


class Steps(Protocol):
    """The loader, seen from here."""

    def __next__(self) -> Step: ...
    def close(self) -> None: ...


class Source(Protocol):
    """Where the samples of a run come from, and how far it goes with them."""

    def open(self, start: int) -> Steps:
        """Steps from sample `start` of the run on."""
        ...

    def digest(self, start: int, end: int) -> int:
        """Which samples stand at positions start..end-1 of the run, see data/order.py."""
        ...

    def plan(self, state: RunState) -> Plan: ...


class Exchange(NamedTuple):
    """What all ranks learn at each step, summed over them."""

    weight: float  # loss-bearing tokens of the batch
    tokens: float  # that it reads
    signals: float  # ranks that should stop
    deadlines: float  # ranks whose time is over
    faults: float  # ranks that cannot write their records
    data_faults: float  # ranks that cannot read
    written: float  # ranks that have written their part of the checkpoint
    loss: float  # sum of the step before, whose copy to the host is there by now


@dataclass
class Trainer:
    """Everything that a run needs, put together by assemble/start.py."""

    recipe: BaseRecipe
    plan: Plan
    task: Task
    engine: Engine
    share: Share
    validation: Rows | None
    source: Source
    device: torch.device
    meter: Meter
    records: Records
    saver: Saver
    watch: Watch
    stop: StopRequest
    state: RunState
    roll_backs: RollBacks
    evaluated_step: int | None = None  # of the last evaluation in metrics.jsonl
    _loader: Steps | None = None
    _data_fault: ScaleTrainError | None = None
    _last: StepResult | None = field(default=None, init=False)  # of the step before

    def run(self) -> str | None:
        """Trains to the end or to a stop. Returns None at the end, else why it stopped; either way all is saved."""
        if hours := self.recipe.train.max_hours:
            self.saver.limit = TimeLimit(hours * 3600, time.monotonic() - (time.time() - self.stop.launched))
        if stopped := self._stop_step_reached():
            stopped += " already, no step was trained"
        self._evaluate_if(due=self._due(self.recipe.evaluate.every_steps))  # a kill came between the save and this
        if self.evaluated_step == self.state.step:
            self._end_without_progress()  # as it did before this launch
        profile = StepProfile(Path(self.recipe.run.dir) / "profile", profiled(self.recipe.train), self.device)
        try:
            with garbage.held_off():
                while self.state.step < self.plan.total_steps and stopped is None:
                    with profile.around(self.state.step + 1):
                        stopped = self._step_or_go_back()
                    garbage.collect_if_due(self.state.step)
        except TrainingError:
            self._save(wait=True)
            raise
        finally:
            profile.close(self.state.step)
            self._close_loader()
        self._save(wait=True)
        self._evaluate_if(due=stopped is None)
        if stopped:
            with self.records.noting_faults():
                self.stop.remove_file()
        self.records.event("stop" if stopped else "end", self.state.step, **({"reason": stopped} if stopped else {}))
        # All wait for rank 0's last lines: a launcher ends the ranks that are left as soon as one exits.
        (faults,) = dist.sum_integers([self.records.fault is not None])
        self.records.share_faults(faults)
        return stopped

    def _step_or_go_back(self) -> str | None:
        start = self.roll_backs.next_sample(self.state.samples_seen, self.plan.global_batch)
        if start != self.state.samples_seen:
            self._close_loader()
            self._pass_over(start)
            if self.state.step >= self.plan.total_steps:
                return None  # nothing is left after them
        self._loader = self._loader or self.source.open(start)
        try:
            return self._step(self._loader)
        except GoBack as back:
            self._close_loader()
            self._go_back(back)
            return None

    def _step(self, loader: Steps) -> str | None:
        """One optimizer step and what is due after it; why the run should stop now, as all ranks agree."""
        began = time.perf_counter()
        pulse.mark("data", self.state.step + 1)
        step = self._read(loader)
        waited = time.perf_counter() - began
        told = self._exchange(step)
        self.records.share_faults(int(told.faults))
        if told.written == dist.size():
            self.saver.finish()
        self._share_data_fault(int(told.data_faults))
        if self._last is not None and not self._last.skipped:
            self.watch.loss(told.loss / self._last.weight, self.state, self.plan.global_batch)
        lr = lr_at(self.state.step, self.recipe.optim, self.plan.total_steps)
        seed_step(self.recipe.seed, self.state.samples_seen)
        self._last = result = self.engine.train_step(step.batches, lr, int(told.weight))
        batch = self.plan.global_batch
        self.state = self.state.advance(batch, int(told.tokens), skipped=result.skipped)
        self.saver.note(step)
        self._report(result, int(told.tokens), lr, began, waited)
        self.watch.update(result, self.state, batch)
        if dist.size() > 1 and self._due(self.recipe.guard.compare_every_steps):
            self.watch.weights(self.engine.weights_digest(), self.state)
        if self._due(self.recipe.checkpoint.every_steps):
            self._save()
        if told.signals:
            return self.stop.reason or "asked for on another rank"
        if told.deadlines:
            return f"train.max_hours={self.recipe.train.max_hours:g} is over but for the time to save"
        self._evaluate_if(due=self._due(self.recipe.evaluate.every_steps))
        return self._stop_step_reached()

    def _exchange(self, step: Step) -> Exchange:
        """The one on the host in a step; all ranks call it."""
        limit, last = self.saver.limit, self._last
        mine = Exchange(
            weight=sum(self.task.weight(batch) for batch in step.batches),
            tokens=sum(self.task.tokens(batch) for batch in step.batches),
            signals=bool(self.stop.reason),
            deadlines=limit is not None and limit.is_reached(time.monotonic()),
            faults=self.records.fault is not None,
            data_faults=self._data_fault is not None,
            written=self.saver.is_written,
            loss=sum(last.micro_losses()) if last is not None and not last.skipped else 0.0,
        )
        pulse.mark("exchange")
        return Exchange(*dist.sum_numbers(list(mine)))

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

    def _share_data_fault(self, data_faults: int) -> None:
        """Data that cannot be read ends the run on every rank, with the work saved."""
        if data_faults:
            if self.state.step > 0:
                self._save(wait=True)
            with dist.together():
                if self._data_fault is not None:
                    raise self._data_fault

    def _go_back(self, back: GoBack) -> None:
        """To the newest checkpoint from before the fault; the next step begins after the samples that brought it.

        Where there is none, or no data after those samples, the run goes on as it is.
        """
        self.saver.finish()
        self._last = None
        try:
            found = self.roll_backs.target(back, lambda name, why: self.records.say(f"passed over {name}: {why}"))
            self.source.plan(found.state.pass_over(back.end))
        except (NoTarget, DataError) as error:
            self.records.event("no_roll_back", self.state.step, reason=back.reason, obstacle=str(error))
            self.records.say(f"note    training goes on at step {self.state.step:,} without a roll-back: {error}")
            return
        self.roll_backs.carry_out(found, back)
        from_step, self.state = self.state.step, found.state
        self.engine.load(found.folder, found.manifest["files"], found.manifest.get("digest"))
        self.saver.go_back(self.state.step)
        self.watch.went_back(found.manifest.get("guard", {}), self.state.samples_seen)
        self.records.rewind(self.state.step)
        if self.evaluated_step is not None and self.evaluated_step > self.state.step:
            self.evaluated_step = None
        self.records.event(
            "roll_back",
            self.state.step,
            checkpoint=found.folder.name,
            from_step=from_step,
            reason=back.reason,
            **self.state.counted_samples,
        )
        self.records.say(
            f"back    from step {from_step:,} to {found.folder.name}; newer checkpoints are set aside: {back.reason}"
        )

    def _pass_over(self, start: int) -> None:
        """The run goes on at sample `start`, as if it had read those before."""
        first = self.state.samples_seen
        more = self.source.digest(first, start) if dist.rank() == 0 else 0
        self.state = self.saver.count_samples(self.state, more).pass_over(start)
        self.plan = self.source.plan(self.state)
        self.records.event(
            "pass_over", self.state.step, first_sample=first, samples=start - first, **self.state.counted_samples
        )
        self.records.say(f"pass    over samples {first:,} to {start - 1:,} of the run, which nothing is learned from")

    def _close_loader(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step > 0 and self.state.step % every == 0

    def _report(self, result: StepResult, tokens: int, lr: float, began: float, waited: float) -> None:
        step = self.state.step
        is_logged = self._due(self.recipe.log.every_steps) or step in (1, self.plan.total_steps)
        loss = result.loss() if result.weight and is_logged else None  # waits for the device: part of the step's time
        self.meter.add(tokens, time.perf_counter() - began, waited, result.part_seconds)
        if loss is None:
            self.records.progress.step(step)
            return
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
        values |= self.watch.seconds(values["data_wait_seconds"] + values["forward_seconds"], step)
        self.records.metrics(step, values)
        self.records.progress.metrics(step, values)

    def _evaluate_if(self, *, due: bool) -> None:
        if not due or self.validation is None or self.evaluated_step == self.state.step:
            return
        self.saver.finish()  # an evaluation may be long: a kill in it should not cost the checkpoint before it
        pulse.mark("evaluation")
        began = time.perf_counter()
        wanted = self.recipe.evaluate
        share = replace(self.share, micro_batch=wanted.batch_size or self.share.micro_batch)
        try:
            with garbage.let_in():
                found = evaluate(self.engine, self.task, self.validation, share, wanted.max_samples)
                texts = self.engine.texts()
        except ScaleTrainError:  # on all ranks at once: data that cannot be read
            if self.state.step > 0:
                self._save(wait=True)
            raise
        # First, as a launch that finds the metrics of an evaluation takes it for judged.
        self.state = self.saver.judge(self.state, found.scores.values, self.watch.memory)
        self.evaluated_step = self.state.step
        self._keep_predictions(found)
        self.records.metrics(self.state.step, {f"eval_{name}": value for name, value in found.scores.values.items()})
        self.records.event("evaluate", self.state.step, seconds=time.perf_counter() - began, **found.scores.values)
        self.records.say(f"step {self.state.step}  validation {shown(found.scores.values)}")
        if texts:
            self.records.event("texts", self.state.step, texts=texts)
            for one in texts:
                self.records.say(f"writes  {one['prompt']!r} ... {one['text']!r}")
        self._end_without_progress()

    def _keep_predictions(self, found: Evaluation) -> None:
        if found.predictions and dist.rank() == 0:
            best = self.saver.best.step if self.saver.best is not None else None
            with self.records.noting_faults():
                keep_predictions(Path(self.recipe.run.dir), self.state.step, found, best)

    def _end_without_progress(self) -> None:
        """Ends the run here when the last evaluate.patience evaluations brought no better one."""
        patience, every = self.recipe.evaluate.patience, self.recipe.evaluate.every_steps
        best = self.saver.best
        if patience is None or every is None or best is None or self.state.step >= self.plan.total_steps:
            return
        if self.state.step // every - best.step // every >= patience:
            self.plan = replace(self.plan, total_steps=self.state.step)
            self.records.event("early_stop", self.state.step, metric=best.metric, value=best.value, best=best.step)
            self.records.say(
                f"early   no {best.metric} is better than {best.value:.4f} of step {best.step:,} for {patience} "
                "evaluations: the run ends here, as evaluate.patience asks"
            )

    def _save(self, *, wait: bool = False) -> None:
        pulse.mark("checkpoint")
        self.state = self.saver.save(self.state, self.watch.memory, wait=wait)
