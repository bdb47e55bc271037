"""Which parameters take weight decay (matrices do; norms, biases and embeddings do not), at what learning rate, and
which of them Muon updates."""

from collections.abc import Callable
from typing import Any

from torch import nn


def one_rate(name: str) -> float:
    """The scale of every parameter where all learn at the same rate."""
    del name
    return 1.0


def parameter_groups(
    model: nn.Module, weight_decay: float, scale: Callable[[str], float] = one_rate, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Groups for an optimizer with their parameters and names, each parameter once: `decay` and `no_decay`, of each
    `scale` of the learning rate that there is; with `muon` also `orthogonal`, the matrices of the layers.

    A matrix that is tied to an embedding counts as an embedding (Radford et al. 2018 decay all non-bias, non-gain
    weights; later GPT recipes leave embeddings out as well). The layers are what stands in an nn.ModuleList, in our GPT
    as in transformers' models: so embeddings of positions and every kind of head are outside of them.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    in_layers = {id(p) for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters()}
    groups: dict[tuple[float, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = shape_of(parameter)
        kind = "decay" if len(shape) >= 2 and id(parameter) not in embeddings else "no_decay"
        # (IA)3's matrices of one row or column are vectors, and more than two dimensions have no orthogonal form.
        if muon and kind == "decay" and id(parameter) in in_layers and len(shape) == 2 and min(shape) > 1:
            kind = "orthogonal"
        rate = scale(name)
        group = groups.setdefault(
            (rate, kind),
            {
                "name": kind,
                "weight_decay": 0.0 if kind == "no_decay" else weight_decay,
                "lr_scale": rate,
                "params": [],
                "param_names": [],
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return sorted(groups.values(), key=lambda group: (-group["lr_scale"], group["name"]))


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of the whole parameter, which ZeRO-3 keeps aside."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
