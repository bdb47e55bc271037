"""Damage to a checkpoint, as disks, file systems and people do it, and a disk that is full."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Found
from scaletrain.errors import CheckpointError

DISK_MB = 48


def flip_a_bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


HARMS: dict[str, Callable[[Path, random.Random], None]] = {
    "a bit flipped": flip_a_bit,
    "a file truncated": truncate,
    "a file emptied": empty,
    "a file deleted": delete,
}


def harm_newest(run: Path, draw: random.Random) -> tuple[str, str] | None:
    """Damages the newest checkpoint, or `latest`, where an older whole one is left. Returns what it did and to whom."""
    root = run / "checkpoints"
    folders = sorted(root.glob("step-*"))
    if len(folders) < 2 or not is_whole(folders[-1]) or not is_whole(folders[-2]):
        return None
    if draw.random() < 0.2:
        (root / "latest").write_bytes(b"")
        return "latest emptied", ""
    kind = draw.choice(list(HARMS))
    HARMS[kind](draw.choice(sorted(folders[-1].iterdir())), draw)
    return kind, folders[-1].name


def is_whole(folder: Path) -> bool:
    try:
        return checkpoint.damage(Found(folder, checkpoint.read_manifest(folder))) is None
    except CheckpointError:
        return False


def newest_whole(run: Path) -> int:
    """The step of the newest checkpoint that is as it was written; 0 without one."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        if is_whole(folder):
            return int(folder.name.removeprefix("step-"))
    return 0


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of some MB at `folder`, if it may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            shutil.copytree(folder, folder.with_name("kept"), dirs_exist_ok=True)
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No room is left on the disk meanwhile."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    yield
    filler.unlink()
