"""What reaches the terminal: rank 0's own lines and errors. Everything a library says goes to a file a rank."""

import os
import socket
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from scaletrain.errors import ConfigError


@dataclass(frozen=True)
class Terminal:
    """The streams that the program was started with."""

    out: TextIO
    err: TextIO


def divert(log_file: Path) -> Terminal:
    """Sends standard output and error of this process, C++ libraries included, to `log_file`; the terminal is returned.

    Works on file descriptors: DeepSpeed, gloo and NCCL write past Python's sys.stdout.
    """
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{log_file} cannot be written ({error.strerror}): move what is in its place, or choose another run.dir"
        ) from error
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = Terminal(
        out=os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace"),
        err=os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="replace"),
    )
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    return terminal


def report_crash(terminal: TextIO, rank: int, log_file: Path | None) -> None:
    """The traceback of the error at hand, headed by rank and host, on the terminal; the log has it too."""
    head = f"[rank {rank} on {socket.gethostname()}] this is a defect or a failing machine"
    if log_file is not None:
        traceback.print_exc()
        head += f"; the log is {log_file}"
    print(f"{head}\n{traceback.format_exc()}", file=terminal, flush=True)


def leave(code: int) -> None:
    """Ends the process without tearing the interpreter down: with torch loaded that takes about two seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
