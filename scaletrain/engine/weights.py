"""The float32 weights of a checkpoint, whole, on one process: for export, generation and evaluation."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from scaletrain.engine.checkpoint import BEST, Found, damage, newest_good, read_best, read_manifest
from scaletrain.engine.state_files import StateFiles
from scaletrain.errors import CheckpointError
from scaletrain.runtime.checkpoint_names import MANIFEST, STEP


def find_checkpoint(path: Path, tell: Callable[[str, str], None] = lambda name, why: None) -> Found:
    """The checkpoint that `path` means: a checkpoint folder itself, RUN/checkpoints/best, or the one that a run would
    resume from. Verified.

    `tell(name, why)` hears of each newer one of the run that is damaged and was passed over.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 (keeps a link a link); "." has no parent and no name
    if path.name == BEST:
        if (best := read_best(path.parent)) is None:
            raise CheckpointError(f"{path}: names no checkpoint: train with checkpoint.best_metric, or give the run")
        path = path.parent / best.checkpoint
    if (path / MANIFEST).is_file() or path.name.startswith(STEP):
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
    """Parameter name -> float32 master weights on the CPU; tied weights under each of their names, sharing memory.

    Memory: once the float32 weights; the files are mapped.
    """
    saved = StateFiles(found.folder, found.manifest["files"])
    weights = {name: saved.weight(name) for name in saved.shapes}
    return weights | {name: weights[known] for name, known in saved.tied.items()}
