"""One model under DeepSpeed: train a step, evaluate a batch, write and read its files."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from scaletrain.config.deepspeed import offloads_optimizer
from scaletrain.config.schema import Optim
from scaletrain.data.rows import Batch
from scaletrain.engine.files import HashedWriter
from scaletrain.errors import ConfigError
from scaletrain.model.init import whole_parameter
from scaletrain.optim.groups import parameter_groups
from scaletrain.runtime import dist
from scaletrain.tasks.task import Sums, Task


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `loss_sum` is this rank's, on the device; `weight` counts the loss-bearing items of all.

    `grad_norm` is the global norm before clipping, on the device where DeepSpeed leaves it there; not finite on a
    skipped step.
    """

    loss_sum: torch.Tensor
    weight: int
    grad_norm: torch.Tensor | float
    skipped: bool

    def loss(self) -> float:
        """Mean loss an item over all ranks. A collective and a wait for the device: on logging steps only."""
        return float(dist.sum_tensors(self.loss_sum.double()).item()) / self.weight


class Engine:
    """`config` is the whole DeepSpeed dict (config/deepspeed.py); the optimizer and the learning rate are ours."""

    def __init__(self, task: Task, config: dict[str, Any], optim: Optim, device: torch.device) -> None:
        self._task, self._device = task, device
        self._zero_stage = int(config["zero_optimization"]["stage"])
        self._accumulation = int(config["gradient_accumulation_steps"])
        # At stage 0 in float32 DeepSpeed applies gradients that are not finite and tells no norm: we clip and skip.
        half = config.get("bf16", {}).get("enabled") or config.get("fp16", {}).get("enabled")
        self._clips = optim.grad_clip if self._zero_stage == 0 and not half else None
        if self._clips is not None:
            config = {**config, "gradient_clipping": 0.0}
        # ... and in fp16 it tells the norm of the gradients as they are scaled against underflow.
        self._scaled_norm = self._zero_stage == 0 and bool(config.get("fp16", {}).get("enabled"))
        self._skipped = 0
        self._files = HashedWriter()
        try:
            self._engine, self.group_names = _initialize(task, config, optim, device)
        except ValidationError as error:  # ranges and cross-field rules of DeepSpeed's own config classes
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or error.title
            raise ConfigError(
                f"DeepSpeed refuses {name}={first['input']!r} ({first['msg']}): change it in the DeepSpeed file"
            ) from error
        self._engine.checkpoint_engine = _checkpoint_engine(self._files)
        # DeepSpeed's recovery scripts would be copied past our writer; `scaletrain export` is in their place.
        self._engine._copy_recovery_script = lambda save_path: None

    @property
    def skipped_steps(self) -> int:
        """Steps of this launch whose gradients were not finite."""
        return self._skipped

    def train_step(self, batches: Sequence[Batch], lr: float, weight: int) -> StepResult:
        """One optimizer step over this rank's micro-batches; `weight`: loss-bearing items of all ranks' batches.

        Without any there is nothing to learn: the step is skipped, and no counter of the optimizer moves.
        """
        if not weight:
            self._skipped += 1
            return StepResult(torch.zeros((), device=self._device), 0, 0.0, skipped=True)
        engine = self._engine
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        scale = dist.size() * self._accumulation / weight  # undoes DeepSpeed's two averages: ranks, accumulation
        loss_sum = torch.zeros((), device=self._device)
        for batch in batches:
            loss = self._task.loss_sums(engine, self._to_device(batch))["loss"]
            engine.backward(loss * scale)
            loss_sum += loss.detach()
            if batch is not batches[-1]:
                engine.step()  # counts a micro-batch; updates nothing
        grad_norm, skipped = self._update()
        self._skipped += skipped
        return StepResult(loss_sum, weight, grad_norm, skipped)

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
    def eval_step(self, batch: Batch) -> Sums:
        """The task's sums over this rank's batch, on the device."""
        self._engine.eval()
        return self._task.loss_sums(self._engine, self._to_device(batch))

    def save(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Writes this rank's files into `folder` (all ranks call it): name -> (bytes, xxh3) of those of this rank."""
        self._files.forget()
        # universal_checkpoint_info is what DeepSpeed's converter needs to reshard these files for other ranks later.
        client = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}, "groups": self.group_names}
        self._engine.save_checkpoint(str(folder.parent), tag=folder.name, client_state=client, save_latest=False)
        return self._files.written(folder)

    def load(self, folder: Path) -> None:
        """Reads weights and optimizer state back; the files must be of as many ranks and of the same ZeRO stage.

        The optimizer's settings stay the recipe's: DeepSpeed would put those of the checkpoint in their place.
        """
        groups = self._engine.optimizer.param_groups
        settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        assert path is not None, folder
        for group, setting in zip(self._engine.optimizer.param_groups, settings, strict=True):
            group.update(setting)

    def _to_device(self, batch: Batch) -> Batch:
        if self._device.type == "cpu":
            return batch
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}


def _initialize(task: Task, config: dict[str, Any], optim: Optim, device: torch.device) -> tuple[Any, list[list[str]]]:
    """Model and optimizer in DeepSpeed's hands, and the parameter names of each optimizer group."""
    prepare_process(device)
    import deepspeed  # costs a second: a recipe with a fault is refused before

    # A JIT-built shared-memory collective that only inference uses: it costs 35 s to build, hangs on a stale lock and
    # leaves 69 MB a rank in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    stage3 = config["zero_optimization"]["stage"] == 3
    # Under zero.Init each submodule is partitioned as soon as it exists, so no rank ever holds the whole model; weights
    # are then set one gathered parameter at a time (an initialisation in the constructor would touch empty tensors).
    with deepspeed.zero.Init(config_dict_or_path=config) if stage3 else nullcontext():
        model = task.build_model()
    task.initialise(model, _gather_partitioned if stage3 else whole_parameter)
    groups = parameter_groups(model, optim.weight_decay)
    names = [group.pop("param_names") for group in groups]
    engine, *_ = deepspeed.initialize(model=model, optimizer=_optimizer(groups, config, optim), config=config)
    _forget_first_step(engine.basic_optimizer)
    return engine, names


def _optimizer(groups: list[dict[str, Any]], config: dict[str, Any], optim: Optim) -> torch.optim.Optimizer:
    # lr is set before each step. It must be 0 until then: DeepSpeed takes a step on zero gradients at some stages.
    settings: dict[str, Any] = {"lr": 0.0, "betas": optim.betas, "eps": optim.eps}
    if offloads_optimizer(config):
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiled at first use, about a minute

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, fused=True, **settings)


def _forget_first_step(optimizer: torch.optim.Optimizer) -> None:
    """Undoes DeepSpeed's step on zero gradients: with lr 0 it only moved Adam's counter, by one, at bf16 stage 0
    (fp16/unfused_optimizer.py, initialize_optimizer_states); left so, losses differ by 0.15 after 20 steps."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0


@contextmanager
def _gather_partitioned(parameter: nn.Parameter) -> Iterator[bool]:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield dist.rank() == 0


def _checkpoint_engine(files: HashedWriter) -> Any:
    """DeepSpeed's writer seam, with our hashed and synced files behind it."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class HashedCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
        def create(self, info: Any) -> None: ...

        def save(self, state_dict: Any, path: str) -> None:
            files.save(state_dict, Path(path))

        def load(self, path: str, map_location: Any = None) -> Any:
            return torch.load(path, map_location=map_location, weights_only=False)

        def commit(self, info: Any) -> bool:
            return True

    return HashedCheckpointEngine()


def prepare_process(device: torch.device) -> None:
    """What must be set before DeepSpeed is imported: no search for accelerators, no warning at every collective."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch renames collectives that DeepSpeed calls
