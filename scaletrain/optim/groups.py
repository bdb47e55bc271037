"""Which parameters take weight decay (matrices do; norms, biases and embeddings do not), and at what learning rate."""

from collections.abc import Callable
from typing import Any

from torch import nn


def one_rate(name: str) -> float:
    """The scale of every parameter where all learn at the same rate."""
    del name
    return 1.0


def parameter_groups(
    model: nn.Module, weight_decay: float, scale: Callable[[str], float] = one_rate
) -> list[dict[str, Any]]:
    """Groups for an optimizer with their parameters and names, each parameter once: `decay` and `no_decay`, of each
    `scale` of the learning rate that there is.

    A matrix that is tied to an embedding counts as an embedding (Radford et al. 2018 decay all non-bias, non-gain
    weights; later GPT recipes leave embeddings out as well).
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 keeps the true shape aside
        decays, rate = dimensions >= 2 and id(parameter) not in embeddings, scale(name)
        group = groups.setdefault(
            (rate, decays),
            {
                "name": "decay" if decays else "no_decay",
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": rate,
                "params": [],
                "param_names": [],
            },
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return sorted(groups.values(), key=lambda group: (-group["lr_scale"], group["name"]))
