"""What asks a run to stop: noted here, agreed on by all ranks, obeyed between two steps."""

import functools
import os
import signal
import time
from pathlib import Path
from types import FrameType

from scaletrain.runtime.processes import stat_fields

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last as SLURM's --signal=USR1@120 sends it
_GRACE_SECONDS = 3.0  # launchers repeat a terminal's Ctrl-C as SIGTERM: that is still the first request
_FILE_SECONDS = 1.0  # between two looks for the stop file, which may lie on a slow network file system
_warned: list[float] = []  # when SIGUSR1 came before the run listened


class StopRequest:
    """Remembers the first SIGTERM, SIGINT or SIGUSR1. A further one, three seconds later, ends the process at once.

    A launcher that is killed would leave its ranks training with nobody to end them, and `deepspeed` passes no signal
    on. With `watch_launcher` the loss of the parent (torchrun; DeepSpeed's launch.py) is a request too, and with
    `watch_its_parent` that of its parent (`deepspeed`). The program calls first_launchers() as it begins: one that is
    killed in the seconds until listen() is missed too.

    `file`, which one rank alone gives, is a request when it exists. `launched`: time.time() of the program's start.
    """

    def __init__(self, file: Path | None = None, launched: float | None = None) -> None:
        self.launched = time.time() if launched is None else launched
        self._signal: str | None = None
        self._since = 0.0
        self._watched = 0  # launchers
        self._file = file
        self._asked: str | None = None
        self.obeyed_file = False
        self._looked = -_FILE_SECONDS

    def listen(self, *, watch_launcher: bool, watch_its_parent: bool = False) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._note)
        while _warned:
            self._signal, self._since = signal.SIGUSR1.name, _warned.pop()
        self._watched = watch_launcher + watch_its_parent

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop; None: it does not."""
        if self._signal is not None:
            return self._signal
        if self._watched and _launchers()[: self._watched] != first_launchers()[: self._watched]:
            return "the launcher is gone"
        return self._asked_by_file()

    def remove_old_file(self) -> bool:
        """Removes a stop file that was written before this launch, which it cannot mean; whether there was one."""
        if self._file is None or not self._file.is_file() or self._file.stat().st_mtime >= self.launched:
            return False
        self._file.unlink()
        return True

    def remove_file(self) -> None:
        """Once the request is obeyed: the next launch is to train."""
        if self._file is not None and self._file.is_file():
            self._file.unlink()
            self.obeyed_file = True

    def _asked_by_file(self) -> str | None:
        """What the file asks, once it was seen. A supervisor writes the name of the signal that it was sent into it;
        others leave it empty."""
        now = time.monotonic()
        if self._file is not None and self._asked is None and now - self._looked >= _FILE_SECONDS:
            self._looked = now
            if self._file.is_file():
                name = _text_of(self._file)
                self._asked = name if name in signal.Signals.__members__ else f"{self._file} was found"
        return self._asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > _GRACE_SECONDS:
            os._exit(128 + number)


class TimeLimit:
    """When to stop so that the last step and its save end within `seconds` after `began`.

    Times are seconds of one clock. What the loop still does once it has passed a look without stopping: what it does
    between two looks (a step, an evaluation and a save may be due), then the step after which it stops, then the save.
    """

    def __init__(self, seconds: float, began: float) -> None:
        self._seconds, self._end = seconds, began + seconds
        self._save = min(30.0, 0.05 * seconds)  # a guess, until one is measured
        self._measured = 0.0
        self._looked: float | None = None
        self._last = self._longest = 0.0

    def note_save(self, seconds: float) -> None:
        """A save took so long; the last one may take half as long again as the longest."""
        self._measured = max(self._measured, seconds)
        self._save = 1.5 * self._measured

    @property
    def reserve(self) -> float:
        """Seconds before the end at which to stop."""
        margin = min(5.0, 0.01 * self._seconds)  # for the last lines and the end of the process
        return self._longest + self._last + self._save + margin

    def is_reached(self, now: float) -> bool:
        """Whether the coming step has to be the last. Asked once a step: it learns from the time between."""
        if self._looked is not None:
            self._last = now - self._looked
            self._longest = max(self._longest, self._last)
        self._looked = now
        return now >= self._end - self.reserve


def remember_warning() -> None:
    """Keeps a SIGUSR1 for StopRequest.listen(). Its default is to end the process: the program does this first."""
    signal.signal(signal.SIGUSR1, lambda number, frame: _warned.append(time.monotonic()))


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


@functools.cache
def first_launchers() -> tuple[int, int]:
    """Process numbers of the parent and of its parent when this was first called."""
    return _launchers()


def _launchers() -> tuple[int, int]:
    """Process numbers of the parent and of its parent now; 0 where /proc does not tell."""
    parent = os.getppid()
    fields = stat_fields(parent)
    return parent, int(fields[1]) if fields else 0
