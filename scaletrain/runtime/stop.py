"""Signals that ask a run to stop: noted here, agreed on by all ranks, obeyed between two steps."""

import os
import signal
import time
from types import FrameType

_GRACE_SECONDS = 3.0  # launchers repeat a terminal's Ctrl-C as SIGTERM: that is still the first request


class StopRequest:
    """Remembers the first SIGTERM or SIGINT. A further one, three seconds later, ends the process at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._since = 0.0

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > _GRACE_SECONDS:
            os._exit(128 + number)
