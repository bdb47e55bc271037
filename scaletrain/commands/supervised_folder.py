"""What a supervisor reads from the folder of its run, without torch: how far it is, how it ended, who holds it."""

from pathlib import Path
from typing import Any

from scaletrain.runtime.checkpoint_names import MANIFEST, step_names
from scaletrain.runtime.locks import RUN_LOCK, locked
from scaletrain.runtime.run_files import EVENTS, METRICS
from scaletrain.track.sinks import last_line, read_lines


def newest_step(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 without one."""
    root = folder / "checkpoints"
    return max((step for name, step in step_names(root).items() if (root / name / MANIFEST).is_file()), default=0)


def is_finished(folder: Path) -> bool:
    """Whether the last event is the end of the training."""
    path = folder / EVENTS
    line = last_line(path) if path.is_file() else None
    return line is not None and line["event"] == "end"


def bytes_of_events(folder: Path) -> int:
    """How long the file of events is by now."""
    path = folder / EVENTS
    return path.stat().st_size if path.is_file() else 0


def went_back(folder: Path, start: int) -> bool:
    """Whether the events from byte `start` on tell of a roll-back."""
    path = folder / EVENTS
    return path.is_file() and any(line["event"] == "roll_back" for line in read_lines(path, start))


def last_metrics(folder: Path, since: float) -> dict[str, Any] | None:
    """What was logged last, if that was after `since` (of time.time())."""
    path = folder / METRICS
    return last_line(path) if path.is_file() and path.stat().st_mtime >= since else None


def holder(folder: Path) -> str | None:
    """Who holds the folder, as the holder wrote it; None: nobody."""
    lock = folder / RUN_LOCK
    try:
        with locked(lock, block=False, make=False) as handle:
            return None if handle is not None else lock.read_text(encoding="utf-8").strip() or "another process"
    except OSError:  # there is none yet, or the file system has no locks: a launch tells what is wrong
        return None
