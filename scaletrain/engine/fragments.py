"""Where DeepSpeed keeps a model's state on this rank: pieces of named parameters, whatever the ZeRO stage.

At every stage an optimizer holds float32 tensors (its "owners": a parameter, a rank's part of a flat group, a flat
sub-group), and each piece of a parameter lies somewhere in one of them, as do the moments. A checkpoint stores the
pieces by parameter name and position, so any other number of ranks or stage can take what it needs from it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scaletrain.optim.eight_bit import Packed, moment
from scaletrain.optim.muon import Muon

WEIGHT, MOMENTS, MOMENTUM = "weight", ("exp_avg", "exp_avg_sq"), "momentum_buffer"
KINDS = (WEIGHT, *MOMENTS)
KINDS_OF = {"adamw": KINDS, "adamw_8bit": KINDS, "muon": (*KINDS, MOMENTUM)}  # of the optimizers by name
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Piece:
    """Elements start..start+numel of the flattened parameter `name`: they begin at `offset` of the flattened owner."""

    name: str
    start: int
    numel: int
    owner: torch.Tensor
    offset: int

    def part(self, begin: int, end: int) -> "Piece":
        """Elements begin..end of this piece."""
        return Piece(self.name, self.start + begin, end - begin, self.owner, self.offset + begin)


def pieces(engine: Any, stage: int) -> list[Piece]:
    """All that this rank's optimizer holds. At stage 0 that is the whole model, on every rank."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    found = {0: _whole, 1: _flat, 2: _flat, 3: _partitioned}[stage](engine, names)
    return [piece for piece in found if piece.numel > 0]


def _whole(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[Piece]:
    groups = getattr(engine.optimizer, "fp32_groups", None)  # the masters of fp16/unfused_optimizer.py
    if groups is None:
        for group in engine.basic_optimizer.param_groups:
            for parameter in group["params"]:
                yield Piece(names[parameter], 0, parameter.numel(), parameter, 0)
        return
    for lows, masters in zip(engine.optimizer.fp16_groups, groups, strict=True):
        for low, master in zip(lows, masters, strict=True):
            yield Piece(names[low], 0, low.numel(), master, 0)


def _flat(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[Piece]:
    """Stages 1 and 2: a group is one flat tensor, and each rank owns an equal part of it (utils/tensor_fragment.py)."""
    zero = engine.optimizer
    for group, owner in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            if (held := parameter._hp_mapping) is not None:
                inside, place = held.lp_fragment_address, held.hp_fragment_address
                yield Piece(names[parameter], inside.start, inside.numel, owner, place.start)


def _partitioned(engine: Any, names: dict[nn.Parameter, str]) -> Iterator[Piece]:
    """Stage 3: each parameter is cut into equal parts, one a rank, the last one padded; they lie in flat sub-groups."""
    zero = engine.optimizer
    for group in zero.fp16_groups:
        for parameter in group:
            number, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = zero._get_param_partition_rank(parameter) * length
            numel = min(length, parameter.ds_numel - start)
            yield Piece(names[parameter], start, numel, zero.fp32_partitioned_groups_flat[number], offset)


def owners(engine: Any, stage: int) -> list[torch.Tensor]:
    """The tensors that this rank's optimizer holds; as many on each rank, also where no piece of a model is in one."""
    if stage == 0:
        return list(dict.fromkeys(piece.owner for piece in pieces(engine, stage)))
    zero = engine.optimizer
    return list(zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups)


def share(held: Iterable[Piece], rank: int, ranks: int) -> list[Piece]:
    """An equal part for each rank of pieces that all ranks hold: rank by rank they make up the whole."""
    held = list(held)
    total = sum(piece.numel for piece in held)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    parts, at = [], 0
    for piece in held:
        begin, end = max(first - at, 0), min(last - at, piece.numel)
        if begin < end:
            parts.append(piece.part(begin, end))
        at += piece.numel
    return parts


def values(engine: Any, piece: Piece, kind: str) -> torch.Tensor | Packed | None:
    """The piece's weights (float32 masters) or moments as the optimizer holds them: a view; None before any step."""
    held = piece.owner if kind == WEIGHT else moment(engine.basic_optimizer.state.get(piece.owner, {}), kind)
    if held is None:
        return None
    if isinstance(held, Packed):
        return held.narrow(piece.offset, piece.numel)
    return held.detach().view(-1).narrow(0, piece.offset, piece.numel)


def steps(engine: Any, held: Iterable[Piece]) -> dict[str, int]:
    """The optimizer's step counter by parameter name, of those that have one."""
    counts = {}
    for piece in held:
        if (count := engine.basic_optimizer.state.get(piece.owner, {}).get("step")) is not None:
            counts[piece.name] = int(count)
    return counts


def begin_state(engine: Any, held: Iterable[Piece], counts: dict[str, int]) -> None:
    """Gives each owner moments to fill and the counter that its parameters had.

    A counter of its own for each: DeepSpeed's own ZeRO-3 loader lets all sub-groups share one, which then advances once
    for each of them in a step.
    """
    optimizer = engine.basic_optimizer
    for piece in held:
        state = optimizer.state[piece.owner]
        if piece.name not in counts:
            continue
        turned = isinstance(optimizer, Muon) and piece.name in optimizer.shapes
        for kind in (MOMENTUM,) if turned else MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(piece.owner, dtype=torch.float32, requires_grad=False)
        count = counts[piece.name]
        is_tensor = isinstance(optimizer, torch.optim.AdamW)  # of torch's; others count with a plain number
        state["step"] = torch.tensor(float(count), device=piece.owner.device) if is_tensor else count


@torch.no_grad()
def refresh(engine: Any, stage: int) -> None:
    """Computes the model's own weights, in the precision that it trains in, from the masters. All ranks call it."""
    zero = engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
        for group in range(len(zero.bit16_groups)):
            zero._update_model_bit16_weights(group)
    elif stage == 3:
        zero.checkpoint_event_prologue()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        zero.checkpoint_event_epilogue()
    elif (masters := getattr(zero, "fp32_groups", None)) is not None:
        for lows, highs in zip(zero.fp16_groups, masters, strict=True):
            for low, high in zip(lows, highs, strict=True):
                low.data.copy_(high.data)


def read_scaler(engine: Any) -> dict[str, float]:
    """fp16's loss scale and its counters; empty in other precisions."""
    scaler = _scaler(engine)
    return {name: getattr(scaler, name) for name in _SCALER if hasattr(scaler, name)}


def write_scaler(engine: Any, saved: dict[str, float]) -> None:
    """Sets what read_scaler gave; a run that had none, or needs none, keeps its own."""
    scaler = _scaler(engine)
    for name, value in saved.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def _scaler(engine: Any) -> Any:
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scale_config", None) or getattr(engine.optimizer, "loss_scaler", None)
