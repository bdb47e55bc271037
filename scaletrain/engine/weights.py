"""The float32 weights of a checkpoint, whole, on one process: for export, generation and evaluation."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from scaletrain.engine.checkpoint import Found, damage, latest_name, read_manifest
from scaletrain.errors import CheckpointError


def find_checkpoint(path: Path) -> Found:
    """The checkpoint that `path` means: a checkpoint folder itself, or a run's newest one. Verified."""
    folder = path
    if not (path / "manifest.json").is_file():
        root = path / "checkpoints"
        name = latest_name(root)
        if name is None:
            raise CheckpointError(f"{path}: holds no checkpoint: train first, or give a checkpoint folder")
        folder = root / name
    found = Found(folder, read_manifest(folder))
    if (wrong := damage(found)) is not None:
        raise CheckpointError(f"{folder}: {wrong}: give an older checkpoint folder instead")
    return found


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
    by_memory = {module[name].data_ptr(): master.detach() for name, master in zip(names, masters, strict=False)}
    return {name: by_memory.get(tensor.data_ptr(), tensor).float() for name, tensor in module.items()}
