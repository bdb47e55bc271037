"""What asks a run to stop: noted here, agreed on by all ranks, obeyed between two steps."""

import os
import signal
import time
from pathlib import Path
from types import FrameType

_GRACE_SECONDS = 3.0  # launchers repeat a terminal's Ctrl-C as SIGTERM: that is still the first request


class StopRequest:
    """Remembers the first SIGTERM or SIGINT. A further one, three seconds later, ends the process at once.

    `deepspeed` passes no signal on: killed, it would leave its ranks training with nobody to end them. With
    `watch_launcher` the loss of the parent (launch.py) or of its parent (deepspeed) is a request too.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._since = 0.0
        self._launchers: tuple[int, int] | None = None

    def listen(self, *, watch_launcher: bool) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        self._launchers = _launchers() if watch_launcher else None

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop; None: it does not."""
        if self._signal is None and self._launchers is not None and _launchers() != self._launchers:
            return "the launcher is gone"
        return self._signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > _GRACE_SECONDS:
            os._exit(128 + number)


def _launchers() -> tuple[int, int] | None:
    """Process numbers of the parent and of its parent; None where /proc does not tell."""
    parent = os.getppid()
    try:
        fields = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return parent, int(fields[1])
