"""The living processes of this machine, as Linux tells of them in /proc; elsewhere there are none to see."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_POLL_SECONDS = 0.05


def own_processes() -> Iterator[Path]:
    """The /proc folder of each process of this user."""
    user = os.getuid()
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if folder.stat().st_uid == user:
                yield folder


def marked(variable: str, value: str) -> list[int]:
    """Other processes of this user that were started with `variable=value`: children inherit it, in any session."""
    return started_with({variable: value})


def started_with(variables: Mapping[str, str]) -> list[int]:
    """Other processes of this user whose environment had all of these at their start."""
    wanted, found = {f"{name}={value}".encode() for name, value in variables.items()}, []
    for folder in own_processes():
        with contextlib.suppress(OSError):
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")) and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def end_marked(variable: str, value: str, is_over: Callable[[], bool] | None = None) -> int:
    """Ends what `marked` finds: SIGTERM, and SIGKILL until none is left once the grace `is_over` (None: at once). Gives
    how many there were.

    A process that the kernel holds (waiting for a dead disk or GPU) outlives SIGKILL: it is waited for ten seconds.
    """
    left = marked(variable, value)
    count = len(left)
    if left and is_over is not None:
        _signal(left, signal.SIGTERM)
        left = _wait_for_none(variable, value, is_over)
    deadline = time.monotonic() + 10
    while left and time.monotonic() < deadline:
        _signal(left, signal.SIGKILL)
        left = _wait_for_none(variable, value, after(0.5))
    return count


def after(seconds: float) -> Callable[[], bool]:
    """A grace of so many seconds from now on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _wait_for_none(variable: str, value: str, is_over: Callable[[], bool]) -> list[int]:
    while (left := marked(variable, value)) and not is_over():
        time.sleep(_POLL_SECONDS)
    return left


def _signal(numbers: Iterable[int], what: signal.Signals) -> None:
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, what)


def names() -> set[str]:
    """What the living processes of this user are called; Linux keeps 15 characters."""
    found = set()
    for folder in own_processes():
        with contextlib.suppress(OSError):
            found.add((folder / "comm").read_text(encoding="utf-8", errors="replace").strip())
    return found


def files_in_use() -> tuple[set[str], set[int]]:
    """Paths and inodes of the files that living processes of this user have mapped or open.

    A process that may not be read (another user's, or one with raised rights) adds nothing.
    """
    paths: set[str] = set()
    inodes: set[int] = set()
    for folder in own_processes():
        with contextlib.suppress(OSError):
            for line in (folder / "maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                fields = line.split(maxsplit=5)  # address rights offset device inode path
                if len(fields) == 6 and fields[4] != "0":
                    paths.add(fields[5])
                    inodes.add(int(fields[4]))
        with contextlib.suppress(OSError):
            for handle in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    paths.add(str(handle.readlink()))
                    inodes.add(handle.stat().st_ino)
    return paths, inodes


def stat_fields(pid: int) -> list[str]:
    """What /proc/PID/stat tells after the name (state, parent, ...); empty where there is none."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def process_begun(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; "" where there is none (or no /proc to tell)."""
    fields = stat_fields(pid)
    return "" if not fields or fields[0] == "Z" else fields[19]


def kill_group(leader: int, begun: str) -> None:
    """SIGKILL to the group of a process that began at `begun`, see process_begun.

    The number is not given anew while one of the group lives, but once all have ended it may be a stranger's.
    """
    fields = stat_fields(leader)
    if not fields or fields[19] == begun:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)


def kill_here(processes: Sequence[Sequence[Any]]) -> None:
    """Ends those of [host, number, begun] that are on this host: a stopped process would stay for ever."""
    for host, pid, begun in processes:
        if host == socket.gethostname() and begun and pid != os.getpid() and process_begun(pid) == begun:
            os.kill(pid, signal.SIGKILL)
