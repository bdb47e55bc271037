"""How many GPUs this machine shows, asked in a process of its own: torch takes seconds and remembers what it saw."""

import subprocess
import sys
from pathlib import Path

_QUESTION = "import torch; print(torch.cuda.device_count())"
_PATIENCE_SECONDS = 120.0  # a broken driver can hold the question for ever


def begin_count() -> "subprocess.Popen[str] | None":
    """Starts to count; None where the kernel has no GPU device at all, which needs no question."""
    devices = Path("/dev")
    if not any(devices.glob("nvidia[0-9]*")) and not (devices / "kfd").exists():
        return None
    return ask()


def ask() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _QUESTION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def end_count(asked: "subprocess.Popen[str] | None") -> int:
    """The number of GPUs; 0 if the question failed or was not answered in two minutes."""
    if asked is None:
        return 0
    try:
        answer, _ = asked.communicate(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return 0
    return int(answer) if answer.strip().isdecimal() else 0
