"""The optimizer that DeepSpeed is given, and what it must be told once DeepSpeed has cut its tensors."""

from typing import Any

import torch
from torch import nn

from scaletrain.config.deepspeed import offloads_optimizer
from scaletrain.config.schema import Optim
from scaletrain.engine import fragments
from scaletrain.errors import ConfigError
from scaletrain.optim.eight_bit import adamw_8bit
from scaletrain.optim.groups import parameter_groups, shape_of
from scaletrain.optim.matrices import Part, plan_work
from scaletrain.optim.muon import Muon
from scaletrain.runtime import dist
from scaletrain.tasks.task import Task


def build_optimizer(task: Task, model: nn.Module, config: dict[str, Any], optim: Optim) -> torch.optim.Optimizer:
    """Of the model's trained parameters, in the groups that the task and the recipe ask for."""
    groups = parameter_groups(model, optim.weight_decay, task.learning_rate_scale, muon=optim.name == "muon")
    shapes = {
        name: shape_of(parameter)
        for group in groups
        for name, parameter in zip(group.pop("param_names"), group["params"], strict=True)
        if group["name"] == "orthogonal"
    }
    # lr is set before each step. It must be 0 until then: DeepSpeed takes a step on zero gradients at some stages.
    settings: dict[str, Any] = {"lr": 0.0, "betas": optim.betas, "eps": optim.eps}
    if optim.name == "muon":
        if not shapes:
            raise ConfigError(
                "optim.name=muon is for matrices of the model's layers, and none of them is trained: use "
                "optim.name=adamw"
            )
        return Muon(
            groups,
            shapes=shapes,
            momentum=optim.muon_momentum,
            nesterov=optim.muon_nesterov,
            ns_steps=optim.muon_ns_steps,
            dtype=torch.bfloat16 if config["bf16"]["enabled"] else torch.float32,
            fused=True,
            **settings,
        )
    if optim.name == "adamw_8bit":
        return adamw_8bit(groups, **settings)
    if offloads_optimizer(config):
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiled at first use, about a minute

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)  # type: ignore[no-any-return]
    return torch.optim.AdamW(groups, fused=True, **settings)


def place_matrices(engine: Any, stage: int) -> None:
    """Tells Muon which parts of which matrices its tensors hold, on this rank and on the others. All ranks call it."""
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, Muon):
        return
    owners = fragments.owners(engine, stage)
    held: list[list[Part]] = [[] for _ in owners]
    numbers = {id(owner): number for number, owner in enumerate(owners)}
    for piece in fragments.pieces(engine, stage):
        if (shape := optimizer.shapes.get(piece.name)) is not None:
            held[numbers[id(piece.owner)]].append(Part(piece.name, shape, piece.start, piece.numel, piece.offset))
    # At stage 0 every rank holds all and works on all: there is nothing to send, and the weights stay alike.
    everyone, rank = ([held], 0) if stage == 0 else (dist.gather(held), dist.rank())
    by_owner = zip(owners, zip(*everyone, strict=True), strict=True)
    optimizer.place({owner: plan_work(parts, rank) for owner, parts in by_owner if any(parts)})


def forget_first_step(optimizer: torch.optim.Optimizer) -> None:
    """Undoes DeepSpeed's step on zero gradients: with lr 0 it only moved Adam's counter, by one, at bf16 stage 0
    (fp16/unfused_optimizer.py, initialize_optimizer_states); left so, losses differ by 0.15 after 20 steps."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].zero_()
        elif "step" in state:
            state["step"] = 0
