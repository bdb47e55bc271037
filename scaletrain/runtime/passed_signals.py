"""Signals to a supervisor: the first asks its run to stop through the stop file, a second ends everything at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from scaletrain.runtime.files import write_whole

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_GRACE_SECONDS = 3.0  # as in a rank: what repeats the first signal within it is still the first request
_TOUCH_SECONDS = 1.0


class PassedSignals:
    """Turns a signal into the file `stop`, which every launcher lets through.

    `deepspeed` passes no signal on, and torchrun kills its ranks 30 seconds after it did, in the middle of a long save.
    The file is touched again each second: a launch that is just starting removes one that is older than itself.
    """

    def __init__(self, stop_file: Path, end_all: Callable[[], object]) -> None:
        self.name: str | None = None  # of the first signal
        self._file, self._end_all = stop_file, end_all
        self._since = 0.0
        self._touched = -_TOUCH_SECONDS
        self._came = threading.Event()

    def listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is closed, and no nohup
            signal.signal(signal.SIGHUP, self._note)

    def pass_on(self) -> None:
        """While the launch runs: asks it to stop, if a signal came."""
        now = time.monotonic()
        if self.name is not None and now - self._touched >= _TOUCH_SECONDS:
            self._touched = now
            with contextlib.suppress(OSError):  # tried again in a second; a second signal needs no file
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._file, f"{self.name}\n")  # a rank may look at any moment

    def wait(self, seconds: float) -> bool:
        """Sleeps, until a signal comes; whether one came."""
        return self._came.wait(seconds)

    def take_back(self) -> None:
        """Once the launch has ended: the next is to train."""
        if self.name is not None:
            with contextlib.suppress(FileNotFoundError):
                self._file.unlink()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self._since = signal.Signals(number).name, time.monotonic()
            self._came.set()
        elif time.monotonic() - self._since > _GRACE_SECONDS:
            self._end_all()
            os._exit(128 + number)
