"""Processes of this machine, told apart from later ones of the same number."""

import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def process_begun(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; "" where there is none (or no /proc to tell)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def kill_here(processes: Sequence[Sequence[Any]]) -> None:
    """Ends those of [host, number, begun] that are on this host: a stopped process would stay for ever."""
    for host, pid, begun in processes:
        if host == socket.gethostname() and begun and pid != os.getpid() and process_begun(pid) == begun:
            os.kill(pid, signal.SIGKILL)
