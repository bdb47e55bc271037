"""A recipe becomes a run: the one file that knows every part."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import Architecture, architecture_problems, resolve_architecture
from scaletrain.config.deepspeed import (
    BatchPlan,
    batch_plan,
    check_keys,
    engine_config,
    load_deepspeed,
    settle,
    zero_stage,
)
from scaletrain.config.load import dump_recipe, load_recipe
from scaletrain.config.schema import Precision, Recipe
from scaletrain.data.live.text import open_live_text
from scaletrain.data.loader import Loader
from scaletrain.data.order import Share
from scaletrain.data.reader import raise_open_files
from scaletrain.data.run_data import RunData
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.data.training_data import Reading, open_training_data
from scaletrain.engine import checkpoint, run_folder
from scaletrain.engine.checkpoint import Found, Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.engine.trainer import Plan, Trainer
from scaletrain.errors import ClusterError, ConfigError, DataError
from scaletrain.model.count import flops_per_token
from scaletrain.model.hf import architecture_from_hf
from scaletrain.runtime import dist
from scaletrain.runtime.dist import World
from scaletrain.runtime.log import Terminal
from scaletrain.runtime.machine import cores
from scaletrain.runtime.stop import StopRequest
from scaletrain.tasks.pretrain import PretrainTask
from scaletrain.track.meter import Meter
from scaletrain.track.peak import Peak, peak_of
from scaletrain.track.progress import RunProgress
from scaletrain.track.sinks import Events, JsonLines, Sink, TensorBoard, last_evaluation

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Settled:
    """A recipe with everything decided that this launch decides; checked, and nothing written yet."""

    recipe: Recipe
    preset: dict[str, Any]
    precision: Precision
    batch: BatchPlan
    data: RunData
    architecture: Architecture
    deepspeed: dict[str, Any]
    world: World
    device: torch.device

    @property
    def plan(self) -> Plan:
        recipe, context = self.recipe, self.recipe.data.context_length
        steps = recipe.train.max_steps or -(-(recipe.train.max_tokens or 0) // (self.batch.global_batch * context))
        return Plan(steps, self.batch.global_batch, self.batch.micro_batch, context)

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.architecture, self.recipe.data.context_length)

    @property
    def identity(self) -> Identity:
        return Identity(
            layout={"ranks": self.world.size, "zero_stage": zero_stage(self.preset), "precision": self.precision},
            model=asdict(self.architecture),
            data=self.data.identity(),
        )


def settle_recipe(path: Path, overrides: Sequence[str], deepspeed_config: str | None) -> Settled:
    """Reads and checks a recipe for this launch. Raises a ScaleTrainError for anything that cannot run."""
    world = read_world(os.environ)
    recipe = load_recipe(path, overrides, deepspeed_config)
    preset = load_deepspeed(Path(recipe.deepspeed))
    check_keys(preset, recipe.deepspeed)
    recipe = settle(recipe, preset)
    device = dist.device_of(world)
    precision = recipe.train.precision or best_precision(device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    batch = batch_plan(recipe, world.size)
    data = _open_data(recipe, world)
    return Settled(
        recipe=recipe,
        preset=preset,
        precision=precision,
        batch=batch,
        data=data,
        architecture=_architecture(recipe, data),
        deepspeed=engine_config(recipe, preset, ranks=world.size, precision=precision),
        world=world,
        device=device,
    )


def _open_data(recipe: Recipe, world: World) -> RunData:
    if recipe.data.source == "huggingface":
        return open_live_text(recipe.data, recipe.seed, rank=world.rank, ranks=world.size)
    return open_training_data(recipe.data, recipe.seed)


def _architecture(recipe: Recipe, data: RunData) -> Architecture:
    """From the recipe's sizes, or from the Hugging Face folder that training starts from."""
    tokenizer, context = data.tokenizer, recipe.data.context_length
    if recipe.model.init_from is None:
        return resolve_architecture(recipe.model, tokenizer.vocab_size, context)
    folder = Path(recipe.model.init_from)
    architecture = architecture_from_hf(folder)
    given = recipe.model.model_dump(exclude_none=True, exclude={"init_from"})
    problems = [
        f"model.{name}={value} differs from the {getattr(architecture, name)} of {folder}: remove it"
        for name, value in given.items()
        if getattr(architecture, name) != value
    ]
    if problems := problems + architecture_problems(architecture, tokenizer.vocab_size, context):
        raise ConfigError("; ".join(problems))
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if has_tokenizer and load_tokenizer(folder).fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{data.name} was prepared with the tokenizer {tokenizer.name}, not with that of {folder}: prepare the "
            f"text again with --tokenizer {folder}"
        )
    return architecture


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device computes in it, else fp32: without the instructions a CPU emulates bf16 slowly."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "fp32"
    return "bf16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else "fp32"


def set_threads(world: World) -> None:
    """Shares the cores of this machine among its ranks, unless OMP_NUM_THREADS says otherwise.

    Left alone each rank takes all cores: a first step of 0.1 s takes 2.5 to 4 s with two ranks on two cores.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is None or (given == "1" and "TORCHELASTIC_RUN_ID" in os.environ):  # torchrun sets 1 by itself
        torch.set_num_threads(max(1, cores() // world.local_size))


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
        plan = _within_repeats(data, reading, settled, progress)
    planned = reading.planned(plan.total_steps * plan.global_batch)
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
        engine.load(found.folder)
    hosts = sorted(set(dist.gather(os.uname().nodename)))
    sinks: list[Sink] = []
    with dist.together():
        if first:
            run_folder.describe(folder, dump_recipe(recipe), world, device, settled.deepspeed)
            run_folder.keep_tokenizer(folder, data.tokenizer_folder)
            checkpoint.clean(folder / "checkpoints")
            sinks.append(JsonLines(folder / "metrics.jsonl", state.step))
            if recipe.log.tensorboard:
                sinks.append(TensorBoard(folder / "tensorboard", state.step))
            events.write(
                "resume" if found else "start",
                state.step,
                samples_seen=state.samples_seen,
                ranks=world.size,
                hosts=hosts,
                seconds=time.time() - began,
                sample_digest=state.to_dict()["sample_digest"],
                **({"checkpoint": found.folder.name} if found else {}),
            )
            events.write("data", state.step, **data.report(), **reading.record, planned_samples=planned)
            if reading.is_changed:
                events.write("mixture", state.step, samples_seen=state.samples_seen, **reading.record)
    evaluated = dist.gather(last_evaluation(folder / "metrics.jsonl") if first else None)[0]
    if reading.is_changed:
        progress.say("mixture the weights differ from those so far: they hold from here on")
    if found is not None:
        progress.say(f"resume  from step {state.step:,}, {state.samples_seen:,} samples seen")
    progress.start(state.step, plan.total_steps)
    share = Share(world.rank, world.size, settled.batch.micro_batch, settled.batch.accumulation)
    position = checkpoint.read_position(found) if found is not None else None
    stop = StopRequest()
    stop.listen(watch_launcher="CROSS_RANK" in os.environ)  # set by DeepSpeed's launcher alone
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
        record=reading.record,
        saved_step=state.step if found else None,
        evaluated_step=evaluated,
    )


def check_agreement(settled: Settled) -> None:
    """ClusterError when the nodes' copies of recipe, DeepSpeed file or dataset differ. All ranks call it."""
    mine = {
        "recipe": dump_recipe(settled.recipe.model_copy(update={"deepspeed": ""})),  # nodes may keep it elsewhere
        "DeepSpeed file": json.dumps(settled.deepspeed, sort_keys=True),
        "model or dataset": json.dumps(settled.identity.to_dict(), sort_keys=True),
    }
    everyone = dist.gather((os.uname().nodename, mine))
    for node, theirs in everyone:
        if differing := [name for name, value in theirs.items() if value != everyone[0][1][name]]:
            raise ClusterError(
                f"{' and '.join(differing)} on {node} differ from those on {everyone[0][0]}: copy them to every node, "
                "or put them on a disk that all share"
            )


def measure_peak(settled: Settled) -> Peak:
    """What MFU divides by, for each rank."""
    return peak_of(settled.device, DTYPES[settled.precision])


def _within_repeats(data: RunData, reading: Reading, settled: Settled, progress: RunProgress) -> Plan:
    """The plan, ended before a source is read more often than its max_epochs; DataError if the recipe says so."""
    plan = settled.plan
    found = data.repeat_limit(reading.order, plan.total_steps * plan.global_batch)
    if found is None:
        return plan
    position, name = found
    steps = position // plan.global_batch
    text = f"data source {name} would be read more often than its max_epochs from step {steps + 1:,} on"
    if data.options.on_repeat_limit == "error" or not steps:
        raise DataError(
            f"{text} of {plan.total_steps:,}: lower its weight or the run's length, raise max_epochs, or set "
            "data.on_repeat_limit=stop"
        )
    progress.say(f"data    {text}: the run ends at step {steps:,} of {plan.total_steps:,}")
    return replace(plan, total_steps=steps)


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
