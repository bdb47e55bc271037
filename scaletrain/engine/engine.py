"""One model under DeepSpeed: train a step, evaluate a batch, write and read its files."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from scaletrain.config.schema import Optim
from scaletrain.data.rows import Batch
from scaletrain.engine import digest, fragments, state_files
from scaletrain.engine.buckets import with_bucket_size, without_idle_overlap
from scaletrain.engine.optimizer import build_optimizer, forget_first_step, place_matrices
from scaletrain.engine.patches import (
    keep_gradients_in_place,
    load_muon_as_it_is,
    look_at_all_gradients_at_once,
    look_for_infinities_once,
    take_norm_at_once,
)
from scaletrain.engine.timing import DeviceTime
from scaletrain.engine.update import update_by_blocks
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.init import whole_parameter
from scaletrain.optim.eight_bit import pack_moments
from scaletrain.runtime import dist, pulse
from scaletrain.runtime.heap import keep_freed_memory
from scaletrain.runtime.idle_compiler import load_compiler, stand_in_for_compiler
from scaletrain.tasks.task import Evaluated, Task, Text


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `loss_sum` is this rank's, on the device; `weight` counts the loss-bearing items of all.

    `micro_losses()` are this rank's loss sums of its micro-batches, on the host, and none where there was nothing to
    learn: a call waits for the backward pass, not for the update. `part_seconds()`: what the device spent in forward
    passes, in backward passes and in the update, the waits for other ranks included; a call waits for all of it.
    `grad_norm` is the global norm before clipping, on the device where DeepSpeed leaves it there; not finite on a
    skipped step.
    """

    loss_sum: torch.Tensor
    weight: int
    grad_norm: torch.Tensor | float
    skipped: bool
    micro_losses: Callable[[], list[float]]
    part_seconds: Callable[[], dict[str, float]]

    def loss(self) -> float:
        """Mean loss an item over all ranks. A collective and a wait for the device: on logging steps only."""
        return float(dist.sum_tensors(self.loss_sum.double()).item()) / self.weight


class Engine:
    """`config` is the whole DeepSpeed dict (config/deepspeed.py); the optimizer and the learning rate are ours."""

    def __init__(self, task: Task, config: dict[str, Any], optim: Optim, device: torch.device) -> None:
        self._task, self._device = task, device
        self._kinds = fragments.KINDS_OF[optim.name]
        self._packs = optim.name == "adamw_8bit"
        self._zero_stage = int(config["zero_optimization"]["stage"])
        self._accumulation = int(config["gradient_accumulation_steps"])
        # At stage 0 in float32 DeepSpeed applies gradients that are not finite and tells no norm: we clip and skip.
        half = config.get("bf16", {}).get("enabled") or config.get("fp16", {}).get("enabled")
        self._clips = optim.grad_clip if self._zero_stage == 0 and not half else None
        if self._clips is not None:
            config = {**config, "gradient_clipping": 0.0}
        # ... and in fp16 it tells the norm of the gradients as they are scaled against underflow.
        self._scaled_norm = self._zero_stage == 0 and bool(config.get("fp16", {}).get("enabled"))
        try:
            self._engine = _initialize(task, config, optim, device)
        except ValidationError as error:  # ranges and cross-field rules of DeepSpeed's own config classes
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or error.title
            raise ConfigError(
                f"DeepSpeed refuses {name}={first['input']!r} ({first['msg']}): change it in the DeepSpeed file"
            ) from error

        self._host: torch.Tensor | None = None  # the state's copy in host memory, see writer
        module = self._engine.module
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._shapes = {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained.items()}
        self._tied = _tied_names(module)

    def train_step(self, batches: Sequence[Batch], lr: float, weight: int) -> StepResult:
        """One optimizer step over this rank's micro-batches; `weight`: loss-bearing items of all ranks' batches.

        Without any there is nothing to learn: the step is skipped, and no counter of the optimizer moves.
        """
        if not weight:
            return StepResult(torch.zeros((), device=self._device), 0, 0.0, True, list, dict)
        engine = self._engine
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        scale = dist.size() * self._accumulation / weight  # undoes DeepSpeed's two averages: ranks, accumulation
        loss_sum = torch.zeros((), device=self._device)
        losses = []
        timers = {part: DeviceTime(self._device) for part in ("forward", "backward", "optimizer")}
        for number, batch in enumerate(batches, start=1):
            pulse.mark("forward")
            with timers["forward"].part():
                loss = self._task.loss_sums(engine, self._to_device(batch))["loss"]
            pulse.mark("backward")
            with timers["backward"].part():
                engine.backward(loss * scale)
            loss_sum += loss.detach()
            losses.append(loss.detach())
            if number < len(batches):
                engine.step()  # counts a micro-batch; updates nothing
        micro_losses = _copy_to_host(torch.stack(losses))
        pulse.mark("optimizer")
        with timers["optimizer"].part():
            grad_norm, skipped = self._update()
        return StepResult(loss_sum, weight, grad_norm, skipped, micro_losses, partial(_seconds_of, timers))

    def _update(self) -> tuple[torch.Tensor | float, bool]:
        engine = self._engine
        if self._clips is not None:
            norm = nn.utils.clip_grad_norm_(engine.module.parameters(), self._clips or float("inf"))
            skipped = not bool(torch.isfinite(norm))
            if skipped:
                for parameter in engine.module.parameters():
                    parameter.grad = None  # the optimizer then leaves every weight and moment as it is
            engine.step()
            return norm, skipped
        engine.step()
        norm = engine.get_global_grad_norm()
        if self._scaled_norm:
            norm = norm / engine.optimizer.loss_scale_config.cur_scale
        return norm, not engine.was_step_applied()

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> Evaluated:
        """The task's sums over this rank's batch, on the device, and its predictions."""
        self._engine.eval()
        return self._task.evaluate(self._engine, self._to_device(batch))

    @torch.no_grad()
    def texts(self) -> Sequence[Text]:
        """What the task's model writes by itself. All ranks call it at once."""
        self._engine.eval()
        return self._task.texts(self._engine)

    def weights_digest(self) -> int | None:
        """Tells the weights that this rank computes with, alike on all ranks; None at stage 3, where each holds its own
        part. Reads all weights once."""
        if self._zero_stage == 3:
            return None
        named = self._engine.module.named_parameters()
        entries = (state_files.Entry(fragments.WEIGHT, name, 0, p.detach().flatten()) for name, p in named)
        return digest.sums(entries)[fragments.WEIGHT]

    @property
    def host_copy_bytes(self) -> int:
        """Host memory that this rank keeps for saving behind training: its part of the state as float32, or nothing."""
        return self._host.nbytes if self._host is not None else 0

    def writer(self, *, copy: bool) -> Callable[[Path], tuple[dict[str, tuple[int, str]], digest.Sums]]:
        """What writes this rank's part of the state into a folder, and tells the file's name, bytes and xxh3, and the
        part's digest.

        With `copy` it writes a copy in host memory, made now, so that training may go on while it works (the memory is
        kept for the next one: one writer at a time). Without, the state as it is then.
        """
        held = fragments.pieces(self._engine, self._zero_stage)
        if self._zero_stage == 0:
            held = fragments.share(held, dist.rank(), dist.size())
        entries = self._entries(held)
        metadata = {
            "shapes": self._shapes,
            "tied": self._tied,
            "steps": fragments.steps(self._engine, held),
            "scaler": fragments.read_scaler(self._engine),
        }
        sum_of_steps = digest.sum_of_steps(held, fragments.steps(self._engine, held))
        if copy:
            entries = self._copied(entries)
        name = state_files.file_name(dist.rank(), dist.size())

        def write(folder: Path) -> tuple[dict[str, tuple[int, str]], digest.Sums]:
            with ThreadPoolExecutor(1, "digest") as beside:  # the other thread waits for the disk
                sums = beside.submit(digest.sums, entries, self._kinds)
                files = {name: state_files.write_entries(folder / name, entries, metadata)}
                return files, {**sums.result(), digest.STEP: sum_of_steps}

        return write

    def _entries(self, held: Iterable[fragments.Piece]) -> list[state_files.Entry]:
        """The pieces' weights and moments, as the optimizer holds them."""
        return [
            state_files.Entry(kind, piece.name, piece.start, values)
            for kind in self._kinds
            for piece in held
            if (values := fragments.values(self._engine, piece, kind)) is not None
        ]

    def _copied(self, entries: list[state_files.Entry]) -> list[state_files.Entry]:
        total = sum(entry.values.numel() for entry in entries)
        if self._host is None or self._host.numel() != total:
            self._host = torch.empty(total, dtype=torch.float32, pin_memory=self._device.type == "cuda")
        copies = torch.split(self._host, [entry.values.numel() for entry in entries])
        for entry, copy in zip(entries, copies, strict=True):
            copy.copy_(entry.floats(), non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return [replace(entry, values=copy) for entry, copy in zip(entries, copies, strict=True)]

    def load(
        self, folder: Path, files: Iterable[str], stored: Mapping[str, str] | None = None
    ) -> dict[str, str] | None:
        """Takes this rank's part of the weights and of the optimizer's state from the `files` of a checkpoint.

        They may be of any number of ranks, any ZeRO stage and any precision. The optimizer's settings stay the
        recipe's. All ranks call it; CheckpointError when something is missing, or when what the optimizers then hold
        has not the digest `stored` (in the checkpoint's manifest, unless it is older than digests). Returns the digest
        of what they hold, where there was one to compare it with.
        """
        saved = state_files.StateFiles(folder, files)
        held = fragments.pieces(self._engine, self._zero_stage)
        with dist.together():
            for name, shape in self._shapes.items():
                if saved.shapes.get(name) != shape:
                    raise CheckpointError(
                        f"{folder}: {name} has the shape {saved.shapes.get(name)}, the model's is {shape}: the "
                        "checkpoint is of another model; choose a new run.dir"
                    )
            fragments.begin_state(self._engine, held, saved.steps)
            for piece in held:
                for kind in self._kinds:
                    values = fragments.values(self._engine, piece, kind)
                    if kind == fragments.WEIGHT or (values is not None and piece.name in saved.steps):
                        assert isinstance(values, torch.Tensor), "a moment that was begun is in float32"
                        saved.fill(kind, piece.name, piece.start, values)
        fragments.write_scaler(self._engine, saved.scaler)
        fragments.refresh(self._engine, self._zero_stage)
        found = self._prove_loaded(held, stored, folder) if stored is not None else None
        if self._packs:
            pack_moments(self._engine.basic_optimizer)
        return found

    def _prove_loaded(self, held: list[fragments.Piece], stored: Mapping[str, str], folder: Path) -> dict[str, str]:
        found = digest.sums(self._entries(held), self._kinds)
        found[digest.STEP] = digest.sum_of_steps(held, fragments.steps(self._engine, held))
        if self._zero_stage != 0:  # there each rank holds all of it, and proves all
            found = dict(zip(found, dist.sum_modulo(list(found.values())), strict=True))
        with dist.together():
            digest.check(found, stored, str(folder))
        return digest.shown(found)

    def _to_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}


def _seconds_of(timers: Mapping[str, DeviceTime]) -> dict[str, float]:
    return {f"{part}_seconds": timer.seconds() for part, timer in timers.items()}


def _copy_to_host(values: torch.Tensor) -> Callable[[], list[float]]:
    """Begins a copy; what comes back waits for it alone, not for what the device is given to do afterwards."""
    if values.device.type == "cpu":
        return values.tolist
    copy = values.to("cpu", non_blocking=True)  # into pinned memory, as torch does for such a copy
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read


def _initialize(task: Task, config: dict[str, Any], optim: Optim, device: torch.device) -> Any:
    """Model and optimizer in DeepSpeed's hands."""
    prepare_process(device)
    if task.needs_compiler:
        load_compiler()
    else:
        stand_in_for_compiler()
    import deepspeed  # costs a second: a recipe with a fault is refused before

    # A JIT-built shared-memory collective that only inference uses: it costs 35 s to build, hangs on a stale lock and
    # leaves 69 MB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    load_muon_as_it_is()
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    stage3 = config["zero_optimization"]["stage"] == 3
    # Under zero.Init each submodule is partitioned as soon as it exists, so no rank ever holds the whole model; weights
    # are then set one gathered parameter at a time (an initialisation in the constructor would touch empty tensors).
    with deepspeed.zero.Init(config_dict_or_path=config) if stage3 else nullcontext():
        model = task.build_model()
    task.initialise(model, _gather_partitioned if stage3 else whole_parameter)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    optimizer = build_optimizer(task, model, config, optim)
    config = {
        **without_idle_overlap(with_bucket_size(config, model), dist.size()),
        "zero_allow_untested_optimizer": optim.name != "adamw",
    }  # by DeepSpeed; tests/engine/test_muon.py, test_eight_bit.py
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    look_for_infinities_once(engine)
    look_at_all_gradients_at_once(engine)
    take_norm_at_once(engine)
    keep_gradients_in_place(engine)
    update_by_blocks(engine)
    forget_first_step(engine.basic_optimizer)
    place_matrices(engine, config["zero_optimization"]["stage"])
    _restore_buffers(engine.module, buffers)
    if device.type == "cpu":
        keep_freed_memory()  # from now on: what the model was built with goes back
    return engine


def _restore_buffers(module: nn.Module, buffers: Mapping[str, torch.Tensor]) -> None:
    """DeepSpeed rounds buffers to the training precision with the weights: rotary frequencies in bfloat16 put a token
    at place 1,000 up to two places off."""
    for name, whole in buffers.items():
        owner, _, leaf = name.rpartition(".")
        held = module.get_submodule(owner)._buffers
        rounded = held[leaf]
        assert rounded is not None
        held[leaf] = whole.to(rounded.device)


@contextmanager
def _gather_partitioned(parameter: nn.Parameter) -> Iterator[bool]:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield dist.rank() == 0


def _tied_names(module: nn.Module) -> dict[str, str]:
    """The further names of trained parameters that have several, and the name that each is known by."""
    first: dict[nn.Parameter, str] = {}
    every = [(name, first.setdefault(p, name)) for name, p in module.named_parameters(remove_duplicate=False)]
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: known for name, known in every if name != known and known in trained}


def prepare_process(device: torch.device) -> None:
    """What must be set before DeepSpeed is imported: no search for accelerators, no warning at every collective."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch renames collectives that DeepSpeed calls
