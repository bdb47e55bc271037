"""How long what a dead launch has left may go on: a checkpoint that it writes is not cut off."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scaletrain.runtime.checkpoint_names import UNFINISHED

_QUIET_SECONDS = 60.0  # in which a save may show nothing: a slow disk takes what was written before


@dataclass
class Grace:
    """Begins when it is made, and lasts `seconds`; where a checkpoint below `root` is unfinished, as long as files of
    it are written, but `most_seconds`. `tell` hears once that it lasts longer."""

    root: Path
    seconds: float
    most_seconds: float
    tell: Callable[[str], None]
    _began: float = field(default_factory=time.monotonic)
    _changed: float = field(default_factory=time.monotonic)
    _seen: frozenset[tuple[str, int, int]] = frozenset()
    _told: bool = False

    def is_over(self) -> bool:
        now, seen = time.monotonic(), _unfinished(self.root)
        if seen != self._seen:  # also at its end: there is a little to do after the save
            self._seen, self._changed = seen, now
        waited, quiet = now - self._began, now - self._changed
        if waited < self.seconds:
            return False
        if waited >= self.most_seconds or quiet >= (_QUIET_SECONDS if seen else self.seconds):
            return True
        if not self._told:
            self._told = True
            self.tell(
                f"wait    a checkpoint is unfinished, so what the launch has left goes on until no file of it was "
                f"written for {_QUIET_SECONDS:g} s, guard.hang_seconds={self.most_seconds:g} at most"
            )
        return False


def _unfinished(root: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size and time of each file of the checkpoints that are being written."""
    found = set()
    for path in root.glob(f"{UNFINISHED}*/*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            stat = path.stat()
            found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
