"""A run's folder: held by one live run at a time, with what is needed to understand it later."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from scaletrain.errors import ConfigError
from scaletrain.runtime import network, processor
from scaletrain.runtime.files import TEMPORARY, write_json, write_whole
from scaletrain.runtime.locks import RUN_LOCK, NoLocksError, try_lock
from scaletrain.runtime.machine import cores
from scaletrain.runtime.world import World

_SHOWN_SECONDS = 60.0  # after which NFS forgets, by default, that a file was missing
_PACKAGES = ("scaletrain", "torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy")


def hold(folder: Path) -> IO[str]:
    """Makes the folder and locks it for this process; the lock goes with the process, a kill included.

    Raises ConfigError when the folder cannot be written or another run holds it.
    """
    lock = folder / RUN_LOCK
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run.dir={folder} cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from error
    try:
        if not try_lock(file.fileno()):
            file.close()
            who = holder(folder) or "another process"
            raise ConfigError(
                f"run.dir={folder} is in use by {who}: wait for that run, stop it, or choose another run.dir"
            )
    except NoLocksError as error:
        raise ConfigError(
            f"run.dir={folder} cannot be locked ({error.strerror}): mount its file system with locks, or choose a "
            "run.dir on another"
        ) from error
    for place in (folder, folder / "checkpoints"):
        for torn in place.glob(f"*.[0-9]*{TEMPORARY}"):  # of write_whole, killed before the renaming
            torn.unlink(missing_ok=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    os.fsync(file.fileno())  # for other nodes to see
    return file


def holder(folder: Path) -> str:
    """Who holds the folder, or held it last, as hold() wrote it; "" when nobody ever did."""
    try:
        return (folder / RUN_LOCK).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def check_shared(folder: Path, held_by: str, patience: float = _SHOWN_SECONDS) -> None:
    """ConfigError when the folder, seen from this node, is not the one that `held_by`, rank 0's process, has locked."""
    deadline = time.monotonic() + patience
    while holder(folder) != held_by:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"run.dir={folder} on {socket.gethostname()} is not the folder that rank 0 ({held_by}) writes to: put "
                "it on a disk that all nodes share"
            )
        time.sleep(0.2)


def describe(folder: Path, recipe_yaml: str, world: World, device: torch.device, deepspeed: dict[str, Any]) -> None:
    """Writes recipe.yaml and environment.json of this launch."""
    write_whole(folder / "recipe.yaml", recipe_yaml)
    write_json(folder / "environment.json", environment(world, device, deepspeed))


def environment(world: World, device: torch.device, deepspeed: dict[str, Any]) -> dict[str, Any]:
    """What a figure or a run depends on besides its recipe: versions, commit, machine, world, command."""
    return {
        "command": [sys.executable, *sys.argv],
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "git": _git_commit(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "world": {"ranks": world.size, "nodes": world.nodes, "ranks_on_node": world.local_size},
        "network": {name: os.environ.get(name) for name in network.VARIABLES},
        "deepspeed_config": deepspeed,
    }


def keep_tokenizer(folder: Path, tokenizer: Path) -> None:
    """Copies the dataset's tokenizer into the run, which then speaks wherever it is moved."""
    if not (folder / "tokenizer").is_dir():
        beside = folder / ".tokenizer.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(tokenizer, beside)
        beside.rename(folder / "tokenizer")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with -dirty; None outside one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _cpu_name() -> str:
    return processor.facts().get("model name") or platform.processor() or platform.machine()
