"""DeepSpeed's ops, compiled ahead of a run: a rank that compiles one keeps all others waiting."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from subprocess import SubprocessError

import torch

from scaletrain.engine.engine import prepare_process
from scaletrain.runtime.leftovers import stale_locks
from scaletrain.runtime.locks import locked
from scaletrain.runtime.op_folder import VARIABLE, is_built, private_folder

_UNFINISHED = ".unfinished"


def build_ops(names: Sequence[str]) -> dict[str, str]:
    """Compiles those of `names` that are not there yet; what went wrong with each, "" if nothing.

    Into the folder that the user names, else into our own; by one process at a time, since nodes may share it; beside
    their place first, so that a run finds an op whole or not at all, and never a lock.
    """
    folder = Path(os.environ.get(VARIABLE) or private_folder(os.environ))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".building"):
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
        (folder / _UNFINISHED).mkdir()
        os.environ[VARIABLE] = str(folder / _UNFINISHED)
        found = {name: "" if is_built(name, folder) else _build(name, folder) for name in names}
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    return found


def _build(name: str, folder: Path) -> str:
    prepare_process(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    if name not in ALL_OPS:
        return f"DeepSpeed has no op {name} for this device"
    dead = {path for path, _ in stale_locks(folder)}
    if (lock := folder / name / "lock").exists() and lock not in dead:
        return f"another process builds it: wait, or remove {lock} if none does"
    try:
        ALL_OPS[name].load(verbose=False)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    if (folder / name).exists():
        shutil.rmtree(folder / name)
    (folder / _UNFINISHED / name).rename(folder / name)
    return ""
