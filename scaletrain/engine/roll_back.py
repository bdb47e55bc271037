"""Going back to a checkpoint from before a fault, and around the samples that brought it.

The windows of samples to pass over are kept in `checkpoints/passed-over.json`, written before anything else changes: a
run that is killed while it goes back, or falls back to an older checkpoint later, passes over them all the same. The
way of PaLM (https://arxiv.org/abs/2204.02311, section 5.1): go back to before the spike, skip the batches
up to its end.
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


def share_windows(root: Path) -> list[Window]:
    """The same on all ranks, which call it together."""
    windows: list[Window] = []
    with dist.together():
        windows = read_windows(root) if dist.rank() == 0 else []
    shared: list[Window] = dist.gather(windows)[0]
    return shared


def next_sample(windows: Sequence[Window], position: int) -> int:
    """The first position from `position` on that is in no window."""
    while inside := [window.end for window in windows if window.start <= position < window.end]:
        position = max(inside)
    return position


def go_back(
    root: Path, back: GoBack, max_roll_backs: int, tell: Callable[[str, str], None]
) -> tuple[Found, list[Window]]:
    """The checkpoint to go on from, and all windows so far; newer checkpoints are set aside as rolled-back-step-...
    and count no more.

    All ranks call it, none while a checkpoint is being written. `tell(name, why)` hears of damaged ones that were
    passed over. TrainingError when the run has gone back `max_roll_backs` times, or has no checkpoint to go back to.
    """
    windows = share_windows(root)
    if len(windows) >= max_roll_backs:
        raise TrainingError(
            f"after {len(windows)} roll-backs (guard.max_roll_backs={max_roll_backs}) there is {back.reason}: look at "
            "the samples, lower optim.lr, or resume with a higher guard.max_roll_backs"
        )
    found = checkpoint.newest_good(root, tell, last_step=back.first_step - 1)
    if found is None:
        raise TrainingError(
            f"{back.reason}, and there is no checkpoint from before step {back.first_step:,} to go back to: lower "
            "checkpoint.every_steps or optim.lr, or look at the samples"
        )
    windows.append(Window(found.state.samples_seen, back.end, back.reason))
    with dist.together():
        if dist.rank() == 0:
            write_whole(root / FILE, json.dumps([asdict(window) for window in windows], indent=2) + "\n")
            checkpoint.point_latest(root, found.folder.name)
            newer = [name for name, step in checkpoint.step_names(root).items() if step > found.state.step]
            checkpoint.set_aside(root, newer, "rolled-back")
    return found, windows
