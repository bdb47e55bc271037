"""Which parameters take weight decay: matrices do; norms, biases and embeddings do not."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer, `decay` and `no_decay`, with their parameters and names; each parameter once.

    A matrix that is tied to an embedding counts as an embedding (Radford et al. 2018 decay all non-bias, non-gain
    weights; later GPT recipes leave embeddings out as well).
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    groups: dict[bool, dict[str, Any]] = {
        True: {"name": "decay", "weight_decay": weight_decay, "params": [], "param_names": []},
        False: {"name": "no_decay", "weight_decay": 0.0, "params": [], "param_names": []},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 keeps the true shape aside
        group = groups[dimensions >= 2 and id(parameter) not in embeddings]
        group["params"].append(parameter)
        group["param_names"].append(name)
    return [group for group in groups.values() if group["params"]]
