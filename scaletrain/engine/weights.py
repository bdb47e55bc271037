"""The float32 weights of a checkpoint, whole, on one process: for export, generation and evaluation."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scaletrain.engine.checkpoint import MANIFEST, Found, damage, newest_good, read_manifest
from scaletrain.errors import CheckpointError


def find_checkpoint(path: Path, tell: Callable[[str, str], None] = lambda name, why: None) -> Found:
    """The checkpoint that `path` means: a checkpoint folder itself, or the one that a run would resume from. Verified.

    `tell(name, why)` hears of each newer one of the run that is damaged and was passed over.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 (keeps a link a link); "." has no parent and no name
    if (path / MANIFEST).is_file() or path.name.startswith("step-"):
        found = Found(path, read_manifest(path))
        if (wrong := damage(found)) is not None:
            raise CheckpointError(f"{path}: {wrong}: give an older checkpoint folder instead")
        return found
    passed: list[tuple[str, str]] = []
    try:
        newest = newest_good(path / "checkpoints", lambda name, why: passed.append((name, why)))
    except CheckpointError as error:
        reasons = "; ".join(f"{name}: {why}" for name, why in passed)
        raise CheckpointError(f"{path}: no checkpoint is whole ({reasons}): restore one from a copy") from error
    if newest is None:
        raise CheckpointError(f"{path}: holds no checkpoint: train first, or give a checkpoint folder")
    for name, why in passed:
        tell(name, why)
    return newest


def read_weights(found: Found) -> dict[str, torch.Tensor]:
    """Parameter name -> float32 tensor on the CPU; the master weights where the optimizer kept some.

    Memory: about twice the float32 weights while DeepSpeed's shards are merged.
    """
    if found.manifest["layout"]["zero_stage"] == 0:
        return _replicated(found.folder)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its bars and lines
        state = get_fp32_state_dict_from_zero_checkpoint(str(found.folder.parent), tag=found.folder.name)
    return {name: tensor.float() for name, tensor in state.items()}


def _replicated(folder: Path) -> dict[str, torch.Tensor]:
    """Stage 0 keeps one file: weights by name, and under bf16 the float32 masters in the order of the groups."""
    file: dict[str, Any] = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    module: dict[str, torch.Tensor] = file["module"]
    names = [name for group in file["groups"] for name in group]
    masters = [tensor for group in (file["optimizer"] or {}).get("fp32_groups") or [] for tensor in group]
    # Tied weights stand under several names in `module` and share their memory; a master goes to all of them.
    by_memory = {module[name].data_ptr(): master.detach() for name, master in zip(names, masters, strict=bool(masters))}
    return {name: by_memory.get(tensor.data_ptr(), tensor).float() for name, tensor in module.items()}
