"""A settled recipe becomes a run: the one place that knows every part."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from scaletrain.assemble.settle import Settled
from scaletrain.assemble.source import RunSource
from scaletrain.cluster.doctor.finding import Finding
from scaletrain.config.load import dump_recipe
from scaletrain.config.schema import BaseRecipe, Checkpoint
from scaletrain.data.reader import raise_open_files
from scaletrain.data.rows import Rows
from scaletrain.data.run_data import RunData
from scaletrain.data.training_data import Reading
from scaletrain.engine import checkpoint, run_folder
from scaletrain.engine.checkpoint import Found
from scaletrain.engine.engine import Engine
from scaletrain.engine.plan import Plan
from scaletrain.engine.records import Records
from scaletrain.engine.roll_back import open_roll_backs
from scaletrain.engine.saver import Saver
from scaletrain.engine.state import RunState
from scaletrain.engine.trainer import Trainer
from scaletrain.engine.watch import Watch
from scaletrain.errors import ConfigError
from scaletrain.runtime import dist
from scaletrain.runtime.log import Terminal
from scaletrain.runtime.run_files import EVENTS, METRICS
from scaletrain.runtime.stop import StopRequest
from scaletrain.tasks.task import Task
from scaletrain.track.flat import flatten
from scaletrain.track.meter import Meter
from scaletrain.track.peak import Peak
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, JsonLines, Sink, TensorBoard, last_evaluation
from scaletrain.track.tracker_sink import TrackerSink
from scaletrain.track.trackers import TRACKERS, TrackedRun, tracker_id

_FILLED = 0.99  # of a sample's places that hold tokens, from which on all count
_USEFUL_EPOCHS = 16


def start_run(settled: Settled, peak: Peak, findings: Sequence[Finding], terminal: Terminal, began: float) -> Trainer:
    """Builds every part and resumes from the newest good checkpoint of the run folder.

    All ranks call it, inside a held run folder (see run_folder.hold) and a joined group. `findings`: of the
    nodes. `began`: time.time() of the program's start.
    """
    recipe, world, device = settled.recipe, settled.world, settled.device
    folder, first = Path(recipe.run.dir), world.is_first
    root = folder / "checkpoints"
    raise_open_files()
    events = Events(folder / EVENTS if first else None, world.rank)
    progress = RunProgress(terminal.out if first else None)
    roll_backs = open_roll_backs(root, recipe.guard.max_roll_backs, partial(_tell_bad, events, progress))
    with dist.together():
        found = _resume_point(settled, events, progress)
    state = found.state if found is not None else RunState()
    recorded = found.manifest["reading"] if found is not None else {}
    with dist.together():
        data = settled.job.data.renumbered(recorded)
        reading = data.reading(recorded, state.samples_seen)
        validation = data.validation_rows()
        position = checkpoint.read_position(found) if found is not None else None
        source = RunSource(settled, data, reading, position)
        wanted, limit, plan = settled.plan(state), source.limit(state), source.plan(state)
    best = dist.gather(checkpoint.read_best(root))[0]
    planned = reading.planned(plan.total_samples)
    _tell_plan(progress, plan, data, planned, wanted.total_steps)
    task = settled.job.task(data)
    _check_best(recipe.checkpoint, task, validation)
    engine = Engine(task, settled.deepspeed, recipe.optim, device)
    loaded = None
    if found is not None:
        loaded = engine.load(found.folder, found.manifest["files"], found.manifest.get("digest"))
    changed = checkpoint.changed_layout(found, settled.identity) if found is not None else None
    hosts = sorted(set(dist.gather(os.uname().nodename)))
    with dist.together():
        sinks = _begin_records(settled, state, progress) if first else []
        if first:
            events.write(
                "resume" if found else "start",
                state.step,
                ranks=world.size,
                hosts=hosts,
                seconds=time.time() - began,
                last_step=plan.total_steps,
                **state.counted_samples,
                **({"checkpoint": found.folder.name} if found else {}),
                **({"digest": loaded} if loaded else {}),
                **({"resharded": changed} if changed else {}),
            )
            _record_nodes(events, state, findings)
            _record_data(events, state, data, reading, planned)
            if limit is not None:
                events.write("repeat_limit", state.step, source=limit[1], samples=limit[0], last_step=plan.total_steps)
    evaluated = dist.gather(last_evaluation(folder / METRICS) if first else None)[0]
    if reading.is_changed:
        progress.say("mixture the weights differ from those so far: they hold from here on")
    if found is not None:
        progress.say(f"resume  from step {state.step:,}, {state.samples_seen:,} samples seen")
        if changed is not None:
            progress.say(f"reshard {changed}")
    progress.start(state.step, plan.total_steps)
    records = Records(sinks, events, progress)
    saved_step = state.step if found is not None else None
    saver = Saver(recipe, root, engine, settled.identity, reading.record, records, saved_step, best)
    return Trainer(
        recipe=recipe,
        plan=plan,
        task=task,
        engine=engine,
        share=settled.share,
        validation=validation,
        source=source,
        device=device,
        meter=Meter(
            settled.job.flops_per_token,
            peak.flops * world.size if peak.flops else None,
        ),
        records=records,
        saver=saver,
        watch=Watch(
            recipe,
            records,
            found.manifest.get("guard", {}) if found is not None else {},
            state.samples_seen,
            [segment["start"] for segment in reading.record.get("segments", [])],
        ),
        stop=_listen_for_stops(folder, progress, began),
        state=state,
        roll_backs=roll_backs,
        evaluated_step=evaluated,
    )


def _tell_plan(progress: RunProgress, plan: Plan, data: RunData, planned: Mapping[str, int], wanted_steps: int) -> None:
    progress.say(_plan_line(plan, data, wanted_steps))
    for line in _repeats(plan, data):
        progress.say(line)
    for line in data.plan_notes(plan.total_samples * plan.tokens_per_sample):
        progress.say(f"note    {line}")
    for name, samples in planned.items():
        progress.say(f"source  {name}: {samples:,} samples, {samples / len(data.train[name]):.2f} epochs of it")


def _check_best(wanted: Checkpoint, task: Task, validation: Rows | None) -> None:
    """ConfigError when the recipe asks for the best by a metric that no evaluation tells."""
    if wanted.best_metric is None:
        return
    if wanted.best_metric not in task.metric_names:
        raise ConfigError(
            f"checkpoint.best_metric={wanted.best_metric} is no value of an evaluation: choose one of "
            f"{', '.join(task.metric_names)}"
        )
    if validation is None:
        raise ConfigError(
            f"checkpoint.best_metric={wanted.best_metric} needs an evaluation and there is no validation data: prepare "
            "some, or leave it out"
        )


def _listen_for_stops(folder: Path, progress: RunProgress, began: float) -> StopRequest:
    stop = StopRequest(folder / "stop" if dist.rank() == 0 else None, began)
    with dist.together():
        if stop.remove_old_file():
            progress.say(f"note    {folder / 'stop'} is older than this launch: removed, not obeyed")
    stop.listen(  # CROSS_RANK is set by DeepSpeed's launcher alone, GROUP_RANK by torchrun
        watch_launcher=not os.environ.keys().isdisjoint({"CROSS_RANK", "GROUP_RANK"}),
        watch_its_parent="CROSS_RANK" in os.environ,
    )
    return stop


def _resume_point(settled: Settled, events: Events, progress: RunProgress) -> Found | None:
    root = Path(settled.recipe.run.dir) / "checkpoints"
    damaged: dict[str, str] = {}
    found = checkpoint.newest_good(root, damaged.__setitem__)
    for name, why in damaged.items():
        _tell_bad(events, progress, name, why)
    if found is None:
        return None
    if settled.recipe.checkpoint.resume == "never":
        raise ConfigError(
            f"run.dir={settled.recipe.run.dir} already holds {found.folder.name} and checkpoint.resume is never: "
            "choose another run.dir or checkpoint.resume=auto"
        )
    checkpoint.check_identity(found, settled.identity)
    if settled.world.is_first:
        checkpoint.set_aside(root, list(damaged))
    return found


def _tell_bad(events: Events, progress: RunProgress, name: str, why: str) -> None:
    events.write("bad_checkpoint", 0, checkpoint=name, reason=why)
    progress.say(f"passed over {name}: {why}")


def _begin_records(settled: Settled, state: RunState, progress: RunProgress) -> list[Sink]:
    """Rank 0's files of the run folder, and its trackers, from `state` on."""
    recipe, folder = settled.recipe, Path(settled.recipe.run.dir)
    run_folder.describe(folder, dump_recipe(recipe), settled.world, settled.device, settled.deepspeed)
    run_folder.keep_tokenizer(folder, settled.job.data.tokenizer_folder)
    checkpoint.clean(folder / "checkpoints")
    sinks: list[Sink] = [JsonLines(folder / METRICS, state.step)]
    if recipe.log.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", state.step))
    return [*sinks, *_open_trackers(recipe, folder, progress)]


def _open_trackers(recipe: BaseRecipe, folder: Path, progress: RunProgress) -> list[Sink]:
    if not recipe.log.trackers:
        return []
    parameters = flatten(recipe.model_dump(mode="json"))
    run = TrackedRun(tracker_id(folder), folder.absolute().name, recipe.log.tracker_project, folder, parameters)
    return [
        TrackerSink(name, partial(TRACKERS[name], run), progress.say) for name in dict.fromkeys(recipe.log.trackers)
    ]


def _record_nodes(events: Events, state: RunState, findings: Sequence[Finding]) -> None:
    if findings:
        events.write("doctor", state.step, findings=[asdict(finding) for finding in findings])


def _record_data(events: Events, state: RunState, data: RunData, reading: Reading, planned: dict[str, int]) -> None:
    events.write("data", state.step, **data.report(), **reading.record, planned_samples=planned)
    if reading.is_changed:
        events.write("mixture", state.step, samples_seen=state.samples_seen, **reading.record)


def _plan_line(plan: Plan, data: RunData, wanted_steps: int) -> str:
    rows, stored, most = sum(map(len, data.train.values())), data.tokens("train"), plan.tokens_per_sample
    passes = f", {plan.total_samples / rows:.2f} epochs" if rows else ""
    ended = f"; of {wanted_steps:,} asked for, as max_epochs allows" if plan.total_steps < wanted_steps else ""
    mean = min(most, stored / rows) if rows and stored else most
    is_filled = mean > _FILLED * most
    tokens = f"{plan.total_samples * most:,}" if is_filled else f"about {round(plan.total_samples * mean, -3):,.0f}"
    return (
        f"plan    {plan.total_steps:,} steps x {plan.global_batch} samples x {'' if is_filled else 'up to '}{most} "
        f"tokens = {tokens} tokens{passes}{ended}"
    )


def _repeats(plan: Plan, data: RunData) -> Iterator[str]:
    """What to say where the text is read so often that it teaches little more."""
    rows = sum(map(len, data.train.values()))
    if rows and plan.total_samples > _USEFUL_EPOCHS * rows:
        yield (
            f"note    the text is read {plan.total_samples / rows:,.0f} times: more than about {_USEFUL_EPOCHS} teach "
            "next to nothing (Muennighoff et al. 2023): prepare more text, or lower the run's length"
        )
