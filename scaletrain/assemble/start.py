"""A settled recipe becomes a run: the one place that knows every part."""

import os
import time
from pathlib import Path

from scaletrain.assemble.settle import Settled
from scaletrain.config.data_rules import unreached_stages
from scaletrain.config.load import dump_recipe
from scaletrain.data.loader import Loader
from scaletrain.data.order import Share
from scaletrain.data.reader import raise_open_files
from scaletrain.data.run_data import RunData
from scaletrain.data.training_data import Reading
from scaletrain.engine import checkpoint, run_folder
from scaletrain.engine.checkpoint import Found
from scaletrain.engine.engine import Engine
from scaletrain.engine.guard import SkipGuard
from scaletrain.engine.plan import Plan, end_before_repeats
from scaletrain.engine.state import RunState
from scaletrain.engine.trainer import Trainer
from scaletrain.errors import ConfigError
from scaletrain.runtime import dist
from scaletrain.runtime.log import Terminal
from scaletrain.runtime.stop import StopRequest
from scaletrain.tasks.pretrain import PretrainTask
from scaletrain.track.meter import Meter
from scaletrain.track.peak import Peak
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, JsonLines, Sink, TensorBoard, last_evaluation


def start_pretraining(settled: Settled, peak: Peak, terminal: Terminal, began: float) -> Trainer:
    """Builds every part and resumes from the newest good checkpoint of the run folder.

    All ranks call it, inside a held run folder (see run_folder.hold) and a joined group. `began`: time.time() of the
    program's start.
    """
    recipe, world, device = settled.recipe, settled.world, settled.device
    folder, first = Path(recipe.run.dir), world.is_first
    raise_open_files()
    events = Events(folder / "events.jsonl" if first else None, world.rank)
    progress = RunProgress(terminal.out if first else None)
    with dist.together():
        found = _resume_point(settled, events, progress)
    state = found.state if found is not None else RunState()
    recorded = found.manifest["reading"] if found is not None else {}
    with dist.together():
        data = settled.data.renumbered(recorded)
        reading = data.reading(recorded, state.samples_seen)
        data.check_length(settled.batch.global_batch)
        validation = data.validation_rows()
        wanted = settled.plan(state)
        limit = data.repeat_limit(reading.order, wanted.total_samples)
        plan = end_before_repeats(wanted, state, limit, stops=data.options.on_repeat_limit == "stop")
    planned = reading.planned(plan.total_samples)
    progress.say(_plan_line(plan, data, wanted.total_steps))
    for line in unreached_stages(data.options, plan.total_samples * plan.tokens_per_sample):
        progress.say(f"note    {line}")
    for name, samples in planned.items():
        progress.say(f"source  {name}: {samples:,} samples, {samples / len(data.train[name]):.2f} epochs of it")
    task = PretrainTask(
        settled.architecture,
        data,
        seed=recipe.seed,
        init_from=Path(recipe.model.init_from) if recipe.model.init_from else None,
        activation_checkpointing=recipe.train.activation_checkpointing,
    )
    engine = Engine(task, settled.deepspeed, recipe.optim, device)
    if found is not None:
        engine.load(found.folder, found.manifest["files"])
    changed = checkpoint.changed_layout(found, settled.identity) if found is not None else None
    hosts = sorted(set(dist.gather(os.uname().nodename)))
    with dist.together():
        sinks = _begin_records(settled, state) if first else []
        if first:
            events.write(
                "resume" if found else "start",
                state.step,
                samples_seen=state.samples_seen,
                ranks=world.size,
                hosts=hosts,
                seconds=time.time() - began,
                sample_digest=state.to_dict()["sample_digest"],
                **({"checkpoint": found.folder.name} if found else {}),
                **({"resharded": changed} if changed else {}),
            )
            _record_data(events, state, data, reading, planned)
            if limit is not None:
                events.write("repeat_limit", state.step, source=limit[1], samples=limit[0], last_step=plan.total_steps)
    evaluated = dist.gather(last_evaluation(folder / "metrics.jsonl") if first else None)[0]
    if reading.is_changed:
        progress.say("mixture the weights differ from those so far: they hold from here on")
    if found is not None:
        progress.say(f"resume  from step {state.step:,}, {state.samples_seen:,} samples seen")
        if changed is not None:
            progress.say(f"reshard {changed}")
    progress.start(state.step, plan.total_steps)
    share = Share(world.rank, world.size, settled.batch.micro_batch, settled.batch.accumulation)
    position = checkpoint.read_position(found) if found is not None else None
    stop = StopRequest(folder / "stop" if first else None, began)
    with dist.together():
        if stop.remove_old_file():
            progress.say(f"note    {folder / 'stop'} is older than this launch: removed, not obeyed")
    stop.listen(  # CROSS_RANK is set by DeepSpeed's launcher alone, GROUP_RANK by torchrun
        watch_launcher=not os.environ.keys().isdisjoint({"CROSS_RANK", "GROUP_RANK"}),
        watch_its_parent="CROSS_RANK" in os.environ,
    )
    return Trainer(
        recipe=recipe,
        plan=plan,
        task=task,
        engine=engine,
        validation=validation,
        open_loader=lambda start: Loader(
            data.steps(reading, share, start=start, position=position, pin=device.type == "cuda"),
            recipe.data.prefetch_steps,
        ),
        identity=settled.identity,
        device=device,
        meter=Meter(
            settled.batch.global_batch * recipe.data.context_length,
            settled.flops_per_token,
            peak.flops * world.size if peak.flops else None,
        ),
        sinks=sinks,
        events=events,
        progress=progress,
        stop=stop,
        state=state,
        skips=SkipGuard(recipe.guard),
        record=reading.record,
        saved_step=state.step if found else None,
        evaluated_step=evaluated,
    )


def _resume_point(settled: Settled, events: Events, progress: RunProgress) -> Found | None:
    root = Path(settled.recipe.run.dir) / "checkpoints"
    damaged: dict[str, str] = {}
    found = checkpoint.newest_good(root, damaged.__setitem__)
    for name, why in damaged.items():
        events.write("bad_checkpoint", 0, checkpoint=name, reason=why)
        progress.say(f"passed over {name}: {why}")
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


def _begin_records(settled: Settled, state: RunState) -> list[Sink]:
    """Rank 0's files of the run folder, from `state` on."""
    recipe, folder = settled.recipe, Path(settled.recipe.run.dir)
    run_folder.describe(folder, dump_recipe(recipe), settled.world, settled.device, settled.deepspeed)
    run_folder.keep_tokenizer(folder, settled.data.tokenizer_folder)
    checkpoint.clean(folder / "checkpoints")
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl", state.step)]
    if recipe.log.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", state.step))
    return sinks


def _record_data(events: Events, state: RunState, data: RunData, reading: Reading, planned: dict[str, int]) -> None:
    events.write("data", state.step, **data.report(), **reading.record, planned_samples=planned)
    if reading.is_changed:
        events.write("mixture", state.step, samples_seen=state.samples_seen, **reading.record)


def _plan_line(plan: Plan, data: RunData, wanted_steps: int) -> str:
    tokens, stored = plan.total_samples * plan.tokens_per_sample, data.tokens("train")
    passes = f", {tokens / stored:.2f} epochs" if stored else ""
    ended = f"; of {wanted_steps:,} asked for, as max_epochs allows" if plan.total_steps < wanted_steps else ""
    return (
        f"plan    {plan.total_steps:,} steps x {plan.global_batch} samples x {plan.tokens_per_sample} tokens = "
        f"{tokens:,} tokens{passes}{ended}"
    )
