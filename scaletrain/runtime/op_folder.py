"""Where DeepSpeed's ops are built: a folder of our own once `scaletrain doctor --build` has built there."""

import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from importlib import metadata
from pathlib import Path

import xxhash

from scaletrain.runtime import processor
from scaletrain.runtime.files import cache_root
from scaletrain.runtime.leftovers import extension_folder

VARIABLE = "TORCH_EXTENSIONS_DIR"


def private_folder(env: Mapping[str, str]) -> Path:
    """For this Python, torch, DeepSpeed and processor: ops are compiled for the very processor, and a home folder may
    be shared by nodes that have others, whose half-built ops and locks would be in the way."""
    parts = [sys.version, *(metadata.version(name) for name in ("torch", "deepspeed")), _processor()]
    return cache_root(env) / "ops" / xxhash.xxh3_64_hexdigest("\n".join(parts).encode())


def op_folder(env: Mapping[str, str]) -> Path:
    """Where a run that starts now looks for ops and builds them: what the user says, ours if it is there, torch's."""
    if VARIABLE not in env and (private := private_folder(env)).is_dir():
        return private
    return extension_folder(env)


def use_built_ops(env: MutableMapping[str, str] = os.environ) -> None:
    """Points torch to our folder, if it is there and the user names no other."""
    if VARIABLE not in env and (private := private_folder(env)).is_dir():
        env[VARIABLE] = str(private)


def is_built(op: str, folder: Path) -> bool:
    """Whether a run finds `op` compiled: as NAME/NAME.so, or in a folder for its Python and CUDA version."""
    return any(folder.glob(f"{op}/{op}.so")) or any(folder.glob(f"*/{op}/{op}.so"))


def _processor() -> str:
    told = processor.facts()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(told[name] for name in names if name in told) or platform.machine()
