"""What dead runs leave on a machine, in the way of later ones: shared memory, locks of builds. Told, never removed."""

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaletrain.runtime import processes

SHARED_MEMORY = Path("/dev/shm")
# Python's multiprocessing (psm_, sem.), torch's tensors, DeepSpeed's CPU all-reduce (csrc/cpu/comm/shm.cpp), NCCL.
_SEGMENTS = ("torch_*", "deepspeed_allreduce_buffer*", "psm_*", "sem.*", "nccl-*")
_SEGMENT_AGE_SECONDS = 60.0  # a run that is just starting makes a segment before it maps it
_WORTH_TELLING_BYTES = 64_000_000
_MOST_NAMED = 16  # files of a remedy, so that it stays a line
_LOCK_AGE_SECONDS = 600.0  # longer than any single op of DeepSpeed compiles
_COMPILERS = {"ninja", "nvcc", "cicc", "ptxas", "cc1plus", "c++", "g++", "gcc", "clang", "clang++", "hipcc", "ld"}


@dataclass(frozen=True)
class Segment:
    """A file of shared memory that no living process holds."""

    path: Path
    bytes: int


def describe_leftovers() -> list[str]:
    """A line for each kind of thing that is in the way on this machine, with the command that removes it."""
    return [*segment_lines(dead_segments(SHARED_MEMORY)), *lock_lines(stale_locks(extension_folder(os.environ)))]


def dead_segments(folder: Path, older_than_seconds: float = _SEGMENT_AGE_SECONDS) -> list[Segment]:
    """Segments of this user, older than a minute, that no process has mapped or open; the largest first.

    Other users' files are left out: their processes cannot be read, so nobody here knows whether they are in use.
    """
    now, user, old = time.time(), os.getuid(), []
    for pattern in _SEGMENTS:
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):  # its owner has just removed it
                found = path.lstat()
                if found.st_uid == user and now - max(found.st_mtime, found.st_ctime) > older_than_seconds:
                    old.append((path, found))
    if not old:
        return []
    paths, inodes = processes.files_in_use()
    dead = [
        # Tmpfs counts the blocks in use: a sparse file holds less memory than its size.
        Segment(path, found.st_blocks * 512)
        for path, found in old
        if str(path) not in paths and found.st_ino not in inodes
    ]
    return sorted(dead, key=lambda segment: -segment.bytes)


def segment_lines(dead: Sequence[Segment]) -> list[str]:
    """One line, if it is worth one: how many files hold how much memory, and what removes them."""
    total = sum(segment.bytes for segment in dead)
    if total < _WORTH_TELLING_BYTES:
        return []
    named, rest = dead[:_MOST_NAMED], dead[_MOST_NAMED:]
    remedy = shlex.join(["rm", *(str(segment.path) for segment in named)])
    more = f" (and {len(rest):,} smaller ones, told at the next start)" if rest else ""
    what = "1 file" if len(dead) == 1 else f"{len(dead):,} files"
    where = f"{named[0].path.parent} on {socket.gethostname()}"
    return [f"note    {what} of dead processes hold {total / 1e6:,.0f} MB of memory in {where}: {remedy}{more}"]


def extension_folder(env: Mapping[str, str]) -> Path:
    """Where torch builds C++ and CUDA extensions, DeepSpeed's ops among them."""
    if given := env.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def stale_locks(folder: Path, names: Callable[[], set[str]] = processes.names) -> list[tuple[Path, float]]:
    """Build locks older than ten minutes that nothing holds, with their age in seconds.

    torch's FileBaton makes the file, keeps it open while it builds and removes it; a kill leaves it, and every later
    build of that op waits for its removal for ever, without a word. While anything of this user compiles, none is
    called stale: the home folder may be shared, and the lock another container's. `names`: of what runs.
    """
    found = []
    for path in (*folder.glob("*/lock"), *folder.glob("*/*/lock")):  # NAME/lock, or py311_cu126/NAME/lock
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > _LOCK_AGE_SECONDS:
                found.append((path, age))
    if not found or names() & _COMPILERS:
        return []
    paths, _ = processes.files_in_use()
    return [(path, age) for path, age in found if str(path.resolve()) not in paths]


def lock_lines(stale: Sequence[tuple[Path, float]]) -> list[str]:
    return [
        f"note    the build lock {path} is {age / 3600:,.1f} hours old and nothing compiles on {socket.gethostname()}: "
        f"a build of that op would wait for it for ever: {shlex.join(['rm', str(path)])}"
        for path, age in stale
    ]
