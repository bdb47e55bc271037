"""Going back to a checkpoint from before a fault, and around the samples that brought it.

The windows of samples to pass over are kept in `checkpoints/passed-over.json`, written before anything else changes: a
run that is killed while it goes back, or falls back to an older checkpoint later, passes over them all the same; the
next launch sets aside what the killed one had no time for. The way of PaLM (https://arxiv.org/abs/2204.02311, section
5.1): go back to before the spike, skip the batches up to its end.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Found
from scaletrain.engine.guard import GoBack
from scaletrain.errors import CheckpointError, TrainingError
from scaletrain.runtime import dist
from scaletrain.runtime.checkpoint_names import step_names
from scaletrain.runtime.files import write_whole

FILE = "passed-over.json"


@dataclass(frozen=True)
class Window:
    """Samples that the run does not learn from: positions start..end-1 of its order."""

    start: int
    end: int
    reason: str


def read_windows(root: Path) -> list[Window]:
    """Those of a run's `checkpoints` folder. CheckpointError when the file is damaged."""
    path = root / FILE
    try:
        windows = json.loads(path.read_text(encoding="utf-8"))
        return [Window(int(window["start"]), int(window["end"]), str(window["reason"])) for window in windows]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}): restore it, or remove it to have the run read those samples again"
        ) from error


def next_sample(windows: Sequence[Window], position: int, batch: int) -> int:
    """The first position from `position` on at which `batch` samples are in no window."""
    while inside := [w.end for w in windows if w.start < position + batch and position < w.end]:
        position = max(inside)
    return position


class NoTarget(Exception):  # noqa: N818  no error: the run goes on where it is
    """There is nothing to go back to, and why."""


def open_roll_backs(root: Path, most: int, tell: Callable[[str, str], None]) -> "RollBacks":
    """Those of the run whose `checkpoints` folder is `root`; `most`: how many it may have. All ranks call it.

    Checkpoints from inside a window are set aside, which a kill had left: `tell(name, why)` hears of them on rank 0.
    """
    windows: list[Window] = []
    with dist.together():
        if dist.rank() == 0:
            windows = read_windows(root)
            inside = [name for name in step_names(root) if _is_inside(root / name, windows)]
            _set_aside(root, inside)
            for name in inside:
                tell(name, f"the run had gone back from it ({FILE})")
    return RollBacks(root, most, dist.gather(windows)[0])


@dataclass
class RollBacks:
    """Those of a run so far, and the next. All ranks hold the same and call its methods together."""

    root: Path
    most: int
    windows: list[Window]

    def next_sample(self, position: int, batch: int) -> int:
        return next_sample(self.windows, position, batch)

    def target(self, back: GoBack, tell: Callable[[str, str], None]) -> Found:
        """The newest good checkpoint up to `back.last_step`; an older one when the run was there before, as the fault
        may be in it.

        `tell(name, why)` hears of damaged ones that were passed over. NoTarget when there is none, TrainingError when
        the run has gone back often enough.
        """
        if len(self.windows) >= self.most:
            raise TrainingError(
                f"after {len(self.windows)} roll-backs (guard.max_roll_backs={self.most}) there is {back.reason}: look "
                "at the samples, lower optim.lr, or resume with a higher guard.max_roll_backs"
            )
        found = self._newest(back.last_step, tell)
        if found is None:
            raise NoTarget(f"there is no whole checkpoint of step {back.last_step:,} or before")
        if any(window.start == found.state.samples_seen for window in self.windows):
            return self._newest(found.state.step - 1, tell) or found
        return found

    def carry_out(self, found: Found, back: GoBack) -> None:
        """Has this launch and all later ones go on from `found` and pass over the samples from there to `back.end`.

        Newer checkpoints are set aside as rolled-back-step-... and count no more.
        """
        self.windows.append(Window(found.state.samples_seen, back.end, back.reason))
        with dist.together():
            if dist.rank() == 0:
                text = json.dumps([asdict(window) for window in self.windows], indent=2) + "\n"
                write_whole(self.root / FILE, text)
                steps = step_names(self.root)
                _set_aside(self.root, [name for name, step in steps.items() if step > found.state.step])

    def _newest(self, last_step: int, tell: Callable[[str, str], None]) -> Found | None:
        try:
            return checkpoint.newest_good(self.root, tell, last_step)
        except CheckpointError:  # all are damaged, which `tell` has heard
            return None


def _is_inside(folder: Path, windows: list[Window]) -> bool:
    try:
        seen = Found(folder, checkpoint.read_manifest(folder)).state.samples_seen
    except CheckpointError:
        return False  # it counts as no checkpoint anyway
    return any(window.start < seen <= window.end for window in windows)


def _set_aside(root: Path, names: list[str]) -> None:
    """From the newest to the oldest, and `latest` last: a kill on the way leaves an order that can be gone on with."""
    if names:
        checkpoint.set_aside(root, names[::-1], "rolled-back")
        if left := list(step_names(root)):
            checkpoint.point_latest(root, left[-1])
